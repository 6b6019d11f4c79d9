"""A trial's own checkpoint: weights, iteration, and the curve so far, under its cell id."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass, field

import torch
from torch import Tensor

from raysat.files import Location, write_aside

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a trial has come: all that it needs to go on as if it had never stopped.

    Attributes:
        iteration: Steps done.
        weights: The network's state, by parameter name; None before the first checkpoint.
        curve: Rows of `curves` so far, without the cell's id.
        ntk: Rows of `ntk` so far.
        step_seconds: Time spent in steps.
        seconds: Wall time in all.
        engine: What the step engine holds beside the weights; None where it holds nothing.
        at_once: Samples whose gradient is computed at a time, on which rounding depends; None where none was taken yet.
        attempts: Processes that have worked on it, this one included.
    """

    iteration: int = 0
    weights: dict[str, Tensor] | None = None
    curve: list[dict[str, float | int | None]] = field(default_factory=list)
    ntk: list[dict[str, object]] = field(default_factory=list)
    step_seconds: float = 0.0
    seconds: float = 0.0
    engine: dict[str, object] | None = None
    at_once: int | None = None
    attempts: int = 1


class Checkpoint:
    """One file that holds a trial's progress. Where its storage fails, the trial goes on without.

    Args:
        path: The file; None keeps nothing.
    """

    def __init__(self, path: Location | None = None) -> None:
        self.path = path

    def load(self) -> Progress:
        """The stored progress, with one more attempt; a fresh one where there is none or it cannot be read."""
        try:
            if self.path is None or not self.path.exists():
                return Progress()
            content = io.BytesIO(self.path.read_bytes())
            progress = Progress(**torch.load(content, map_location="cpu", weights_only=True))
        except Exception as error:  # whatever a damaged file makes the reader say, it costs a restart and no more
            log.warning("%s cannot be read, the trial starts over: %s", self.path, str(error).partition("\n")[0])
            return Progress()
        progress.attempts += 1
        return progress

    def save(self, progress: Progress) -> None:
        """Store the progress, whole or not at all."""
        if self.path is None:
            return
        try:
            write_aside(self.path, lambda aside: torch.save(vars(progress), aside))
        except (OSError, RuntimeError) as error:  # torch raises the latter where a disk is full
            log.warning("%s cannot be written, the trial goes on without: %s", self.path, str(error).partition("\n")[0])
