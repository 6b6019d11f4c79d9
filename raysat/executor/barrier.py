"""The start-up barrier of the worker processes of one machine."""

from __future__ import annotations

import os
import time
from pathlib import Path

UP_SECONDS = 10.0
"""How long a process waits in all for the others to be up."""


class StartupBarrier:
    """No process of a machine ends its first trial before all of them are up.

    Tune gives a process that becomes free the next trial even where another process is being started for it, and then
    stops that one: where trials are shorter than the start of a process, all of them would run in the first.

    Args:
        folder: Where each process leaves a mark.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.patience = folder, UP_SECONDS
        folder.mkdir()

    def expect(self, processes: int) -> None:
        """Note how many processes there will be, at least."""
        for number in range(processes):
            (self.folder / f"expected-{number}").touch()

    def wait(self) -> None:
        """Wait until as many processes as are expected have come here, or the patience of this one has gone."""
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
    """Return whether there is a process of this number: Tune stops those for which it has no trial at a time."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
