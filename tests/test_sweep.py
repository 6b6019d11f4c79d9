"""The command, as its user types it: in process without Ray, and once as a real process on Ray."""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from raysat.driver import loop as driver
from raysat.errors import InputError
from raysat.storage.schema import arrow_schema
from raysat.storage.store import Store
from raysat.sweep import main

SMALL = """
from raysat import Sweep, fixed_fraction, mlp, theory
sweep = Sweep(name="small", dataset="digits", n_train=64, models=[mlp(1, "relu", 2**0.5)], widths=[8, 16],
              batch_sizes=[1, 4, 16, 64], stepsizes=[fixed_fraction(), theory()], iterations=40, seeds=2)
"""


@pytest.fixture
def sweep_file(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(SMALL)
    return path


def run(path, *arguments):
    return main([str(path), "--results", str(path.parent / "results"), "--inline", *arguments])


def parts(root, table="trials"):
    return {path.name: path.stat().st_mtime_ns for path in (root / table).glob("*.parquet")}


def curves(root):
    table = pd.read_parquet(root / "curves").drop(columns="seconds")
    return table.sort_values(["cell_id", "iteration"]).reset_index(drop=True)


def test_a_sweep_from_file_to_answer(sweep_file, capsys):
    assert run(sweep_file) == 0
    root = sweep_file.parent / "results" / "small"
    trials = pd.read_parquet(root / "trials")
    assert len(trials) == 2 * 4 * 2 * 2
    assert trials["cell_id"].is_unique
    assert set(trials["status"]) == {"completed"}
    assert list(trials.columns) == arrow_schema("trials").names
    assert len(pd.read_parquet(root / "ntk")) == 2 * 2
    assert set(pd.read_parquet(root / "curves")["cell_id"]) == set(trials["cell_id"])
    assert list((root / "checkpoints").iterdir()) == []
    record = json.loads((root / "sweep.json").read_text())
    assert record["versions"]["torch"]
    assert record["machine"]["cpus"] == os.cpu_count()
    said = capsys.readouterr().out
    assert "32/32" in said
    assert "b_star" in said
    assert "report.html" in said
    assert (root / "report.html").exists()
    assert list((root / "figures").glob("*.png"))


def test_statistics_in_the_rows_are_those_of_the_initialization(sweep_file):
    run(sweep_file)
    root = sweep_file.parent / "results" / "small"
    trials, ntk = pd.read_parquet(root / "trials"), pd.read_parquet(root / "ntk").set_index("init_id")
    for name in ("gamma", "k_op", "b_star", "noise_scale", "parameters"):
        assert (trials[name].to_numpy() == ntk.loc[trials["init_id"], name].to_numpy()).all()
    full = trials[(trials["batch_size"] == 64) & (trials["stepsize"] == "theory(1)")]
    assert full["eta"].to_numpy() == pytest.approx(1 / full["k_op"].to_numpy())


def test_the_same_command_runs_only_what_is_missing(sweep_file, capsys):
    run(sweep_file, "--set", "widths=[8]")
    root = sweep_file.parent / "results" / "small"
    first = parts(root)
    run(sweep_file)
    assert {name: time for name, time in parts(root).items() if name in first} == first
    assert len(parts(root)) == 1 + 32
    capsys.readouterr()
    before = parts(root)
    assert run(sweep_file) == 0
    assert parts(root) == before
    assert "all 32 cells are finished" in capsys.readouterr().out


def test_fresh_says_what_it_deletes_and_starts_over(sweep_file, capsys):
    run(sweep_file, "--set", "seeds=1")
    root = sweep_file.parent / "results" / "small"
    before = parts(root)
    assert run(sweep_file, "--set", "iterations=20", "--set", "seeds=1", "--fresh") == 0
    said = "".join(capsys.readouterr().out.split())  # lines break anywhere
    assert f"--fresh:deleting{root}with16finishedcells." in said
    assert not set(before) & set(parts(root)) - {"schema.parquet"}


def test_fresh_deletes_nothing_but_results(sweep_file, capsys):
    thesis = sweep_file.parent / "results" / "small"
    thesis.mkdir(parents=True)
    (thesis / "chapter1.tex").touch()
    assert run(sweep_file, "--fresh") == 2
    assert "chapter1.tex, which is no part of results" in capsys.readouterr().err
    assert (thesis / "chapter1.tex").exists()


def test_the_dry_run_shows_cells_and_costs_and_runs_nothing(sweep_file, capsys):
    assert run(sweep_file, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "32 cells, 0 finished" in said
    rows = [line.split() for line in said.splitlines() if line.split()[:2] == ["mlp", "16"]]
    assert [row[2:5] for row in rows] == [[b, "40", "4"] for b in ("1", "4", "16", "64")]  # b, T, cells
    # A step on one sample of 64-16-10: two products a layer, but one for the first, each 2 m_in m_out operations.
    assert rows[-1][5] == f"{40 * 64 * 2 * (2 * 64 * 16 + 3 * 16 * 10):.1e}"
    # Seven evaluations of 64 training and 64 test samples, for more would cost more than half of the steps.
    assert rows[0][6] == f"{7 * 128 * 2 * (64 * 16 + 16 * 10):.1e}"
    assert "About" in said
    assert not (sweep_file.parent / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "colour=3"], "no such field"),
        (["--set", "batch_sizes=[0]"], "at least 1"),
        (["--set", "batch_sizes=[65]"], "leave out what is above 64"),
        (["--set", "dataset=imagenet"], "not known"),
        (["--set", "models=['nowhere:build']"], "put nowhere.py next to"),
        (["--set", "n_train=5000"], "digits has 1437"),
        (["--set", "dataset=tinyshakespeare", "--set", "n_train=None"], "tinyshakespeare"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(sweep_file, capsys, arguments, words, monkeypatch):
    monkeypatch.setenv("RAYSAT_DATA", str(sweep_file.parent))
    monkeypatch.setattr("raysat.data.downloading.retrieve", lambda *_: (_ for _ in ()).throw(OSError("offline")))
    assert run(sweep_file, *arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert not (sweep_file.parent / "results").exists()


def test_a_library_that_there_is_not_is_refused_before_any_work(sweep_file, capsys, monkeypatch):
    monkeypatch.setenv("RAYSAT_MATMUL", "blas")
    assert run(sweep_file) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("raysat: RAYSAT_MATMUL='blas': use one of torch, ")
    assert captured.err.count("\n") == 1
    assert not (sweep_file.parent / "results").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's compiler comes with PyTorch")
def test_an_engine_without_its_compiler_is_refused_before_any_work(sweep_file, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert run(sweep_file, "--set", "engine='compiled'") == 2
    captured = capsys.readouterr()
    assert captured.err == (
        "raysat: engine='compiled' needs a C++ compiler, such as g++: install one, or set engine='auto'.\n"
    )
    assert not (sweep_file.parent / "results").exists()


def test_a_file_without_a_sweep_and_no_file_at_all(tmp_path, capsys):
    (tmp_path / "empty.py").write_text("x = 1\n")
    assert run(tmp_path / "empty.py") == 2
    assert run(tmp_path / "missing.py") == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_results_of_another_sweep_or_schema_are_refused(sweep_file, capsys):
    run(sweep_file, "--set", "seeds=1")
    root = sweep_file.parent / "results" / "small"
    before = parts(root)
    assert run(sweep_file, "--set", "iterations=30") == 2
    assert "iterations 40 there, 30 here" in capsys.readouterr().err
    record = json.loads((root / "sweep.json").read_text())
    (root / "sweep.json").write_text(json.dumps(record | {"schema": 0}))
    assert run(sweep_file) == 2
    assert "schema version 0" in capsys.readouterr().err
    assert parts(root) == before


OWN = """
from raysat import Sweep, fixed
sweep = Sweep(name="own", dataset="my_data:load", models=["my_data:build"], widths=[4], batch_sizes=[1, 8],
              stepsizes=[fixed(0.01)], iterations=5, preprocessing="none")
"""
OWN_MODULE = """
import torch
from raysat.data import Dataset

def load():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, generator=generator)
    return Dataset(x=x, y=x.sum(1, keepdim=True))

class Scale(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.factor * x

def build(width, input_shape, outputs):
    inputs = input_shape[0]
    layers = torch.nn.Linear(inputs, width), Scale(width), torch.nn.Linear(width, outputs)
    return torch.nn.Sequential(*layers)
"""


def test_own_model_and_data_and_their_code_in_the_identity(tmp_path, capsys):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "my_data.py").write_text(OWN_MODULE)
    assert run(tmp_path / "own.py") == 0
    trials = pd.read_parquet(tmp_path / "results" / "own" / "trials")
    assert trials["model"].tolist() == ["my_data:build"] * 2
    assert trials["depth"].isna().all()
    assert pd.read_parquet(tmp_path / "results" / "own" / "ntk")["method"].tolist() == ["gram"]
    assert capsys.readouterr().out.count("no rule for Scale, which holds 1.factor") == 1
    (tmp_path / "my_data.py").write_text(OWN_MODULE.replace("x.sum", "2 * x.sum"))
    capsys.readouterr()
    assert run(tmp_path / "own.py") == 2  # other code, other cells: not mixed into one folder
    assert "own holds another sweep (my_data.py changed since): use another --results" in capsys.readouterr().err
    assert run(tmp_path / "own.py", "--fresh") == 0


def test_a_trial_that_raises_is_a_row_and_the_sweep_goes_on(tmp_path, capsys):
    (tmp_path / "own.py").write_text(OWN)
    broken = OWN_MODULE.replace(
        "def build(",
        "class Touchy(torch.nn.Linear):\n    def forward(self, x):\n        if torch.is_grad_enabled() and "
        "len(x) == 1 and 'ARMED' in os.environ:\n            raise ValueError('touched')\n"
        "        return super().forward(x)\n\ndef build(",
    ).replace("torch.nn.Linear(inputs, width)", "Touchy(inputs, width)")
    (tmp_path / "my_data.py").write_text(f"import os\n{broken}")

    def armed(job, run_trials=driver.run_trials):
        with pytest.MonkeyPatch.context() as inner:
            inner.setenv("ARMED", "1")
            return run_trials(job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "run_trials", armed)
        assert run(tmp_path / "own.py") == 1
    trials = pd.read_parquet(tmp_path / "results" / "own" / "trials").set_index("batch_size")
    assert trials["status"].to_dict() == {1: "failed", 8: "completed"}
    assert "ValueError: touched" in trials.loc[1, "error"]
    captured = capsys.readouterr()
    assert "b = 1: failed" in captured.out
    assert "1 cells failed" in captured.err
    assert run(tmp_path / "own.py") == 0  # a failed cell is tried again
    assert set(pd.read_parquet(tmp_path / "results" / "own" / "trials")["status"]) == {"completed"}


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(sweep_file, capsys, monkeypatch):
    finished = []

    def interrupted(job, run_trials=driver.run_trials):
        if len(finished) >= 5:
            raise KeyboardInterrupt
        finished.extend(run_trials(job))
        return finished[-len(job.members) :]

    with monkeypatch.context() as patch:
        patch.setattr(driver, "run_trials", interrupted)
        assert run(sweep_file) == 130
    assert "run the same command again" in capsys.readouterr().out
    root = sweep_file.parent / "results" / "small"
    before = parts(root)
    assert len(before) == 1 + len(finished)
    assert run(sweep_file) == 0
    after = parts(root)
    assert len(after) == 1 + 32
    assert {name: after[name] for name in before} == before


def test_when_its_minutes_are_over_it_answers_from_what_has_ended_and_goes_on_later(sweep_file, capsys, monkeypatch):
    whole = sweep_file.with_name("whole")
    assert main([str(sweep_file), "--results", str(whole), "--inline"]) == 0
    capsys.readouterr()
    ended = []

    def counted(job, run_trials=driver.run_trials):
        ended.extend(job.members)
        return run_trials(job)

    with monkeypatch.context() as patch:
        patch.setattr(driver, "run_trials", counted)
        patch.setattr(driver, "time", SimpleNamespace(monotonic=lambda: math.inf if len(ended) > 7 else 0.0))
        assert run(sweep_file, "--minutes", "5") == 0
    assert "within 5 minutes" in (out := capsys.readouterr().out)
    assert "5 minutes are over, and 24 of the cells that are wanted so far have not ended" in out
    root = sweep_file.parent / "results" / "small"
    assert (root / "report.html").exists()
    trials = pd.read_parquet(root / "trials")
    # The cheapest first, with all seeds and stepsizes.
    assert set(trials[["width", "batch_size"]].itertuples(index=False, name=None)) == {(8, 1), (8, 4)}
    assert len(trials) == 8
    assert run(sweep_file) == 0
    assert "are over" not in capsys.readouterr().out
    pd.testing.assert_frame_equal(curves(root), curves(whole / "small"))


def test_minutes_end_a_sweep_under_ray_and_no_time_is_refused(tmp_path, capsys, monkeypatch):
    file = tmp_path / "long.py"
    file.write_text(SMALL.replace("iterations=40", "iterations=10**9, checkpoint_seconds=1"))
    assert main([str(file), "--results", str(tmp_path), "--minutes", "0"]) == 2
    assert "minutes has 0" in capsys.readouterr().err
    root = tmp_path / "small"
    over = SimpleNamespace(monotonic=lambda: math.inf if len(parts(root, "ntk")) == 1 + 4 else 0.0)
    monkeypatch.setattr(driver, "time", over)
    assert main([str(file), "--results", str(tmp_path), "--minutes", "0.2"]) == 0
    assert "0.2 minutes are over, and 32 of the cells" in capsys.readouterr().out
    assert Store(root).readable()["sweep"]["minutes"] == 0.2
    assert len(pd.read_parquet(root / "ntk")) == 4


def descendants(pid):
    """All processes that a process has started, and they in turn, from /proc."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(status.parent.name))
    found, queue = [], [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the processes to kill through /proc")
def test_kill_9_of_everything_loses_nothing(sweep_file):
    """On Ray: killed in mid-sweep and run again, the sweep ends in the same bits as one that was left alone."""
    results = sweep_file.parent / "killed"
    command = [sys.executable, "-m", "raysat.sweep", str(sweep_file), "--results", str(results)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        for line in process.stdout:
            if re.match(r"\s*7/32", line):
                break
        family = [process.pid, *descendants(process.pid)]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    root = results / "small"
    before = parts(root)
    assert 1 + 7 <= len(before) < 1 + 32
    assert len(pd.read_parquet(root / "trials")) == len(before) - 1  # readable as it was left

    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    after = parts(root)
    assert {name: after[name] for name in before} == before
    trials = pd.read_parquet(root / "trials")
    assert len(trials) == 32
    assert trials["cell_id"].is_unique
    assert set(trials["status"]) == {"completed"}

    assert run(sweep_file) == 0  # undisturbed, in this process
    pd.testing.assert_frame_equal(curves(root), curves(sweep_file.parent / "results" / "small"), check_exact=True)


CHANGES = """
import torch

def shaken(x, y, generator):
    return x + torch.randn(x.shape, generator=generator), y
"""


def test_own_modules_reach_rays_workers(tmp_path):
    """Also the transform's, which the loader names and does not import; the rows are those of one process."""
    (tmp_path / "own.py").write_text(OWN)
    changed = OWN_MODULE.replace("keepdim=True))", 'keepdim=True), transform="my_changes:shaken")')
    (tmp_path / "my_data.py").write_text(changed)
    (tmp_path / "my_changes.py").write_text(CHANGES)
    command = [sys.executable, "-m", "raysat.sweep", str(tmp_path / "own.py"), "--results", str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path.parent)
    assert done.returncode == 0, done.stderr
    trials = pd.read_parquet(tmp_path / "results" / "own" / "trials")
    assert trials["status"].tolist() == ["completed"] * 2
    assert done.stdout.count("per-sample Jacobians") == 1
    assert not (tmp_path / "results" / "own" / ".tune").exists()
    assert "Configuration for experiment" not in done.stdout
    assert set(trials["training"]) == {"augmented by my_changes:shaken"}
    assert main([str(tmp_path / "own.py"), "--results", str(tmp_path / "inline"), "--inline"]) == 0
    here, there = (curves(tmp_path / name / "own") for name in ("inline", "results"))
    pd.testing.assert_frame_equal(here, there, check_exact=True)


def test_a_cluster_that_is_not_there_is_refused_at_once(sweep_file, capsys):
    results = str(sweep_file.parent / "results")
    assert main([str(sweep_file), "--results", results, "--address", "127.0.0.1:1"]) == 2
    assert "no Ray cluster answers at '127.0.0.1:1'" in capsys.readouterr().err
    assert not (sweep_file.parent / "results").exists()


def test_input_errors_are_value_errors():
    assert issubclass(InputError, ValueError)
