"""What goes wrong on real machines, done for real: every cell ends with exactly one row, and nothing is lost."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pandas as pd
import pytest

from raysat import sweep as command
from raysat.driver import loop as driver
from raysat.storage.checkpoint import Checkpoint, Progress
from raysat.storage.files import location
from raysat.storage.retry import RetryingWriter
from raysat.storage.store import Store

SMALL = """
from raysat import Sweep, mlp, theory
sweep = Sweep(name="small", dataset="digits", n_train=64, models=[mlp(1)], widths=[8], batch_sizes=[1, 4, 16, 64],
              stepsizes=[theory()], iterations=20)
"""

FATED = """
from raysat import Sweep, fixed
sweep = Sweep(name="fated", dataset="my_fate:load", models=["my_fate:build"], widths=[1, 2, 3, 4, 5, 6],
              batch_sizes=[2], stepsizes=[fixed(0.01)], iterations=12, evaluations=4, preprocessing="none",
              checkpoint_seconds=1e-9)
"""
FATES = '''
"""A model whose width says what becomes of its trial at the seventh step."""

import os
import signal
import threading
import pathlib
import torch
from raysat.data import Dataset

MARKS = pathlib.Path({marks!r})

def load():
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    return Dataset(x=x, y=x.sum(1, keepdim=True))

def once(name):
    mark = MARKS / name
    if mark.exists():
        return False
    mark.touch()
    return True

def memory_is_out_on_the_host():
    os.kill(os.getpid(), signal.SIGKILL)

FATES = {{
    2: lambda: once("killed") and os.kill(os.getpid(), signal.SIGKILL),
    3: lambda: os.kill(os.getpid(), signal.SIGKILL),  # as the kernel does where the machine's memory is out
    4: lambda: (_ for _ in ()).throw(MemoryError("the host has no memory left")),
    5: lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")),
    6: lambda: once("warned") and os.kill(os.getpid(), signal.SIGTERM),
}}

class Fated(torch.nn.Linear):
    def __init__(self, width, *sizes):
        super().__init__(*sizes)
        self.width, self.steps = width, 0

    def forward(self, x):
        in_a_trial = threading.current_thread() is not threading.main_thread()
        if in_a_trial and torch.is_grad_enabled() and len(x) == 2:
            self.steps += 1
            if self.steps == 7 and self.width in FATES:
                FATES[self.width]()
        return super().forward(x)

def build(width, input_shape, outputs):
    return Fated(width, input_shape[0], outputs)
'''


@pytest.fixture
def sweep_file(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(SMALL)
    return str(path)


def test_workers_that_are_killed_warned_or_out_of_memory(tmp_path):
    (tmp_path / "fated.py").write_text(FATED)
    (tmp_path / "my_fate.py").write_text(FATES.format(marks=str(tmp_path)))
    line = [sys.executable, "-m", "raysat.sweep", str(tmp_path / "fated.py"), "--results", str(tmp_path / "results")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    assert "2 cells failed" in done.stderr
    trials = pd.read_parquet(tmp_path / "results" / "fated" / "trials").set_index("width")
    assert sorted(trials.index) == [1, 2, 3, 4, 5, 6]
    assert trials["status"].to_dict() == {w: "failed" if w in (3, 4) else "completed" for w in range(1, 7)}
    assert trials["attempts"].to_dict() == {1: 1, 2: 2, 3: 4, 4: 1, 5: 1, 6: 2}
    assert "killed by the OOM killer" in trials.loc[3, "error"]
    assert "MemoryError: the host has no memory left" in trials.loc[4, "error"]
    assert trials.loc[5, "micro_batch"] == 1  # it went on with batches in parts
    assert trials.loc[[1, 2, 6], "iterations_done"].eq(12).all()
    curves = pd.read_parquet(tmp_path / "results" / "fated" / "curves")
    assert not curves.duplicated(["cell_id", "iteration"]).any()


def mending(mend):
    """A writer that mends its storage instead of waiting, and notes what it says."""

    def make(where, say):
        def note(text):
            said.append(text)
            say(text)

        return RetryingWriter(where, note, sleep=lambda seconds: mend())

    said = []
    return make, said


def filled_after_a_trial(monkeypatch, fill, free):
    """A disk that `fill` fills once a trial has ended, and `free` frees when it is waited for; returns what is said."""
    make, said = mending(free)
    monkeypatch.setattr("raysat.driver.recorder.RetryingWriter", make)
    monkeypatch.setattr("raysat.report.finish", lambda *_: None)  # figures take more than the disk has
    count = iter(range(100))

    def run_trials(job, run_trials=driver.run_trials):
        if next(count) == 1:
            fill()
        return run_trials(job)

    monkeypatch.setattr(driver, "run_trials", run_trials)
    return said


def test_storage_that_is_away_while_results_come(sweep_file, bucket, monkeypatch, capsys):
    """An S3 server is stopped in mid-sweep, and comes back at the same address."""
    host, port = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://").split(":")
    ThreadedMotoServer = pytest.importorskip("moto.server").ThreadedMotoServer
    server = ThreadedMotoServer(ip_address=host, port=0)  # the same buckets: moto keeps them for the process
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
    address = f"{bucket}/results?region=eu-west-1"  # other options make another client
    port = server.get_host_and_port()[1]
    servers = [server]

    def back():
        if not servers:
            servers.append(ThreadedMotoServer(ip_address=host, port=port))
            servers[0].start()

    make, said = mending(back)
    monkeypatch.setattr("raysat.driver.recorder.RetryingWriter", make)
    monkeypatch.setattr(
        "raysat.storage.retry.PAUSES", ()
    )  # trials that start meanwhile would wait a minute for checkpoints
    count = iter(range(100))

    def run_trials(job, run_trials=driver.run_trials):
        if next(count) == 1:
            servers.pop().stop()
        return run_trials(job)

    monkeypatch.setattr(driver, "run_trials", run_trials)
    try:
        assert command.main([sweep_file, "--results", address, "--inline"]) == 0
        assert "cannot be written" in said[0]
        assert "can be written again: 3 results that waited are stored." in said[-1]
        trials = Store(f"{address.replace('?', '/small?')}").read("trials")
        assert len(trials) == trials["cell_id"].nunique() == 4
        assert "4/4" in capsys.readouterr().out
    finally:
        for server in servers:
            server.stop()


@pytest.fixture
def silent():
    """The address of a store that accepts every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"s3://bucket/results?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{server.getsockname()[1]}"


def test_a_storage_that_falls_silent_holds_nobody_up(silent, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATESTING")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "whispered")
    place, said = location(silent), []
    writer = RetryingWriter(place, said.append)
    with ThreadPoolExecutor(2) as together:
        saved = together.submit(Checkpoint(place / "a.pt").save, Progress(1))
        written = together.submit(writer.do, lambda: (place / "a.parquet").write_bytes(b"1"))
        written.result(timeout=60)  # by Arrow's own patience it takes a minute and a half
        assert not saved.result(timeout=60)
    assert "s3://bucket/results cannot be written" in said[0]
    assert "1 results wait in memory, the next try is in 1.0 s" in said[0]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 512 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system to fill")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_is_full_when_part_files_are_written(sweep_file, small_disk, monkeypatch):
    ballast = small_disk / "ballast"

    def fill():
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(512))

    seen = []

    def free():
        seen.extend(path.name for path in small_disk.glob("small/*/*"))
        ballast.unlink(missing_ok=True)

    said = filled_after_a_trial(monkeypatch, fill, free)
    assert command.main([sweep_file, "--results", str(small_disk), "--inline"]) == 0
    assert "No space left on device" in said[0]
    assert not [name for name in seen if name.startswith(".")], "nothing half-written lies about"
    trials = pd.read_parquet(small_disk / "small" / "trials")
    assert len(trials) == trials["cell_id"].nunique() == 4
    assert set(trials["status"]) == {"completed"}
