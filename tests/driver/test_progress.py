import io
import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from raysat import status
from raysat.driver import progress
from raysat.driver.progress import View
from raysat.storage.store import Store
from raysat.sweep import main
from raysat.text import duration

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def view(weights, **options):
    console = Console(file=io.StringIO(), width=200)
    return View(console, "trials", weights, **options), console.file.getvalue


def test_time_left_is_by_cost_and_counts_how_far_running_cells_are(clock):
    shown, _ = view({"long": 90.0, "short": 10.0})
    shown.job_started("long", "the long one", iterations=100)
    shown.job_started("short", "the short one", iterations=100)
    assert shown.left() is None
    clock[0] = 10.0
    shown.job_ended("short", "done")
    assert shown.left() == pytest.approx(90.0)  # 10 of 100 took 10 s
    shown.job_told("long", 50, 0.5)
    assert shown.left() == pytest.approx(10.0 * 45 / 55)
    shown.job_ended("long", "done", "diverged")
    assert shown.left() is None


def test_a_log_file_is_told_now_and_then_what_runs(clock):
    shown, said = view({"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0})
    for key in "abc":
        shown.job_started(key, f"cell {key}", iterations=300)
    shown.job_ended("a", "a has failed", "failed")
    shown.job_told("b", 120, 0.25)
    shown.tick("2 nodes, 4 CPUs, 0 GPUs")
    assert "running" not in said()
    clock[0] = 61.0
    shown.tick("3 nodes, 6 CPUs, 0 GPUs")
    *_, summary, b, c = said().splitlines()
    assert summary.startswith("trials: 1 of 4 ended, 2 running, 1 failed, 0 diverged, ")
    assert summary.endswith("3 nodes, 6 CPUs, 0 GPUs")
    assert b == "  cell b: 1 min 1 s, iteration 120 of 300, loss 0.25"
    assert c == "  cell c: 1 min 1 s"


def test_quiet_says_only_what_goes_wrong():
    shown, said = view({"a": 1.0, "b": 1.0}, quiet=True)
    shown.job_ended("a", "a is done")
    shown.job_ended("b", "b has failed", "failed")
    shown.note("the disk is full")
    assert said().splitlines() == ["2/2  b has failed", "the disk is full"]


def test_a_terminal_shows_the_running_cells_and_leaves_the_lines(clock):
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with View(console, "trials", {str(k): 1.0 for k in range(12)}) as shown:
        for k in range(11):
            shown.job_started(str(k), f"cell {k}")
        shown.job_ended("0", "cell 0 is done")
        shown.live.refresh()
    said = console.file.getvalue()
    assert "1/12" in said
    assert "cell 0 is done" in said
    assert "cell 8" in said
    assert "cell 9" not in said
    assert "and 2 more" in said


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.42, "0.4 s"), (42, "42 s"), (200, "3 min 20 s"), (18_600, "5 h 10 min"), (3e5, "3 d 11 h")]
)
def test_durations_are_for_people(seconds, text):
    assert duration(seconds) == text


def record(shown, age):
    return {"at": (NOW - timedelta(seconds=age)).isoformat(), "hostname": "head", "pid": 7, **shown.record()}


def test_the_status_says_what_runs_and_when_the_driver_was_last_heard_of(clock):
    shown, _ = view({"a": 1.0, "b": 1.0})
    shown.job_started("a", "cell a", iterations=10)
    shown.job_told("a", 5, 0.5)
    clock[0] = 4.0
    said = list(status.lines({"completed": 3, "diverged": 1, "failed": 2}, record(shown, age=5), NOW))
    assert said == [
        "Cells: 4 done, of them 1 diverged; 2 failed.",
        "The driver, process 7 on head, was last heard of 5.0 s ago:",
        "trials: 0 of 2 ended, 1 running, 0 failed, 0 diverged, 12 s left",
        "  cell a: 4.0 s, iteration 5 of 10, loss 0.5",
    ]
    silent = list(status.lines({}, record(shown, age=300), NOW))
    assert "last heard of 5 min 0 s ago" in silent[1]
    assert "the same command again runs only what is missing" in silent[-1]


def test_the_status_of_a_sweep_comes_from_its_folder_alone(tmp_path, capsys):
    (tmp_path / "small.py").write_text(
        'from raysat import *\nsweep = Sweep(name="small", dataset="digits", n_train=32, models=[mlp(1)], widths=[8], '
        "batch_sizes=[1, 32], stepsizes=[theory()], iterations=10)"
    )
    command = [str(tmp_path / "small.py"), "--results", str(tmp_path), "--inline", "--quiet"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "2/2" not in said
    assert "b_star" in said  # the result is no chatter
    assert status.main([str(tmp_path / "small")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Cells: 2 done, of them 0 diverged; 0 failed.\n")
    assert re.search(r"The driver, process \d+ on \S+, ended its trials \S+ s ago", said)
    store = Store(tmp_path / "small")
    (store.root / "status.json").write_text(json.dumps(store.status())[:40])
    assert status.main([str(store.root)]) == 0
    assert "No driver has left word" in capsys.readouterr().out
    assert status.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
