"""Stepsize (learning rate) policies: how a trial's eta follows from its initialization and its batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raysat.errors import InputError, plain

OF_STATISTICS = ("theory", "fixed_fraction", "grid_relative")
"""The policies that compute eta from gamma and k_op. For a network without these statistics, `grid(auto=True)` makes
its `grid_relative` stepsizes from a base stepsize instead."""


@dataclass(frozen=True)
class Stepsize:
    """A stepsize policy and its one number. Made by `fixed`, `fixed_fraction`, `theory` and `grid`.

    Attributes:
        policy: `fixed` (eta = value), `fixed_fraction` (eta = value / beta(1)), `theory` (eta = value / beta(b)),
            `grid` (eta = value, one of several stepsizes, of which the best counts), `grid_relative` (eta = value /
            beta(b), likewise) or `grid_auto`, which stands for as many `grid_relative` ones as are needed; no cell has
            it. Without statistics `grid_relative` is `value * base_stepsize` (`raysat.saturation.formulas.stepsize`).
        value: The number; positive and finite.
    """

    policy: str
    value: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", plain(self.value))
        if not (isinstance(self.value, int | float) and math.isfinite(self.value) and self.value > 0):
            raise InputError(f"stepsize {self.policy}({self.value!r}): give a positive, finite number.")
        object.__setattr__(self, "value", float(self.value))

    @property
    def needs_statistics(self) -> bool:
        """Whether eta is computed from gamma and k_op."""
        return self.policy in OF_STATISTICS

    @property
    def name(self) -> str:
        """The single stepsize, for messages: `grid_relative(2)`."""
        return f"{self.policy}({self.value:g})"

    @property
    def label(self) -> str:
        """The group to which a trial belongs: all stepsizes of one grid share the grid's label."""
        if self.policy.startswith("grid"):
            return "grid" if self.policy == "grid" else "grid_relative"
        return self.name


def half_octave(k: int) -> Stepsize:
    """The stepsize `2^(k/2) / beta(b)` of `grid(auto=True)`."""
    return Stepsize("grid_relative", 2 ** (k / 2))


AUTO_START = (0, 1, 2)
"""The exponents k at which `grid(auto=True)` starts: from 1/beta(b), the stepsize of Theorem 4.2, to 2/beta(b), which
at b = n is the limit 2/k_op of gradient descent on the linearized network."""


def fixed(eta: float) -> Stepsize:
    """One stepsize (learning rate) for every batch size, as in the paper's section 5."""
    return Stepsize("fixed", eta)


def fixed_fraction(c: float = 1.0) -> Stepsize:
    """One stepsize `c / beta(1) = c / gamma` for every batch size of an initialization.

    The largest family of fixed stepsizes whose stability at b = 1 does not depend on the scale of the data.

    Args:
        c: The fraction. Default: 1, the stepsize of Theorem 4.2 (eta = 1/beta) at b = 1, where beta is largest.
    """
    return Stepsize("fixed_fraction", c)


def theory(c: float = 1.0) -> Stepsize:
    """The stepsize `c / beta(b)` that the theory allows at each batch size (Lemma 3.1 gives beta).

    Args:
        c: The constant. Default: 1, from Theorem 4.2 (eta = 1/beta); Theorem 2.1 has 1/2.
    """
    return Stepsize("theory", c)


def grid(values: Sequence[float] = (), *, relative: bool = False, auto: bool = False) -> tuple[Stepsize, ...]:
    """Several stepsizes, each its own trial; the best one of each batch size counts.

    Args:
        values: The stepsizes; with `relative`, multiples of 1/beta(b).
        relative: Whether the values are multiples of 1/beta(b) rather than stepsizes.
        auto: Whether to try powers of sqrt 2 times 1/beta(b) instead of `values`, at each batch size as many as are
            needed until the best is not at either end of those tried (see `raysat.driver.adaptive`).
    """
    if auto:
        if len(values) or relative:
            raise InputError("grid(auto=True) finds its stepsizes itself: leave out values and relative.")
        return (Stepsize("grid_auto", 1.0),)
    if len(values) == 0:
        raise InputError("grid([]): give at least one stepsize, or auto=True.")
    return tuple(Stepsize("grid_relative" if relative else "grid", value) for value in values)
