"""Sweeps to a test accuracy, as a user runs them."""

import math
from itertools import pairwise

import pandas as pd
import pytest

import raysat
from raysat.analysis.command import main as analyze
from raysat.report.__main__ import main as report
from raysat.sweep import main

TARGET = 0.6

SMALL = f"""
from raysat import Sweep, grid, mlp

sweep = Sweep(
    name="small", dataset="digits", models=[mlp(depth=1)], widths=[32], batch_sizes=[1, 8, 64], seeds=2,
    stepsizes=[grid([0.5, 2.0, 8.0], relative=True)], iterations=200, n_train=100, n_test=100,
    evaluations=60, target="test_accuracy >= {TARGET}",
)
"""


@pytest.fixture
def unreported(monkeypatch):
    monkeypatch.setattr("raysat.report.finish", lambda *_: None)


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(SMALL)

    def run(results, *words):
        command = [str(path), "--inline", "--quiet", "--results", str(tmp_path / results)]
        return main([*command, *words])

    return run


def winners(results):
    """The best trial of each (batch size, seed), N and cell_id, by a loop over the stored curves."""
    trials, curves = (pd.read_parquet(results / "small" / name) for name in ("trials", "curves"))
    best = {}
    for row in trials.to_dict("records"):
        curve = curves[curves["cell_id"] == row["cell_id"]].sort_values("iteration").to_dict("records")
        for before, at in pairwise(curve):
            if at["test_accuracy"] >= TARGET:
                ends = before["test_accuracy"], TARGET, at["test_accuracy"]
                above, eps, below = (math.log(1 - one) for one in ends)
                share = (above - eps) / (above - below)
                steps = before["iteration"] + share * (at["iteration"] - before["iteration"])
                key = row["batch_size"], row["seed"]
                best[key] = min(best.get(key, (math.inf, "")), (steps, row["cell_id"]))
                break
    return trials, best


def test_a_race_to_an_accuracy_has_the_winners_of_no_race(run, tmp_path, unreported):
    assert run("raced") == 0
    assert run("alone", "--set", "race=False") == 0
    trials, best = winners(tmp_path / "raced")
    others, same = winners(tmp_path / "alone")
    assert set(best) == {(b, seed) for b in (1, 8, 64) for seed in (0, 1)}
    assert best == {key: (pytest.approx(steps), cell_id) for key, (steps, cell_id) in same.items()}
    assert (trials["status"] == "beaten").any()
    assert "beaten" not in set(others["status"])
    assert trials["iterations_done"].sum() < others["iterations_done"].sum()
    fits = [raysat.load(tmp_path / name / "small").fit().fits for name in ("raced", "alone")]
    free = [one.query("tuning == 'free' and quantity == 'b_N'").iloc[0] for one in fits]
    assert free[0]["value"] == pytest.approx(free[1]["value"], rel=1e-9, nan_ok=True)
    assert [(one["metric"], one["target"]) for one in free] == [("test_accuracy", TARGET)] * 2


def test_the_answer_names_the_metric_everywhere(run, tmp_path, capsys):
    assert run("results") == 0
    root = tmp_path / "results" / "small"
    printed = " ".join(capsys.readouterr().out.split())
    assert "To reach test accuracy 0.6 at width 32" in printed
    assert "No prediction: the theory is of the training loss." in printed
    page = (root / "report.html").read_text()
    for words in ("test accuracy ≥ 0.6", "To reach test accuracy 0.6", "could not be made"):
        assert (words in page) == (words != "could not be made")
    table = pd.read_parquet(root / "analysis.parquet")
    assert set(table.loc[table["quantity"] == "b_N", "metric"]) == {"test_accuracy"}
    (said,) = raysat.load(root).recommendation
    assert (said.metric, said.target) == ("test_accuracy", TARGET)
    assert "test accuracy" in raysat.load(root)._repr_html_()


def test_the_same_command_runs_nothing_again_and_neither_does_a_further_target(run, tmp_path, capsys):
    assert run("results") == 0
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "results" / "small" / "trials").iterdir()}
    more = ("--set", "targets=['test_accuracy >= 0.6', test_accuracy >= 0.5, 'test_loss <= 0.4', 0.3]")
    for words in ((), more):
        capsys.readouterr()
        assert run("results", *words) == 0
        assert {path: path.stat().st_mtime_ns for path in files} == files
    table = pd.read_parquet(tmp_path / "results" / "small" / "analysis.parquet")
    assert {*zip(table["metric"], table["target"].fillna(0), strict=True)} == {
        *(("train_loss", 0.0), ("test_accuracy", 0.6), ("test_accuracy", 0.5), ("test_loss", 0.4), ("train_loss", 0.3))
    }


LINEAR = ["--set", "dataset=linear(n=200, d=4)", "--set", "n_test=None"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "target=test_accuracy <= 0.9"], "write 'test_accuracy >= 0.9'"),
        (["--set", "target=accuracy >= 0.9"], "the metrics are"),
        (["--set", "target=test_accuracy >= 90"], "at most 1"),
        (["--set", "target_loss=0.3"], "set one of them to None"),
        (["--set", "n_test=0"], "n_test=0: set n_test"),
        (LINEAR, "needs test samples, and 'linear"),
        ([*LINEAR, "--set", "target=train_accuracy >= 1"], "classes"),
    ],
)
def test_a_target_that_cannot_be_ends_the_command_before_any_work(run, tmp_path, capsys, words, said):
    assert run("results", *words) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "results").exists()


def test_set_replaces_a_target(run, tmp_path, unreported):
    assert run("results", "--set", "target=None", "--set", "iterations=2", "--set", "batch_sizes=[64]") == 0
    assert run("other", "--set", "target=train_loss <= 0.5", "--set", "batch_sizes=[64]") == 0
    assert run("other", "--set", "target=None", "--set", "target_loss=0.5", "--set", "batch_sizes=[64]") == 0
    for name, status in (("results", {"completed"}), ("other", {"target_reached", "beaten"})):
        assert set(pd.read_parquet(tmp_path / name / "small" / "trials")["status"]) <= status | {"diverged"}


def test_the_commands_take_a_target_as_text(run, tmp_path):
    assert run("results") == 0
    root = str(tmp_path / "results" / "small")
    for command in (analyze, report):
        assert command([root, "--output", str(tmp_path / "out"), "--target", "test_accuracy >= 0.7", "0.3"]) == 0
        table = pd.read_parquet(tmp_path / "out" / "analysis.parquet").query("quantity == 'b_N'")
        found = dict.fromkeys(zip(table["metric"], table["target"], strict=True))
        assert list(found) == [("test_accuracy", 0.7), ("train_loss", 0.3)]
        assert command([root, "--target", "test_accuracy <= 0.7"]) == 2
        assert command([root, "--target", "-1"]) == 2
