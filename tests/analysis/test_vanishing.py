"""A loss that becomes exactly 0, as a hinge does on data that it separates: the best training, and no missing one."""

import math

import pandas as pd
import pytest

import raysat
from raysat.driver.stepsizes import TrialResult
from raysat.sweep import main

OWN = """
import torch
from raysat.data import Dataset

def load():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(64, 100, generator=draw)
    return Dataset(x=x, y=torch.sign(x @ torch.randn(100, generator=draw))[:, None])

def hinge(outputs, y):
    return (1 - outputs.squeeze(-1) * y.squeeze(-1)).clamp(min=0)
"""
SWEEP = """
from raysat import Sweep, grid, mlp
sweep = Sweep(name="hinge", dataset="own:load", models=[mlp(1)], widths=[64], batch_sizes=[1, 4, 16, 64],
              loss="own:hinge", stepsizes=[*grid([0.1, 0.4, 1.6])], iterations=300, evaluations=60, seeds=2)
"""


@pytest.fixture
def swept(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "sweep.py").write_text(SWEEP)
    assert main(["sweep.py", "--inline"]) == 0
    said = capsys.readouterr()
    return " ".join((said.out + said.err).split())


@pytest.mark.slow
def test_targets_are_found_h_is_refused_in_words_and_every_figure_is_made(swept):
    results = raysat.load("results/hinge")
    trials = results.trials
    gone = trials["loss_final"] == 0
    assert gone.any()
    assert trials.loc[gone, "h"].isna().all()
    fits = results.fit().fits
    counted = fits[(fits["quantity"] == "b_N") & fits["target"].notna()]
    assert len(counted) >= 3
    assert (counted["target"] < trials["loss_init"].min()).all()
    assert "the loss vanished, so that h has no value there" in swept
    assert "could not be made" not in swept
    # What is drawn of each seed and batch size is the run that became 0, where there is one.
    drawn = trials.assign(score=raysat.analysis.by_h(trials)).sort_values("score")
    drawn = drawn.drop_duplicates(["seed", "batch_size"]).set_index(["seed", "batch_size"])["loss_final"]
    assert (drawn[gone.groupby([trials["seed"], trials["batch_size"]]).any()] == 0).all()


def test_of_several_that_become_0_the_first_one_is_the_best():
    times = [0, 10, 20, 40]
    slow = TrialResult("completed", times, [1.0, 0.5, 0.2, 0.0])
    fast = TrialResult("completed", times, [1.0, 0.2, 0.0, 0.0])
    never = TrialResult("completed", times, [1.0, 0.1, 1e-4, 1e-6])
    assert sorted([never, slow, fast], key=lambda one: one.score(None)) == [fast, slow, never]


def test_a_run_that_diverged_is_no_run_that_became_0():
    rows = pd.DataFrame({"status": ["diverged", "completed"], "loss_final": [0.0, 0.1], "h": [math.nan, 0.2]})
    assert raysat.analysis.by_h(rows).tolist()[1] == -0.2
    assert math.isnan(raysat.analysis.by_h(rows).tolist()[0])
