"""How a sweep ends: each way has its exit code and its sentence, with what to do next; docs/storage.md has them all."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

FINISHED, CELLS_FAILED, BAD_INPUT, NO_REPORT, NO_CLUSTER, BROKEN = range(6)
"""Exit codes: all is done; cells failed; something cannot be run as it was asked; the results stand and their report
could not be made; Ray could not be started or has died; an error of the driver's own. Beside them stand 128 plus its
number for each signal that ends a sweep, as shells have it."""

AGAIN = "What is finished stays; run the same command again to go on."

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """Turns the signals that end a sweep into KeyboardInterrupt, whatever else of the process handles them meanwhile.

    Of Ctrl-C there may be several: the second cuts short what is done after the first. From `close` on there is
    nothing left that one could cut short, and none counts.
    """

    def __init__(self) -> None:
        self._closed = False
        self._due: int | None = None

    def arm(self) -> None:
        """Handle the signals, also where Ray has put handlers of its own in the place of these.

        What is ignored stays so, as SIGHUP under `nohup`.
        """
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, self._handle)

    def check(self) -> None:
        """Stop the sweep where a signal has come of which a user's code, in which it was raised, has made nothing."""
        if self._due is not None and not self._closed:
            raise KeyboardInterrupt(self._due)

    @property
    def is_unheard(self) -> bool:
        """Whether no signal has come."""
        return self._due is None

    def close(self) -> None:
        """Let no further signal count."""
        self._closed = True

    def how_it_ended(self) -> tuple[int, str]:
        """The exit code and the sentence of a sweep that was stopped.

        The number is that of the signal which came, not of the exception which arrived: Ray's core raises a
        KeyboardInterrupt of its own in the place of one that is raised while it waits.
        """
        number = self._due or signal.SIGINT
        by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
        return 128 + number, f"Stopped{by}. {AGAIN}"

    def _handle(self, number: int, frame: object) -> None:
        if not self._closed:
            self._due = number
            raise KeyboardInterrupt(number)


def is_of_a_signal() -> bool:
    """Whether the KeyboardInterrupt that passes may be of a signal, and not raised by a user's code as any other error.

    Only the main thread hears signals; and those that `Signals` handles it remembers.
    """
    handler = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
    unheard = isinstance(handler, Signals) and handler.is_unheard
    return threading.current_thread() is threading.main_thread() and not unheard


@contextmanager
def signals(*, for_good: bool = False) -> Iterator[Signals]:
    """Handle the signals that end a sweep.

    Args:
        for_good: Whether they stay handled, for the process ends with the sweep.
    """
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    armed = Signals()
    armed.arm()
    try:
        yield armed
    finally:
        if not for_good and threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)
