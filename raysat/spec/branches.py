"""Branches of runs, by which the critical batch is measured along training (Merrill et al. 2025, arXiv 2505.23971).

A run with batch size b branches at iteration t: from there on a branch takes batches of k b, over as many samples for
every k. The critical batch at t is the largest k b that loses nothing by it (`raysat.analysis.branches`). A branch is a
cell of its own, whose training has a batch schedule: its steps before t are those of the run.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from raysat.errors import InputError, among, listed, plain, positive, whole
from raysat.spec.cells import Cell
from raysat.spec.phases import Phase
from raysat.spec.training import SCALINGS, Training


@dataclass(frozen=True)
class Branches:
    """At which iterations the runs of a sweep branch, and how.

    Attributes:
        at: The iterations t; 0 branches at w_0.
        samples: The window: the samples that a branch takes from t on; a multiple of every k b.
        factors: The factors k, to which 1 is added. Default: the powers of two at which k b divides the window and is
            within the training samples.
        draws: Number of branches of each k, which differ in the samples of their steps from t on. Default: 8, with
            which Student's t is 2.4, near its limit of 2.
        scaling: What follows the batch size with kappa = k, unless the run's own training says it: as in `Training`.
            Default: linear, the rule for SGD where noise dominates.
        tolerance: The fraction of the loss at the window's end that a batch may lose against k = 1. Default: 0.01.
    """

    at: tuple[int, ...]
    samples: int
    factors: tuple[int, ...] = ()
    draws: int = 8
    scaling: str = "linear"
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        at = sorted({whole("at", t, 0) for t in listed("at", self.at)})
        factors = {whole("factors", k, 1) for k in listed("factors", self.factors)}
        object.__setattr__(self, "at", tuple(at))
        object.__setattr__(self, "factors", tuple(sorted(factors | {1})) if factors else ())
        if not at:
            raise InputError("Branches: at is empty: give at least one iteration.")
        for name in ("samples", "draws"):
            object.__setattr__(self, name, whole(name, getattr(self, name), 1))
        among("scaling", self.scaling, SCALINGS)
        object.__setattr__(self, "tolerance", positive("tolerance", self.tolerance))

    def of(self, cell: Cell) -> list[Cell]:
        """Return the branches of a cell.

        Raises:
            InputError: The cell's training cannot branch, or a batch fits neither the window nor the samples.
        """
        factors = self._factors(cell)
        self._check(cell, factors)
        return [
            replace(
                cell,
                training=self._training(cell, Phase(t, k, draw)),
                iterations=t + self.samples // (k * cell.batch_size),
                evaluations=2,
                ntk_at=(),
                gradient_norm=False,
            )
            for t in self.at
            for k in factors
            for draw in range(1, self.draws + 1)
        ]

    def _factors(self, cell: Cell) -> tuple[int, ...]:
        k, made = 1, [1]
        while self.samples % ((k := 2 * k) * cell.batch_size) == 0 and k * cell.batch_size <= cell.init.n:
            made.append(k)
        return self.factors or tuple(made)

    def _training(self, cell: Cell, phase: Phase) -> Training:
        own = cell.training
        scaled = {} if own.scaling != "none" else {"scaling": self.scaling, "base_batch": cell.batch_size}
        return replace(own, batch_schedule=(phase,), **scaled)

    def _check(self, cell: Cell, factors: tuple[int, ...]) -> None:
        training = cell.training
        if training.is_asynchronous or training.noise or training.adapt_regime or training.batch_schedule:
            raise InputError(
                "branches are of synchronous trainings without noise, adapt_regime and batch_schedule: leave these out."
            )
        if training.schedule != "constant":
            raise InputError(
                f"branches end at another T for each k, and schedule={training.schedule!r} may depend on T: use the "
                "constant one."
            )
        if self.at[-1] > cell.iterations:
            raise InputError(
                f"branches at {self.at[-1]} are after the last of {cell.iterations} iterations at b = "
                f"{cell.batch_size}: lower it."
            )
        if len(factors) == 1:
            raise InputError(
                f"branches have no factor but 1 at b = {cell.batch_size}: give samples that are a multiple of large "
                "batches, or factors."
            )
        largest = factors[-1] * cell.batch_size
        if largest > cell.init.n:
            raise InputError(
                f"branches have batches of {largest} at b = {cell.batch_size}, and there are {cell.init.n} training "
                "samples: lower factors."
            )
        for k in factors:
            if self.samples % (k * cell.batch_size):
                above = -(-self.samples // largest) * largest
                raise InputError(
                    f"branches take samples={self.samples}, which is no multiple of {k * cell.batch_size}, {k} times "
                    f"b = {cell.batch_size}: give a multiple of every batch, such as {above}."
                )
