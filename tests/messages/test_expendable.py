"""What is shown is expendable: whatever becomes of it, results are stored and the exit code says how it went."""

import io
import os
import subprocess
import sys
from contextlib import suppress

import pandas as pd
import pytest
from messages.test_failures import SMALL, filled_after_a_trial, small_disk  # noqa: F401

from raysat import report, status
from raysat import sweep as command
from raysat.messages.expendable import Expendable, expendable
from raysat.storage.retry import RetryingWriter


@pytest.fixture
def sweep_file(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(SMALL)
    return str(path)


class Broken(io.StringIO):
    """A stream that takes so many characters and raises then, until it is mended."""

    encoding = "ascii"

    def __init__(self, error, room=0):
        super().__init__()
        self.error, self.room = error, room

    def write(self, text):
        text.encode(self.encoding)
        if len(text) > self.room:
            raise self.error
        self.room -= len(text)
        return super().write(text)


ERRORS = [OSError(28, "No space left on device"), BrokenPipeError(), OSError(5, "gone"), ValueError("closed file")]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_a_stream_that_fails_raises_nothing_and_says_later_that_lines_are_missing(error):
    broken = Broken(error, room=8)
    stream = Expendable(broken)
    print("a line", file=stream)
    print("lost", file=stream, flush=True)
    stream.writelines(["lost", " as well\n"])
    broken.room = 1000
    print("and on", file=stream)
    first, missing, last = broken.getvalue().splitlines()
    assert (first, last) == ("a line", "and on")
    assert missing.startswith("(lines are missing here")


def test_what_an_encoding_does_not_have_is_escaped():
    broken = Broken(OSError("full"), room=1000)
    print("b = ∞, L ≤ 1, \udcff", file=Expendable(broken))
    assert broken.getvalue() == "b = \\u221e, L \\u2264 1, \\udcff\n"


def test_the_streams_are_as_before_afterwards():
    before = sys.stdout, sys.stderr
    with expendable():
        assert isinstance(sys.stdout, Expendable)
    assert (sys.stdout, sys.stderr) == before


@pytest.fixture
def full(monkeypatch):
    """Standard output and standard error on a device without room."""
    with open("/dev/full", "w") as stdout, open("/dev/full", "w") as stderr:
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", stderr)
        yield
        monkeypatch.undo()
        for stream in (stdout, stderr):
            with suppress(OSError):
                stream.close()


def test_every_command_does_its_work_without_room_for_a_word(sweep_file, tmp_path, full):
    root = str(tmp_path / "results" / "small")
    assert command.main([sweep_file, "--results", str(tmp_path / "results"), "--inline"]) == 0
    assert len(pd.read_parquet(f"{root}/trials")) == 4
    (tmp_path / "results" / "small" / "report.html").unlink()
    from raysat.analysis.command import main as analyze
    from raysat.report.__main__ import main as make_report

    assert analyze([root]) == 0
    assert make_report([root]) == 0
    assert status.main([root]) == 0
    assert (tmp_path / "results" / "small" / "report.html").exists()
    assert status.main([str(tmp_path)]) == 2


def test_results_and_log_on_one_full_disk(sweep_file, small_disk, monkeypatch):  # noqa: F811
    """The driver's own lines cannot be written any more, and no result is lost: all wait until there is room."""
    ballast = small_disk / "ballast"

    def fill():
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(512))
        with suppress(OSError), (small_disk / "log").open("ab", buffering=0) as file:
            while True:  # what is left of its last page
                file.write(b".")

    lost = []

    def free():
        lost.append(sys.stdout.reason)
        ballast.unlink(missing_ok=True)

    said = filled_after_a_trial(monkeypatch, fill, free)
    with open(small_disk / "log", "a") as log:
        monkeypatch.setattr(sys, "stdout", log)
        monkeypatch.setattr(sys, "stderr", log)
        assert command.main([sweep_file, "--results", str(small_disk), "--inline"]) == 0
        monkeypatch.undo()
        assert "No space left on device" in lost[0]
    trials = pd.read_parquet(small_disk / "small" / "trials")
    assert len(trials) == trials["cell_id"].nunique() == 4
    assert "No space left on device" in said[0]
    assert "(lines are missing here: [Errno 28] No space left on device)" in (small_disk / "log").read_text()


def test_a_report_for_which_there_is_no_room_costs_no_result(sweep_file, tmp_path, monkeypatch, capsys):
    def finish(root, console):
        raise OSError(28, "No space left on device")

    line = [sweep_file, "--results", str(tmp_path / "results"), "--inline"]
    with monkeypatch.context() as patch:
        patch.setattr(report, "finish", finish)
        assert command.main(line) == 3
    said = capsys.readouterr().err
    root = tmp_path / "results" / "small"
    assert said.count("\n") == 1
    assert "No space left on device" in said
    assert f"python -m raysat.report {root}" in said
    assert len(pd.read_parquet(root / "trials")) == 4
    assert command.main(line) == 0
    assert (root / "report.html").exists()


SHELLS = {
    "closed descriptors and no room": '"$@" > /dev/full <&- 2>&-',
    "a reader that has gone": '"$@" 2>&1 | true; exit "${PIPESTATUS[0]}"',
    "an encoding of ASCII alone": 'LANG=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 PYTHONIOENCODING=ascii:strict "$@"',
}


@pytest.mark.parametrize("shell", SHELLS.values(), ids=SHELLS)
def test_a_process_whose_output_is_lost_ends_with_its_own_exit_code(sweep_file, tmp_path, shell):
    line = [sys.executable, "-m", "raysat.sweep", sweep_file, "--results", str(tmp_path / "results"), "--inline"]
    done = subprocess.run(
        ["bash", "-c", shell, "-", *line], capture_output=True, timeout=200, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    root = tmp_path / "results" / "small"
    assert len(pd.read_parquet(root / "trials")) == 4
    assert (root / "report.html").exists()
    done.stdout.decode("ascii")


def test_a_writer_whose_message_cannot_be_shown_keeps_what_waits(full):
    kept, away = [], [True]

    def write():
        if away:
            raise OSError("away")
        kept.append(1)

    with expendable():
        writer = RetryingWriter("results", print, clock=lambda: 0.0)
        writer.do(write)
        away.clear()
        writer.close_now()
    assert kept == [1]
