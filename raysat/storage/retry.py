"""Retries while a storage does not answer or is full: wait, report it, and lose nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from raysat.messages.failures import named, said, traced
from raysat.text import duration

T = TypeVar("T")

PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds before a read is tried again. Default: a minute in all, the outage that a sweep must survive unharmed."""

SHORTEST, LONGEST = 1.0, 60.0
"""First and longest wait in seconds before a write is tried again; it doubles each time."""


class RetryPolicy:
    """Retries reads for up to a minute. After one full failure, later reads fail at once until a read succeeds.

    Otherwise each trial that starts during a long outage would wait.

    Args:
        sleep: Waits for some seconds.
    """

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self.sleep, self.spent = sleep, False

    def __call__(self, read: Callable[[], T]) -> T:
        """Return what `read` returns, tried again after each of `PAUSES`.

        Raises:
            OSError: The storage does not answer; or the file does not exist or may not be read, which waiting does not
                change.
        """
        for pause in () if self.spent else PAUSES:
            try:
                return read()
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                raise
            except OSError:
                self.sleep(pause)
        self.spent = True
        value = read()
        self.spent = False
        return value


retry_read = RetryPolicy()
"""The policy that all reads of this process share."""


class RetryingWriter:
    """Does writes in order. If one fails, it and the later ones wait in memory and are tried again.

    No caller waits for them before the end: a sweep continues while its storage does not answer.

    Args:
        where: The storage, for messages.
        say: Called with messages.
        clock: Seconds now.
        sleep: Waits for some seconds.
    """

    def __init__(
        self,
        where: object,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.where, self.say, self.clock, self.sleep = where, say, clock, sleep
        self._waiting: deque[tuple[Callable[[], object], Callable[[str], Callable[[], object]] | None]] = deque()
        self._delay, self._again = 0.0, 0.0

    def do(self, write: Callable[[], object], instead: Callable[[str], Callable[[], object]] | None = None) -> None:
        """Do a write, now or later. It may be tried several times, and must be idempotent.

        Args:
            write: The write.
            instead: Makes a replacement, given the error, if the content is at fault and not the storage. Default:
                none, and a message says what is lost.
        """
        self._waiting.append((write, instead))
        self.attempt()

    def attempt(self) -> None:
        """Do the waiting writes, unless one failed a moment ago."""
        failed_before = self._delay > 0
        done = 0
        while self._waiting and self.clock() >= self._again:
            try:
                self._waiting[0][0]()
            except (OSError, MemoryError) as error:
                self._delay = min(max(2 * self._delay, SHORTEST), LONGEST)
                self._again = self.clock() + self._delay
                self.say(
                    f"{self.where} cannot be written ({said(error)}): {len(self._waiting)} results wait in "
                    f"memory, the next try is in {duration(self._delay)}; fix it, the sweep goes on meanwhile."
                )
            except Exception as error:  # a value that no table can hold: waiting does not help
                _, instead = self._waiting.popleft()
                if instead:
                    self._waiting.appendleft((instead(traced(error)), None))
                else:
                    self.say(
                        f"A result cannot be stored in {self.where} ({named(error)}): the next run computes it again."
                    )
            else:
                self._waiting.popleft()
                self._delay = 0.0
                done += 1
        if failed_before and not self._waiting:
            self.say(f"{self.where} can be written again: {done} results that waited are stored.")

    def finish(self) -> None:
        """Wait until everything is written, for as long as it takes."""
        while self._waiting:
            self.sleep(max(0.0, self._again - self.clock()))
            self.attempt()

    def close_now(self) -> None:
        """Try once more, and report what is lost."""
        self._again = 0.0
        self.attempt()
        if self._waiting:
            self.say(f"{len(self._waiting)} results could not be written to {self.where}; their cells will run again.")
