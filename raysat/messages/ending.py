"""How a sweep ends: each way has an exit code and a sentence that says what to do next; docs/storage.md lists them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

FINISHED, CELLS_FAILED, BAD_INPUT, NO_REPORT, NO_CLUSTER, BROKEN = range(6)
"""Exit codes: everything is done; cells failed; the input is not valid; the results are complete but their report could
not be made; Ray could not be started or has died; an error of the driver's own. In addition, a signal that ends a sweep
gives 128 plus its number, as in shells."""

AGAIN = "What is finished stays; run the same command again to go on."

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """Turns the signals that end a sweep into KeyboardInterrupt, even if other code of the process handles them too.

    A second Ctrl-C interrupts the work that is done after the first. After `close` nothing is left to interrupt, and
    signals are ignored.
    """

    def __init__(self) -> None:
        self._closed = False
        self._due: int | None = None

    def arm(self) -> None:
        """Handle the signals, also if Ray has replaced the handlers by its own.

        An ignored signal stays ignored, as SIGHUP under `nohup`.
        """
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, self._handle)

    def check(self) -> None:
        """Stop the sweep if a signal has come whose exception a user's code has suppressed."""
        if self._due is not None and not self._closed:
            raise KeyboardInterrupt(self._due)

    @property
    def is_unheard(self) -> bool:
        """Whether no signal has come."""
        return self._due is None

    def close(self) -> None:
        """Ignore all further signals."""
        self._closed = True

    def how_it_ended(self) -> tuple[int, str]:
        """The exit code and the sentence of a sweep that was stopped.

        The number is that of the signal, not the one in the exception: Ray's core replaces a KeyboardInterrupt that is
            raised while it waits by one of its own.
        """
        number = self._due or signal.SIGINT
        by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
        return 128 + number, f"Stopped{by}. {AGAIN}"

    def _handle(self, number: int, frame: object) -> None:
        if not self._closed:
            self._due = number
            raise KeyboardInterrupt(number)


def is_of_a_signal() -> bool:
    """Return whether a KeyboardInterrupt may come from a signal, rather than from a user's code.

    Only the main thread receives signals, and `Signals` remembers those that it handles.
    """
    handler = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
    unheard = isinstance(handler, Signals) and handler.is_unheard
    return threading.current_thread() is threading.main_thread() and not unheard


@contextmanager
def signals(*, for_good: bool = False) -> Iterator[Signals]:
    """Handle the signals that end a sweep.

    Args:
        for_good: Whether they stay handled, because the process ends with the sweep.
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
