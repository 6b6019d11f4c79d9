"""A trial's own checkpoint: weights, iteration, and the curve so far, under its cell id."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from raysat.storage.files import Location, write_aside
from raysat.storage.retry import RetryPolicy, retry_read

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """The state of a trial: all that it needs to continue as if it had never stopped.

    Attributes:
        iteration: Steps done.
        weights: The network's state, by parameter name; None before the first checkpoint.
        curve: Rows of `curves` so far, without the cell's id.
        ntk: Rows of `ntk` so far.
        step_seconds: Time spent in steps.
        seconds: Wall time in all.
        engine: State of the step engine besides the weights; None if it has none.
        micro_batch: Samples whose gradient is computed at a time, on which rounding depends; None before a step.
        attempts: Processes that have worked on it, this one included.
        eta: Its stepsize; None if an earlier raysat stored it.
        user_files: The user's files that had been imported, as in `trials`; None if there were none.
        draws: States of the random generators of its layers; None before their first draw.
    """

    iteration: int = 0
    weights: dict[str, Tensor] | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)
    ntk: list[dict[str, Any]] = field(default_factory=list)
    step_seconds: float = 0.0
    seconds: float = 0.0
    engine: dict[str, Any] | None = None
    micro_batch: int | None = None
    attempts: int = 1
    eta: float | None = None
    draws: list[Tensor] | None = None
    user_files: str | None = None


class Checkpoint:
    """One file with a trial's progress. If its storage fails, the trial continues without.

    Args:
        path: The file; None keeps nothing.
        retry_policy: Waits for the storage when the trial starts.
    """

    def __init__(self, path: Location | None = None, retry_policy: RetryPolicy = retry_read) -> None:
        self.path, self.retry_policy = path, retry_policy
        self._unseen = False  # whether there may be a file that could not be read

    def load(self) -> Progress:
        """Read the stored progress, and count one more attempt.

        The progress is a fresh one if there is none, if it is damaged, and if its storage does not answer.
        """
        try:
            progress = self.retry_policy(self._stored)
        except OSError as error:
            log.warning("%s cannot be read, the trial starts over: %s", self.path, _first_line(error))
            self._unseen = True
            return Progress()
        if progress is None:
            return Progress()
        progress.attempts += 1
        return progress

    def save(self, progress: Progress) -> bool:
        """Write the progress atomically; never overwrite a checkpoint with more iterations.

        Returns:
            Whether it was stored.
        """
        if self.path is None:
            return False
        try:
            if self._unseen:
                stored = self._stored()
                if stored is not None and stored.iteration >= progress.iteration:
                    return False
                self._unseen = False
            content = {"cell_id": self.path.stem, **vars(progress)}
            write_aside(self.path, lambda aside: _write(content, aside))
        except (OSError, RuntimeError) as error:  # torch raises the latter if a disk is full
            log.warning("%s cannot be written, the trial goes on without: %s", self.path, _first_line(error))
            return False
        return True

    def _stored(self) -> Progress | None:
        """The stored progress; None if absent or damaged. Raises `OSError` if the storage does not answer."""
        if self.path is None:
            return None
        try:
            content = self.path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return read(content, self.path.stem)
        except MemoryError:
            raise
        except Exception as error:  # a damaged file may raise anything, and costs a restart at most
            log.warning("%s is damaged, the trial starts over: %s", self.path, _first_line(error))
            return None


def unpacked(content: bytes) -> Any:
    """Return what `torch.save` wrote, on the CPU. No code in it is executed.

    Raises:
        Exception: It is damaged, or contains more than data.
    """
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def read(content: bytes, cell_id: str) -> Progress:
    """Read the progress from a file's content. No code in it is executed.

    Args:
        content: The file's bytes.
        cell_id: The cell to which it must belong.

    Raises:
        Exception: The file is damaged, or contains something else.
    """
    _check(content)
    stored = unpacked(content)
    if (of := stored.pop("cell_id", cell_id)) != cell_id:  # an earlier raysat did not store it
        raise ValueError(f"it is of cell {of}")
    if "at_once" in stored:  # its former name
        stored["micro_batch"] = stored.pop("at_once")
    progress = Progress(**stored)
    for name, kind in _KINDS.items():
        if not isinstance(value := getattr(progress, name), kind):
            raise TypeError(f"its {name} is {value!r:.50}")
    return progress


_DIGITS = 64
"""Length of a SHA-256 in hexadecimal, which is the end of a checkpoint: the comment of its zip archive."""


def _write(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint with a digest of all its bytes.

    `torch.load` ignores the checksums of the archive's members, and these do not cover its list of members.
    """
    torch.save(content, path)
    with open(path, "r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(_DIGITS.to_bytes(2, "little"))  # the comment's length, the last field of a zip archive
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.write(digest.encode())  # `file_digest` has read to the end: this appends


def _check(content: bytes) -> None:
    """Raise `BadZipFile` if a checkpoint is not as it was written."""
    if content.endswith(b"\0\0"):  # a comment of length 0: an earlier raysat wrote it
        if damaged := ZipFile(io.BytesIO(content)).testzip():
            raise BadZipFile(f"{damaged} has another checksum")
    elif hashlib.sha256(memoryview(content)[:-_DIGITS]).hexdigest().encode() != content[-_DIGITS:]:
        raise BadZipFile("it has another checksum")


_KINDS = {
    **dict.fromkeys(("iteration", "attempts"), int),
    **dict.fromkeys(("step_seconds", "seconds"), int | float),
    **dict.fromkeys(("curve", "ntk"), list),
    **dict.fromkeys(("weights", "engine"), dict | None),
    **{"micro_batch": int | None, "eta": int | float | None, "draws": list | None, "user_files": str | None},
}
"""The type of each field of `Progress`, as far as `isinstance` can check it."""


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
