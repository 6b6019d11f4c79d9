"""Three defects, planted in the process that runs the sweep: the harness is to find each."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path


def write_without_rename() -> None:
    """Files are written in their place."""
    from raysat.storage import checkpoint, files, partfiles, store

    def write(path: Path, write: Callable[[Path], object]) -> None:
        write(path)

    for module in (checkpoint, files, partfiles, store):
        module.write_aside = write


def print_that_raises() -> None:
    """The line of a cell that has ended is printed past all that keeps a print from raising."""
    from faults import inject
    from raysat.driver.progress import View

    ended = View.job_ended

    def job_ended(view: View, key: str, line: str, *status: str) -> None:
        print(f"{key} has ended", file=inject.terminal["stdout"], flush=True)
        ended(view, key, line, *status)

    View.job_ended = job_ended


def missed_signal() -> None:
    """SIGTERM is not heard."""
    real = signal.signal

    def missing(number: int, handler: object) -> object:
        return real(number, signal.SIG_IGN if number == signal.SIGTERM else handler)

    signal.signal = missing


DEFECTS = {
    "a write without rename": write_without_rename,
    "a print that raises": print_that_raises,
    "a missed signal": missed_signal,
}
