"""The start-up barrier of the worker processes of one machine."""

from __future__ import annotations

import os
import time
from pathlib import Path

UP_SECONDS = 10.0
"""Seconds that a process waits in total for the others to start."""


class StartupBarrier:
    """Start-up barrier: no process of a machine ends its first trial before all of them have started.

    Tune gives the next trial to a process that becomes free even if another process is being started for it, and then
    stops that one: with trials shorter than the start of a process, all would run in the first.

    Args:
        folder: Where each process creates a marker file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.patience = folder, UP_SECONDS
        folder.mkdir()

    def expect(self, processes: int) -> None:
        """Set the least number of processes that will start."""
        for number in range(processes):
            (self.folder / f"expected-{number}").touch()

    def wait(self) -> None:
        """Wait until the expected number of processes have reached this point, or `UP_SECONDS` are used up."""
        (self.folder / f"up-{os.getpid()}").touch()
        begun = time.monotonic()
        while self._missing() and time.monotonic() - begun < self.patience:
            time.sleep(0.01)
        self.patience -= time.monotonic() - begun

    def _missing(self) -> bool:
        marks = [name.partition("-") for name in os.listdir(self.folder)]
        alive = sum(kind == "up" and _runs(int(process)) for kind, _, process in marks)
        return alive < sum(kind == "expected" for kind, *_ in marks)


def _runs(process: int) -> bool:
    """Return whether a process with this id exists: Tune stops those for which it has no trial at the moment."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
