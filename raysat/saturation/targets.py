"""Targets: the losses to which iterations are counted, and N(b; eps), the number of iterations to reach one."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Real

DEEPEST = 1e-12
"""The smallest target that is chosen, as a fraction of the initial loss. Default: 1e-12; training in single precision
gets no lower than the square of its rounding, unless the loss vanishes, as a hinge loss does."""


def attainable(
    initial: float | Float[np.ndarray, " trials"], deepest: float | Float[np.ndarray, " trials"]
) -> Float[np.ndarray, "*trials"]:
    """The lowest target: the deepest loss, but no less than `DEEPEST` times the initial loss if that is reached.

    A negative loss, which has no logarithm, stays as it is.
    """
    return np.where(np.asarray(deepest) >= 0, np.maximum(deepest, DEEPEST * np.asarray(initial)), deepest)


def steps_to_target(iterations: Real[np.ndarray, " t"], losses: Float[np.ndarray, " t"], eps: float) -> float:
    """N(b; eps): the first iteration at which the loss is at most eps, log L taken linear in t between evaluations.

    If the loss vanishes at the later of the two, so that its logarithm is not finite, L is taken linear.

    Args:
        iterations: Iterations of the evaluations, ascending, the first of them 0.
        losses: The loss at each.
        eps: The target loss.

    Returns:
        The iteration, in general fractional; 0 if L(w_0) <= eps; nan if no evaluation reaches eps.

    Example:
        >>> steps_to_target(np.array([0, 10]), np.array([1.0, 0.01]), 0.1)
        5.0
    """
    k = _crossing(losses, eps)
    if k is None:
        return math.nan
    if k == 0:
        return float(iterations[0])
    return _between(iterations, losses, eps, k - 1, k)


def lateness(iterations: Real[np.ndarray, " t"], losses: Float[np.ndarray, " t"], eps: float) -> float:
    """Return the excess of log N that is due to the spacing of evaluations.

    A fluctuating loss can pass the target between two evaluations unseen, and on a smooth curve a chord lies above it:
    the fewer evaluations, the later N. The estimate compares N from every second evaluation, averaged over the even and
    the odd ones, with N from all. If the loss has only fallen, a third of that difference is taken, which is exact on a
    smooth curve (Richardson). If it fluctuates, all of it is: a random walk would need 2.4 times as much, its first
    passage being late by the square root of the spacing (Broadie, Glasserman and Kou 1997), and SGD on least squares
    lies between (benchmarks/coverage.py).

    Args:
        iterations: As for `steps_to_target`.
        losses: The loss at each.
        eps: The target loss.

    Returns:
        The excess of log N; negative if chords lie below the curve; 0 if the target is reached between two consecutive
        iterations, or at the first evaluation; nan if N is 0 or missing, or if neither half of the evaluations has it.

    Example:
        >>> t = np.array([0, 10, 20, 30])
        >>> lateness(t, np.exp(-0.1 * t), 0.1)  # a chord is exact on an exponential
        0.0
    """
    k = _crossing(losses, eps)
    if not k:
        return math.nan
    if k == 1 or iterations[k] - iterations[k - 1] <= 1:
        return 0.0
    fine = _between(iterations, losses, eps, k - 1, k)
    later = []
    for first in (1, 2):
        kept = np.r_[0, first : len(losses) : 2]  # w_0 and every second evaluation
        if (n := steps_to_target(iterations[kept], losses[kept], eps)) > 0:
            later.append(math.log(n / fine))
    # Richardson: an error of order h^2 is 4 times as large at 2 h, so that it is a third of the difference
    share = 1 / 3 if _only_falls(losses[: k + 2]) else 1
    # rounded: an error of 1e-16 in the interpolation is no lateness
    return round(share * sum(later) / len(later), 12) if later else math.nan


def earliest(iterations: Real[np.ndarray, " t"], losses: Float[np.ndarray, " t"], eps: float) -> float:
    """A lower bound of N: the last evaluation above the target if the loss has only fallen; else 0."""
    k = _crossing(losses, eps)
    return float(iterations[k - 1]) if k and _only_falls(losses[: k + 1]) else 0.0


def in_time(
    first: Float[np.ndarray, " seeds"], late: Float[np.ndarray, " seeds"], least: Float[np.ndarray, " seeds"]
) -> Float[np.ndarray, " seeds"]:
    """N of the seeds of a batch size, corrected for the mean delay due to the spacing of evaluations.

    Args:
        first: N from `steps_to_target`; nan if a seed has none.
        late: By how much log N is too large (`lateness`).
        least: Lower bounds of N (`earliest`).
    """
    return np.maximum(first * math.exp(-max(float(late.mean()), 0.0)), least)


def uncertainty(iterations: Real[np.ndarray, " t"], losses: Float[np.ndarray, " t"], eps: float) -> float:
    """The error of log N if the target is reached before the first evaluation after w_0; 0 if it is reached later.

    N may be anywhere before it: the error is the standard deviation of a uniform distribution. It is nan if N is 0 or
    missing.
    """
    k = _crossing(losses, eps)
    if not k:
        return math.nan
    gap = float(iterations[1] - iterations[0])
    return gap / math.sqrt(12) / _between(iterations, losses, eps, 0, 1) if k == 1 and gap > 1 else 0.0


def below_parabola(x: Float[np.ndarray, " 3"], z: Float[np.ndarray, " 3"]) -> float:
    """Return how far the parabola through three points falls below the middle one, which is the lowest of them.

    Args:
        x: Ascending.
        z: The values.
    """
    # with the middle point as origin, the vertex of c x^2 + s x is at -s^2/(4 c)
    curvature, slope, _ = np.polyfit(x - x[1], z - z[1], 2)
    return float(slope**2 / (4 * curvature)) if curvature > 0 else 0.0


def _crossing(losses: Float[np.ndarray, " t"], eps: float) -> int | None:
    """Index of the first evaluation with a loss of at most eps, if any; a curve ends at its first impossible value."""
    possible = np.isfinite(losses) & (losses >= 0)
    end = len(losses) if possible.all() else int(np.argmin(possible))
    reached = np.flatnonzero(losses[:end] <= eps)
    return int(reached[0]) if reached.size else None


def _only_falls(losses: Float[np.ndarray, " t"]) -> bool:
    """Return whether no evaluation is above the one before it."""
    return bool((np.diff(losses) <= 0).all())


def _between(
    iterations: Real[np.ndarray, " t"], losses: Float[np.ndarray, " t"], eps: float, start: int, end: int
) -> float:
    """Return the t at which log L, linear between two evaluations, equals log eps; L itself if it vanishes."""
    if losses[end] > 0:  # on an exponential, the chord in log L is exact
        above, level, below = math.log(losses[start]), math.log(eps), math.log(losses[end])
    else:
        above, level, below = float(losses[start]), eps, 0.0
    share = (above - level) / (above - below) if above != below else 1.0
    return float(iterations[start] + share * (iterations[end] - iterations[start]))


def choose_targets(initial: Float[np.ndarray, " trials"], deepest: Float[np.ndarray, " trials"]) -> tuple[float, ...]:
    """Choose up to three loss levels that all trials start above and reach.

    They lie at 1/2, 3/4 and all of the way, in log L, from the smallest initial loss to the deepest loss that every
    trial reaches, rounded up to two digits. An early level depends on the large eigenvalues of K, a late one on the
    small ones.

    Args:
        initial: Each trial's L(w_0).
        deepest: Each trial's smallest loss.

    Returns:
        The levels, descending; none if some trial stays above the smallest initial loss.
    """
    if not (initial.size and np.all(initial > 0) and np.all(deepest >= 0)):
        return ()
    start, end = initial.min(), attainable(initial, deepest).max()
    if not end < start:
        return ()
    # a set, since after rounding two levels may be one
    levels = {_round_up(float(start ** (1 - share) * end**share)) for share in (0.5, 0.75, 1.0)}
    return tuple(sorted((level for level in levels if level < start), reverse=True))


def _round_up(value: float) -> float:
    """The smallest number of two significant digits that is not below `value`."""
    rounded = float(f"{value:.1e}")
    if rounded < value:  # it was rounded down: add one to the second digit
        rounded = float(f"{rounded + 10.0 ** (math.floor(math.log10(value)) - 1):.1e}")
    return rounded
