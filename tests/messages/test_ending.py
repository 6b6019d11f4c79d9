"""Each way to end has its exit code and its sentence: real processes, stopped when they have come where it counts."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from raysat.driver import loop as driver
from raysat.executor import ExecutorDied, OnRay
from raysat.messages import ending
from raysat.storage.retry import RetryingWriter
from raysat.storage.store import Store
from raysat.sweep import main

OWN = """
from raysat import Sweep, fixed
sweep = Sweep(name="own", dataset="my_waiting:load", models=["my_waiting:build"], widths=[1, 2], batch_sizes=[2],
              stepsizes=[fixed(0.01)], iterations=3, evaluations=2, preprocessing="none")
"""
WAITING = '''
"""A model that waits in the phase of a sweep that the environment names, until somebody opens its pipe."""

import os
import pathlib
import sys
import traceback
import torch
from raysat.data import Dataset

PHASES = {"plan": "network_of", "statistics": "compute_statistics", "trials": "run_trials"}

def load():
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    return Dataset(x=x, y=x.sum(1, keepdim=True))

def wait(phase):
    if PHASES.get(os.environ.get("PHASE")) in {frame.name for frame in traceback.extract_stack()}:
        open(os.environ["PIPE"]).read()

class Waiting(torch.nn.Linear):
    def __init__(self, width, *sizes):
        super().__init__(*sizes)
        self.width = width

    def forward(self, x):
        if self.width == 1:
            wait("forward")
        return super().forward(x)

def build(width, input_shape, outputs):
    return Waiting(width, input_shape[0], outputs)
'''

HELD = """
import os
import sys
from raysat import report, sweep

report.finish = lambda *_: open(os.environ["PIPE"]).read()
sys.exit(sweep.main())
"""


@pytest.fixture
def started(tmp_path):
    """Starts a sweep, and gives its process when it has come to a phase, where it is held until the pipe is closed."""
    processes = []

    def start(phase, *options):
        (tmp_path / "own.py").write_text(OWN)
        (tmp_path / "my_waiting.py").write_text(WAITING)
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        environment = os.environ | {"PHASE": phase, "PIPE": str(pipe)}
        streams = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        if phase == "report":
            (tmp_path / "held.py").write_text(HELD)
            command = [sys.executable, str(tmp_path / "held.py"), *line(tmp_path)[3:]]
        else:
            command = line(tmp_path)
        process = subprocess.Popen([*command, *options], env=environment, **streams)
        processes.append(process)
        return process, pipe

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def line(folder):
    return [sys.executable, "-m", "raysat.sweep", str(folder / "own.py"), "--results", str(folder / "results")]


@pytest.mark.parametrize(
    ("phase", "number", "words"),
    [
        ("plan", signal.SIGINT, "Stopped."),
        ("statistics", signal.SIGTERM, "Stopped by SIGTERM."),
        ("trials", signal.SIGHUP, "Stopped by SIGHUP."),
    ],
)
def test_a_signal_ends_a_sweep_in_any_phase_with_its_code_and_its_sentence(started, phase, number, words):
    process, pipe = started(phase, "--inline")
    with pipe.open("w"):
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    assert err == ""
    assert out.splitlines()[-1] == f"{words} {ending.AGAIN}"


def test_sigterm_while_ray_runs_trials_and_what_is_finished_stays(started, tmp_path):
    process, pipe = started("trials")
    with pipe.open("w"):
        for text in process.stdout:
            if re.search(r"width 2.* in 3 iterations", text):
                break
        process.terminate()
        out, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert out.splitlines()[-1] == f"Stopped by SIGTERM. {ending.AGAIN}"
    assert Store(tmp_path / "results" / "own").read("trials")["width"].tolist() == [2]


def test_the_signal_that_came_counts_where_a_library_raises_an_interrupt_of_its_own():
    def waits_in_a_library():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None

    with ending.signals() as signals:
        with pytest.raises(KeyboardInterrupt):
            waits_in_a_library()
        assert signals.how_it_ended() == (143, f"Stopped by SIGTERM. {ending.AGAIN}")


def test_sigterm_while_the_report_is_made_after_ray_has_gone(started, tmp_path):
    process, pipe = started("report")
    with pipe.open("w"):
        process.terminate()
        out, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert out.splitlines()[-1] == f"Stopped by SIGTERM. {ending.AGAIN}"
    assert len(Store(tmp_path / "results" / "own").read("trials")) == 2


VICTIMS = {"raylet": "raylet", "gcs_server": "GCS"}


@pytest.mark.skipif(not hasattr(os, "pidfd_open") or not Path("/proc").exists(), reason="Ray is watched by pidfd_open")
@pytest.mark.parametrize("victim", VICTIMS)
def test_where_ray_dies_a_sentence_says_so_and_what_is_finished_stays(started, tmp_path, victim):
    process, pipe = started("trials")
    with pipe.open("w"):
        for text in process.stdout:
            if re.search(r"width 2.* in 3 iterations", text):
                break
        (child,) = [
            int(pid)
            for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            if Path(f"/proc/{pid}/exe").resolve().name == victim
        ]
        os.kill(child, signal.SIGKILL)
        _, err = process.communicate(timeout=120)
    assert process.returncode == ending.NO_CLUSTER, err
    assert f"raysat: Ray has died (its {VICTIMS[victim]} is gone" in err.splitlines()[-1]
    assert err.splitlines()[-1].endswith(ending.AGAIN)
    assert Store(tmp_path / "results" / "own").read("trials")["width"].tolist() == [2]


SMALL = """
from raysat import Sweep, mlp, theory
sweep = Sweep(name="small", dataset="digits", n_train=16, n_test=0, models=[mlp(1)], widths=[4], batch_sizes=[1, 4, 16],
              stepsizes=[theory()], iterations=4)
"""


@pytest.fixture
def small(tmp_path):
    (tmp_path / "small.py").write_text(SMALL)
    return [str(tmp_path / "small.py"), "--results", str(tmp_path / "results")]


def test_a_second_ctrl_c_cuts_short_what_follows_the_first(small, monkeypatch, capsys):
    def interrupted(job):
        os.kill(os.getpid(), signal.SIGINT)

    def abandon(self):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it went on")

    monkeypatch.setattr(driver, "run_trials", interrupted)
    monkeypatch.setattr(RetryingWriter, "close_now", abandon)
    before = signal.getsignal(signal.SIGINT)
    assert main([*small, "--inline"]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().out.splitlines()[-1] == f"Stopped. {ending.AGAIN}"


def test_a_signal_that_a_users_code_has_swallowed_counts_all_the_same(small, monkeypatch, tmp_path):
    ran = []

    def deaf(job, run_trials=driver.run_trials):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException:
            ran.append(job)
        return run_trials(job)

    monkeypatch.setattr(driver, "run_trials", deaf)
    assert main([*small, "--inline"]) == 143
    assert len(ran) == 1
    assert len(pd.read_parquet(tmp_path / "results" / "small" / "trials")) == 1


def test_what_is_ignored_stays_so(small):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending.signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_memory_that_is_out_in_the_driver(small, monkeypatch, capsys):
    def out_of_memory(*_, **__):
        raise MemoryError("cannot allocate 8 GiB")

    monkeypatch.setattr("raysat.sweep.earlier_results", out_of_memory)
    assert main([*small, "--inline"]) == 0  # nothing to find yet
    assert main([*small, "--inline"]) == ending.BROKEN
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"raysat: the driver failed (MemoryError: cannot allocate 8 GiB). {ending.AGAIN}"


def test_ray_that_has_no_room_is_one_sentence_at_once(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RAY_TMPDIR", "/proc/nowhere")
    assert main(small) == ending.NO_CLUSTER
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "Ray could not be started on this machine" in err
    assert "/proc/nowhere" in err
    assert "--inline" in err
    assert not (tmp_path / "results" / "small" / "trials").exists()


def test_whatever_ray_raises_at_its_start_is_a_sentence(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")

    def init(**_):
        raise Exception("The current node timed out during startup.\nThis could happen because ...\n")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ExecutorDied, match="could not be started on this machine"), OnRay(tmp_path / "tune"):
        pass


def test_the_documentation_has_every_exit_code():
    page = (Path(__file__).parents[2] / "docs" / "storage.md").read_text()
    table = page.partition("## How a sweep ends")[2].partition("\n## ")[0]
    codes = [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.M)]
    signals = [128 + number for number in ending.SIGNALS]
    constants = {"FINISHED", "CELLS_FAILED", "BAD_INPUT", "NO_REPORT", "NO_CLUSTER", "BROKEN"}
    assert sorted(codes) == sorted([*(getattr(ending, name) for name in constants), *signals])
