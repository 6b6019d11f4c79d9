"""The sweep files: each loads, says what it should, and its line for two cores runs, at a still smaller size."""

import ast
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from raysat.driver import sweepfile
from raysat.sweep import main

FOLDER = Path(__file__).parents[1] / "sweeps"
FILES = sorted(FOLDER.glob("*.py"))
BRANCHES = "Branches(at=[0, 2], samples=16, draws=1)"
SMALLER = {
    "quickstart": {"n_train": 16, "widths": [4], "batch_sizes": [1, 4, 16], "iterations": 5},
    "digits": {"n_train": 16, "widths": [4], "batch_sizes": [1, 4, 16], "iterations": 5},
    "mnist": {"n_train": 16, "widths": [4], "batch_sizes": [1, 4, 16], "iterations": 5},
    "cifar": {"n_train": 4, "widths": [2], "batch_sizes": [1, 2, 4], "iterations": 2},
    "svhn": {"n_train": 16, "widths": [4], "batch_sizes": [1, 4, 16], "iterations": 5, "dataset": "digits"},
    "shakespeare": {"n_train": 3, "n_test": 1, "widths": [4], "batch_sizes": [1, 2, 3], "iterations": 2},
    "critical_batch": {"n_train": 16, "widths": [4], "batch_sizes": [1, 4, 16], "iterations": 5, "spectrum": 2},
    "linear": {"dataset": "linear(n=16,d=4)", "batch_sizes": [1, 4, 16], "iterations": 5},
    "asgd": {"n_train": 64, "n_test": 8, "widths": [4], "batch_sizes": [16, 64], "samples": 128},
    "generalization": {"n_train": 64, "n_test": 8, "widths": [4], "batch_sizes": [16, 64], "epochs": 2},
    "branches": {"n_train": 16, "n_test": 4, "widths": [2], "batch_sizes": [4], "iterations": 2, "branches": BRANCHES},
    "width": {"n_train": 16, "widths": [4, 8], "batch_sizes": [1, 16], "iterations": 5, "ntk_at": [5]},
}
COMMAND = "python -m raysat.sweep"
WITHOUT_FILES = ("quickstart", "digits", "linear", "svhn")


def commands(path):
    """The command lines of a sweep file's first lines."""
    text = ast.get_docstring(ast.parse(path.read_text())).replace("\\\n", " ")
    lines = [line.split("   #")[0].strip() for line in text.splitlines() if line.strip().startswith(COMMAND)]
    return [shlex.split(line)[3:] for line in lines]


def test_every_sweep_file_is_tested():
    assert {path.stem for path in FILES} == set(SMALLER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_first_lines_say_how_to_run_it_and_what_to_expect(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert commands(path)[0][0] == f"sweeps/{path.name}"
    assert "Expected result" in text
    assert re.search(r"two cores", text)
    if path.stem not in WITHOUT_FILES or path.stem == "svhn":
        assert "Cost at full size" in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_settings_of_every_line_are_valid(path):
    for words in commands(path):
        settings = [value for name, value in pairwise(words) if name == "--set"]
        sweep = sweepfile.override(sweepfile.load(FOLDER.parent / words[0]), settings)
        assert sweep.cells(10**6, 0)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_line_for_two_cores_runs_smaller(path, tmp_path, request):
    if path.stem not in WITHOUT_FILES:
        request.getfixturevalue("real_data")
    words = commands(path)[-1]
    smaller = [word for key, value in SMALLER[path.stem].items() for word in ("--set", f"{key}={value}")]
    arguments = [str(path), *words[1:], *smaller, "--set", "seeds=1", "--set", "name=small"]
    assert main([*arguments, "--results", str(tmp_path), "--inline"]) == 0
    trials = pd.read_parquet(tmp_path / "small" / "trials")
    assert set(trials["status"]) <= {"completed", "diverged", "target_reached", "beaten"}
    ntk = pd.read_parquet(tmp_path / "small" / "ntk")
    assert set(ntk["method"]) == {"iteration" if path.stem == "shakespeare" else "gram"}
    assert (ntk["frozen_norms"] != "").all() == (path.stem in ("generalization", "branches"))
    assert (trials["gamma"] >= trials["gamma_mean"]).all()
    assert (trials["k_op"] > 0).all()
    if path.stem == "width":
        assert (ntk.loc[ntk["iteration"] == 5, "kernel_drift"] > 0).all()
        assert (ntk["iteration"] == 5).sum() == 2 * 2  # of the networks; the linearizations' kernels do not move
