"""Sweeps of networks that have no statistics, or whose statistics fail: trials run all the same, and words say why."""

import math
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from raysat import analysis, mlp
from raysat.analysis.command import main as analysis_main
from raysat.driver.stepsizes import TrialResult, missing_neighbours
from raysat.models.architectures import ARCHITECTURES, Architecture
from raysat.spec.cells import Model
from raysat.spec.stepsizes import Stepsize
from raysat.status import main as status_main
from raysat.storage.files import location
from raysat.sweep import main
from raysat.trial import initial
from raysat.trial.job import Job
from raysat.trial.train import run_trial
from raysat.user_code import plugins

SWEEP = """
from raysat import Sweep, fixed, grid, theory, fixed_fraction
sweep = Sweep(name="odd", dataset="digits", models=["my_nets:build"], widths=[8], batch_sizes=[8, 32, 96],
              stepsizes=[fixed(0.1), grid([0.05, 0.2]), grid(auto=True)], n_train=96, n_test=0, iterations=40, seeds=2)
"""

MIXED = """
from torch import nn

class Mixed(nn.Module):
    def __init__(self, width, outputs):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(64, width), nn.BatchNorm1d(width), nn.Linear(width, outputs)

    def forward(self, x):
        hidden = self.norm(self.first(x.flatten(1)))
        return self.last((hidden - hidden.mean(0)).relu())

def build(width, input_shape, outputs):
    return Mixed(width, outputs)
"""

PLAIN = """
from torch import nn

def build(width, input_shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, outputs))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sweep.py").write_text(SWEEP)
    (tmp_path / "my_nets.py").write_text(MIXED)
    return tmp_path


def run(folder, *arguments):
    return main([str(folder / "sweep.py"), "--results", str(folder / "results"), "--inline", *arguments])


def rows(folder, table="trials"):
    return pd.read_parquet(folder / "results" / "odd" / table)


def test_a_network_that_mixes_its_batch_is_trained_tuned_and_answered(folder, capsys):
    assert run(folder) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    said = re.findall(r"no statistics: (.*)", printed.out)
    assert len(said) == 2
    assert said[1] == "the same as before"
    trials, ntk = rows(folder), rows(folder, "ntk")
    assert not (trials["status"] == "failed").any()
    assert trials[["gamma", "k_op", "b_star", "beta", "eta_beta", "eta_limit"]].isna().all(axis=None)
    assert set(ntk["method"]) == {"refused"}
    assert ntk["w0_digest"].nunique() == 2
    base = ntk.set_index("init_id")["base_stepsize"]
    assert (base > 0).all()
    auto = trials[trials["stepsize"] == "grid_relative"]
    exponents = 2 * np.log2(auto["eta"] / auto["init_id"].map(base))
    np.testing.assert_allclose(exponents, exponents.round(), atol=1e-9)
    for _, tried in auto.groupby(["batch_size", "seed"]):
        best = tried.sort_values(["loss_final", "eta"])["eta"].iloc[0]
        ended = tried.set_index("eta")["loss_final"]
        assert ended.index.min() < best < ended.index.max(), "the best lies inside the range"
    root = folder / "results" / "odd"
    page = (root / "report.html").read_text()
    assert "Theory predicts no b_star here" in page
    assert "has no statistics:" in page
    assert analysis_main([str(root)]) == 0
    assert status_main([str(root)]) == 0
    assert f"Cells: {len(trials)} done" in capsys.readouterr().out
    before = len(trials)
    assert run(folder) == 0
    assert f"all {before} cells are finished" in capsys.readouterr().out


def test_its_critical_batch_size_is_measured_without_a_word_of_nan(folder):
    run(folder, "--set", "stepsizes=[grid(auto=True)]", "--set", "adaptive=True", "--quiet")
    made = analysis.analyze_folder(*_loaded(folder))
    assert set(made.fits["tuning"]) == {"free"}
    assert made.fits["reason"].str.len().max() > 0 or made.fits["value"].notna().any()
    table = analysis.summary(made.fits)
    assert not any("nan" in note for notes in table["notes"] for note in notes)


def _loaded(folder):
    root = location(str(folder / "results" / "odd"))
    return root, *analysis.load(root)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("stepsizes=[theory()]", r"stepsizes has theory\(1\), made of gamma and k_op, .*mixes.*: use fixed\(\), grid"),
        ("stepsizes=[fixed(0.1),fixed_fraction(2)]", r"stepsizes has fixed_fraction\(2\), made of gamma"),
        ("stepsizes=[grid([0.5],relative=True)]", r"stepsizes has grid_relative\(0.5\), made of gamma"),
        ("ntk_at=[5]", "ntk_at asks for statistics, .*mixes.*: leave it out"),
        ("spectrum=4", "spectrum asks for statistics"),
        ("dense_samples=8", "dense_samples asks for statistics"),
    ],
)
def test_what_is_made_of_statistics_is_refused_before_any_work(folder, capsys, setting, words):
    assert run(folder, "--set", setting) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(words, said)
    assert not (folder / "results").exists()


def test_statistics_that_fail_cost_only_what_is_made_of_them_and_are_tried_again(folder, capsys, monkeypatch):
    (folder / "my_nets.py").write_text(PLAIN)

    def fail(*_, **__):
        raise RuntimeError("no derivative of this")

    settings = "--set", "stepsizes=[fixed(0.1), theory(), grid(auto=True)]"
    with monkeypatch.context() as patch:
        patch.setattr(initial, "ntk_statistics", fail)
        assert run(folder, *settings) == 1
    printed = capsys.readouterr()
    assert len(re.findall(r"^\d.*RuntimeError: no derivative of this", printed.out, re.MULTILINE)) == 2, (
        "once of the statistics, once of the cells that needed them"
    )
    assert printed.err.count("\n") == 2
    assert re.search(
        r"6 cells failed.*\n.*theory\(1\) is made of gamma.*no derivative.*6 cells, the first", printed.err
    )
    trials, ntk = rows(folder), rows(folder, "ntk")
    assert set(ntk["method"]) == {"failed"}
    assert ntk["error"].str.contains("Traceback").all()
    assert set(trials[trials["status"] == "failed"]["stepsize"]) == {"theory(1)"}
    page = (folder / "results" / "odd" / "report.html").read_text()
    assert page.count("<summary>traceback</summary>") == 1
    assert "because of an error" in page

    assert run(folder, *settings) == 0
    printed = capsys.readouterr().out
    assert "an earlier run stored gamma none" in printed
    after, ntk = rows(folder), rows(folder, "ntk")
    assert ntk["gamma"].notna().all()
    assert ntk["base_stepsize"].isna().all()
    assert (after["status"] != "failed").all()
    assert after["b_star"].notna().all(), "of the fixed ones too, which did not run again"
    fixed = trials[trials["stepsize"] == "fixed(0.1)"].set_index("cell_id")["finished_at"]
    kept = after.set_index("cell_id").loc[fixed.index, "finished_at"]
    assert (kept == fixed).all()
    auto = after[after["stepsize"] == "grid_relative"]
    exponents = 2 * np.log2(auto["eta_beta"])
    np.testing.assert_allclose(exponents, exponents.round(), atol=1e-6)
    assert run(folder, *settings) == 0
    assert "are finished" in capsys.readouterr().out


def test_weights_that_are_drawn_anew_each_time_are_an_error_in_words(folder, capsys):
    drawn = PLAIN.replace("    return", "    import numpy as np, torch\n    layers =").replace(
        "nn.Linear(width, outputs))",
        "nn.Linear(width, outputs))\n    layers[1].weight.data = torch.from_numpy("
        "np.random.default_rng().normal(size=(width, 64)))\n    return layers",
    )
    (folder / "my_nets.py").write_text(drawn)
    assert run(folder, "--set", "stepsizes=[fixed(0.001)]", "--quiet") == 1
    said = capsys.readouterr().err
    assert re.search(r"my_nets:build at width 8, seed \d, draws other weights each time it is built", said)
    assert set(rows(folder)["status"]) == {"failed"}
    assert rows(folder)["h"].isna().all()
    (folder / "my_nets.py").write_text(drawn.replace("np.random.default_rng()", "np.random"))
    assert run(folder, "--set", "stepsizes=[fixed(0.001)]", "--quiet", "--fresh") == 0
    assert set(rows(folder)["status"]) == {"completed"}


OWN = """
from pathlib import Path
import numpy as np, torch
from raysat.data import Dataset

def load():
    data = np.load(Path(__file__).parent / "data.npz")
    return Dataset(x=torch.from_numpy(data["x"]), y=torch.from_numpy(data["y"]))
"""
DRAWN = """
import random
import numpy as np, torch
from mypkg.parts import layers

def build(width, input_shape, outputs):
    first, last = layers.pair(input_shape[0], width, outputs)
    with torch.no_grad():
        first.weight.copy_(torch.from_numpy(np.random.randn(*first.weight.shape)))
        last.weight.fill_(random.random())
    return torch.nn.Sequential(first, torch.nn.BatchNorm1d(width), Centred(), last)

class Centred(torch.nn.Module):
    def forward(self, x):
        return (x - x.mean(0)).relu()
"""
LAYERS = """
from torch import nn

def pair(inputs, width, outputs):
    return nn.Linear(inputs, width), nn.Linear(width, outputs)
"""
ON_RAY = """
from raysat import Sweep, fixed, grid
sweep = Sweep(name="odd", dataset="my_own:load", models=["mypkg.models:build"], widths=[8], batch_sizes=[4, 16],
              stepsizes=[fixed(0.05), grid(auto=True)], iterations=10, seeds=2)
"""


def test_on_ray_with_a_loader_by_file_a_builder_by_numpy_and_a_src_folder(tmp_path):
    rng = np.random.default_rng(0)
    sweeps, parts = tmp_path / "sweeps", tmp_path / "src" / "mypkg" / "parts"
    sweeps.mkdir()
    parts.mkdir(parents=True)
    np.savez(sweeps / "data.npz", x=rng.normal(size=(16, 3)), y=rng.normal(size=(16, 2)))
    for path, text in (
        (sweeps / "sweep.py", ON_RAY),
        (sweeps / "my_own.py", OWN),
        (parts.parent / "__init__.py", ""),
        (parts.parent / "models.py", DRAWN),
        (parts / "layers.py", LAYERS),
    ):
        path.write_text(text)
    # The driver finds the package by its own sys.path, of which its workers know nothing.
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from raysat.sweep import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = [str(tmp_path / "src"), str(sweeps / "sweep.py"), "--results", str(tmp_path / "results")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    trials, ntk = rows(tmp_path), rows(tmp_path, "ntk")
    assert not (trials["status"] == "failed").any()
    assert trials["stepsize"].eq("grid_relative").sum() >= 2 * 2 * 4
    assert ntk["w0_digest"].nunique() == 2
    assert ntk["base_stepsize"].notna().all()


def test_a_stepsize_range_grows_without_eta_limit():
    """Losses fall up to k = 4 and diverge above: what is tried grows from where it began until the best is inside."""

    def found(k):
        return TrialResult("diverged") if k > 4 else TrialResult("completed", (0, 10), (1.0, 2.0 ** -(k + 9)))

    tried = {k: found(k) for k in (0, 1, 2)}
    for _ in range(20):
        if not (more := missing_neighbours(tried, None)):
            break
        tried |= {k: found(k) for k in more}
    assert set(tried) == {0, 1, 2, 3, 4, 5}
    failed = dict.fromkeys((0, 1, 2), TrialResult("failed"))
    assert missing_neighbours(failed, None) == set()
    assert missing_neighbours(failed | {0: found(0)}, None) == {-1}, "above it what failed is known already"


def test_what_random_layers_draw_is_the_cells_own(make_cell, tmp_path, monkeypatch):
    """Twice the same, whatever the process drew before, and the same where it was interrupted."""
    import torch
    from torch import nn

    def build(width, input_shape, outputs):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Dropout(0.5), nn.Linear(width, outputs))

    monkeypatch.setitem(ARCHITECTURES, "dropped", Architecture(mlp, build))
    cell = make_cell(model=Model("dropped"), stepsize=Stepsize("fixed", 0.05), iterations=60)
    job = Job("s", cell.init, cell, checkpoints=tmp_path, checkpoint_seconds=0.0)
    torch.rand(3)
    first = run_trial(replace(job, checkpoints=None))[0]
    state = torch.get_rng_state()
    monkeypatch.setattr(
        "raysat.trial.train.AT_ONCE_SECONDS", 1e-9
    )  # a few steps at a time, and a checkpoint after each

    class Enough(Exception):
        pass

    def stop(iteration, losses):
        if iteration >= 20:
            raise Enough

    monkeypatch.setattr("raysat.trial.train.PROGRESS_INTERVAL", -1.0)
    with pytest.raises(Enough):
        run_trial(replace(job, on_progress=stop))
    second = run_trial(job)[0]
    assert second["attempts"] == 2
    assert second["loss_final"] == first["loss_final"]
    assert torch.equal(torch.get_rng_state(), state), "the process's own generator is where it was"
    other = replace(cell, batch_size=16)
    assert run_trial(Job("s", other.init, other))[0]["loss_final"] != first["loss_final"]
    assert math.isfinite(first["loss_final"])


def test_a_checkpoint_of_another_stepsize_is_not_gone_on_with(make_cell, tmp_path):
    cell = make_cell(iterations=30)
    row = initial.compute_statistics(Job("s", cell.init))
    job = Job("s", cell.init, cell, statistics=row, checkpoints=tmp_path, checkpoint_seconds=0.0)
    expected = run_trial(replace(job, checkpoints=None))[0]
    wrong = {**row, "gamma": 3 * row["gamma"]}

    def stop(iteration, losses):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raysat.trial.train.PROGRESS_INTERVAL", -1.0)
        patch.setattr("raysat.trial.train.AT_ONCE_SECONDS", 1e-9)
        with pytest.raises(KeyboardInterrupt):
            run_trial(replace(job, statistics=wrong, on_progress=stop))
    assert list(tmp_path.iterdir())
    found = run_trial(job)[0]
    assert found["loss_final"] == expected["loss_final"]
    assert plugins.installed() == {}
