"""A data set with a transform, as its user types the command: refusals, identity, and predictions that are absent."""

import io

import pandas as pd
import pytest
from rich.console import Console

from raysat.analysis import analyze
from raysat.analysis.summaries import print_summary, summary
from raysat.analysis.words import no_interpolation
from raysat.forecast import main as forecast
from raysat.report.answer import answers
from raysat.storage.store import Store
from raysat.sweep import main

SWEEP = """
from raysat import Sweep, Training, fixed, mlp
sweep = Sweep(name="own", dataset="my_data:load", models=[mlp(1)], widths=[4], batch_sizes=[1, 4, 8],
              stepsizes=[fixed(0.01)], iterations=8, preprocessing="none", spectrum=4)
"""
DATA = """
import torch
from raysat.data import Dataset

def load():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, generator=generator)
    return Dataset(x=x, y=x.sum(1, keepdim=True), transform="my_changes:shaken")
"""
CHANGES = """
import torch

def shaken(x, y, generator):
    from my_size import size
    return x + size() * torch.randn(x.shape, generator=generator), y

def another(x, y, generator):
    return x, y
"""
WHY = "the theory is of fixed training samples, and my_changes:shaken changes them at each step"


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setattr("raysat.report.finish", lambda *_: None)
    files = {
        "sweep.py": SWEEP,
        "my_data.py": DATA,
        "my_changes.py": CHANGES,
        "my_size.py": "def size():\n    return 0.1",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def run(project, capsys):
    def run(*arguments, command=main, where="--results"):
        code = command([str(project / "sweep.py"), *[where, str(project / "results")] * bool(where), *arguments])
        said = capsys.readouterr()
        return code, " ".join((said.out + said.err).split())

    return run


def replace(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_a_transform_has_no_prediction_and_its_code_is_of_the_cells(project, run):
    code, said = run("--inline")
    assert code == 0, said
    store = Store(project / "results" / "own")
    trials, curves, ntk = (store.read(name) for name in ("trials", "curves", "ntk"))
    assert set(trials["training"]) == {"augmented by my_changes:shaken"}
    assert trials["eta_limit"].isna().all()
    assert ntk[["gamma", "k_op", "b_star", "noise_scale"]].notna().all(axis=None)
    files = set(trials["user_files"]) - set(ntk["user_files"])
    assert all("my_changes.py" in text and "my_size.py" in text for text in files)
    analysis = analyze(trials, curves, ntk=ntk)
    assert analysis.comparison["predicted"].isna().all()
    assert all(WHY in remark for remark in analysis.comparison["remark"])
    assert analysis.points["h_interp"].isna().all()
    print_summary(analysis, Console(file=(printed := io.StringIO()), width=400))
    assert f"No prediction: {WHY}." in printed.getvalue()
    named = "augmented by my_changes:shaken (the prediction is for plain SGD without augmentation)"
    assert named in printed.getvalue()
    assert "agreement of h with h_interp" not in printed.getvalue()
    (answer,) = answers(summary(analysis.fits))
    assert f"Theory predicts no b_star here: {WHY}; add grid(auto=True) to its stepsizes to measure one." in (
        answer.sentences
    )
    assert no_interpolation(analysis.points.iloc[0]) == f"no interpolation: {WHY}"

    replace(project / "my_changes.py", "def another", "# an apple\ndef another")
    assert "all 3 cells are finished" in run("--inline")[1]
    replace(project / "my_size.py", "0.1", "0.2")
    assert "my_size.py changed since 3 cells had ended: they run again" in run("--inline")[1]
    replace(project / "my_changes.py", "x + size()", "x - size()")
    code, said = run("--inline")
    assert (code, "holds another sweep (my_changes.py changed since)" in said) == (2, True)


def test_a_training_names_a_transform_of_any_data_set(project, run):
    """Two ways to say the same: the same cells, and the same bits."""
    assert run("--inline")[0] == 0
    first = pd.read_parquet(project / "results" / "own" / "curves")
    replace(project / "my_data.py", ', transform="my_changes:shaken"', "")
    named = "iterations=8, trainings=[Training(), Training(transform='my_changes:shaken')]"
    replace(project / "sweep.py", "iterations=8", named)
    assert run("--inline", "--fresh")[0] == 0
    trials, curves = (pd.read_parquet(project / "results" / "own" / name) for name in ("trials", "curves"))
    assert sorted(set(trials["training"])) == ["augmented by my_changes:shaken", "sgd"]
    same = curves[curves["cell_id"].isin(trials.loc[trials["training"] != "sgd", "cell_id"])]
    assert len(same) == len(first)
    assert sorted(same["distance_from_init"]) == sorted(first["distance_from_init"])
    assert trials.loc[trials["training"] == "sgd", "engine"].isin(["fused", "stacked"]).all()


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        (
            "sweep.py",
            "spectrum=4",
            "engine='fused'",
            "engine='fused' takes the steps of plain SGD only, and a training",
        ),
        (
            "sweep.py",
            "spectrum=4",
            "ranks_per_trial=2",
            "splits batches of plain SGD only, and a training is 'augmented",
        ),
        ("sweep.py", "spectrum=4", "trainings=[Training(transform='my_changes:another')]", "leave one of them out"),
        ("my_data.py", "my_changes:shaken", "my_change:shaken", "put my_change.py next to the sweep file"),
        ("my_data.py", "my_changes:shaken", "my_changes:shake", "my_changes has no function shake; define it there"),
        ("my_data.py", '"my_changes:shaken"', "torch.flip", "give the import path of a function"),
        ("my_changes.py", ", generator=generator", "", "draws from a global generator"),
        ("my_changes.py", "), y", ").double(), y", "let it keep shapes, types and devices"),
        ("my_changes.py", "return x +", "return x / 0 * 0 +", "returns x with NaN: let it make none"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(project, run, file, old, new, words):
    replace(project / file, old, new)
    code, said = run("--inline")
    assert code == 2
    assert words in said
    assert not (project / "results").exists()


def test_a_transform_that_fails_in_a_step_is_the_error_of_its_cell(project, run):
    """As on a size of batch that was not tried."""
    replace(project / "my_changes.py", "return x + size()", "return x / (len(x) < 8) * 0 + size()")
    code, said = run("--inline")
    assert code == 1
    assert "returns x with NaN: let it make none" in said
    trials = pd.read_parquet(project / "results" / "own" / "trials")
    assert trials.groupby("batch_size")["status"].unique().map(list).to_dict() == {
        1: ["completed"],
        4: ["completed"],
        8: ["failed"],
    }


def test_there_is_no_forecast_of_changed_samples(project, run):
    code, said = run(command=forecast, where="--output")
    assert code == 2
    assert "'my_data:load' has a transform, and the forecast is of fixed training samples" in said
