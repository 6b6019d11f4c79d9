"""What is shown is expendable: no print, progress view, warning or line of a log costs what is computed and stored.

A log on a full disk, a reader that has gone (`| head`), a descriptor that was closed (`>&-`), a terminal that went
away, an encoding that does not have a character: each of them ends a plain Python program in the midst of its work.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from raysat.messages.failures import said
from raysat.text import plain


class Expendable:
    """A stream that does not raise: what it cannot write is lost, and noted, and it goes on when it can again.

    Args:
        stream: Where to write.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.reason = ""
        """Why something was lost last; empty where nothing was, or where it has been said."""

    def write(self, text: str) -> int:
        """Write, if that can be done."""
        self._try(self._write, text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write some lines, if that can be done."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Write what waits, if that can be done."""
        self._try(self._stream.flush)

    def isatty(self) -> bool:
        """Return whether it is a terminal; one that has gone is none."""
        return bool(self._try(self._stream.isatty))

    def _write(self, text: str) -> None:
        if self.reason:
            missing, self.reason = f"(lines are missing here: {self.reason})\n", ""
            try:
                self._stream.write(missing)
                self._stream.flush()  # else it would be known only later whether it can write again
            except BaseException:
                self.reason = missing[len("(lines are missing here: ") : -2]
                raise
        try:
            self._stream.write(text)
        except UnicodeError:
            encoding = self._stream.encoding or "ascii"
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def _try(self, call: Callable[..., object], *arguments: object) -> object:
        try:
            return call(*arguments)
        except (OSError, ValueError) as error:  # the second where it was closed
            self.reason = self.reason or said(error)
            return None

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextmanager
def expendable(*, for_good: bool = False) -> Iterator[None]:
    """Let standard output and standard error be expendable, and with them what Python, rich and `logging` show there.

    Where one of them was closed, nothing opened later takes its place, for a library's messages would be written into
    a table then.

    Args:
        for_good: Whether they stay so: at its end Python writes what waits once more, and gives the process an exit
            code of its own where that fails.
    """
    _occupy()
    before, formatted = (sys.stdout, sys.stderr), warnings.formatwarning
    sys.stdout, sys.stderr = (Expendable(stream or open(os.devnull, "w")) for stream in before)  # noqa: SIM115
    warnings.formatwarning = lambda *args, **kwargs: plain(formatted(*args, **kwargs))  # also their texts are a user's
    try:
        yield
    finally:
        if not for_good:
            (sys.stdout, sys.stderr), warnings.formatwarning = before, formatted


def _occupy() -> None:
    """Open what is closed of the first three descriptors, on nothing."""
    for _ in range(3):
        if (descriptor := os.open(os.devnull, os.O_RDWR)) > 2:
            os.close(descriptor)
            return
