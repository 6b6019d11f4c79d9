"""Output that may fail: no print, progress view, warning or log line can cost results that are computed and stored.

A log on a full disk, a reader that has gone (`| head`), a descriptor that was closed (`>&-`), a terminal that has gone,
an encoding that lacks a character: each of them ends a plain Python program in the middle of its work.
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
    """A stream that does not raise: text that it cannot write is lost, and the loss is noted once it can write again.

    Args:
        stream: Where to write.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.reason = ""
        """Reason of the last loss; empty if nothing was lost, or the loss has been noted."""

    def write(self, text: str) -> int:
        """Write, if possible."""
        self._try(self._write, text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write some lines, if possible."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Flush, if possible."""
        self._try(self._stream.flush)

    def isatty(self) -> bool:
        """Return whether it is a terminal that has not gone."""
        return bool(self._try(self._stream.isatty))

    def _write(self, text: str) -> None:
        if self.reason:
            missing, self.reason = f"(lines are missing here: {self.reason})\n", ""
            try:
                self._stream.write(missing)
                self._stream.flush()  # shows at once whether the stream can be written again
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
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self.reason = self.reason or said(error)
            return None

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextmanager
def expendable(*, for_good: bool = False) -> Iterator[None]:
    """Make standard output and standard error expendable, and with them the output of Python, rich and `logging`.

    If one of them was closed, its descriptor is occupied: a file opened later would get it, and a library's messages
    would be written into that file, such as a table.

    Args:
        for_good: Whether they stay so: at exit Python flushes them once more, and if that fails, gives the process an
            exit code of its own.
    """
    _occupy()
    before, formatted = (sys.stdout, sys.stderr), warnings.formatwarning
    sys.stdout, sys.stderr = (Expendable(stream or open(os.devnull, "w")) for stream in before)  # noqa: SIM115
    warnings.formatwarning = lambda *args, **kwargs: plain(formatted(*args, **kwargs))  # its text may be a user's
    try:
        yield
    finally:
        if not for_good:
            (sys.stdout, sys.stderr), warnings.formatwarning = before, formatted


def _occupy() -> None:
    """Open those of the first three descriptors that are closed, on the null device."""
    for _ in range(3):
        if (descriptor := os.open(os.devnull, os.O_RDWR)) > 2:
            os.close(descriptor)
            return
