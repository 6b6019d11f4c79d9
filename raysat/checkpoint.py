"""A trial's own checkpoint: weights, iteration, and the curve so far, under its cell id."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from raysat.files import write_aside


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
        attempts: Processes that have worked on it, this one included.
    """

    iteration: int = 0
    weights: dict[str, Tensor] | None = None
    curve: list[dict[str, float | int | None]] = field(default_factory=list)
    ntk: list[dict[str, object]] = field(default_factory=list)
    step_seconds: float = 0.0
    seconds: float = 0.0
    attempts: int = 1


class Checkpoint:
    """One file that holds a trial's progress.

    Args:
        path: The file; None keeps nothing.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path

    def load(self) -> Progress:
        """The stored progress, with one more attempt; a fresh one where there is none or it cannot be read."""
        if self.path is None or not self.path.exists():
            return Progress()
        try:
            progress = Progress(**torch.load(self.path, map_location="cpu", weights_only=True))
        except Exception:  # whatever a damaged file makes the reader say, it costs a restart and no more
            return Progress()
        progress.attempts += 1
        return progress

    def save(self, progress: Progress) -> None:
        """Store the progress, whole or not at all."""
        if self.path is not None:
            write_aside(self.path, lambda aside: torch.save(vars(progress), aside))
