"""The law of saturation, and its fit, as pure functions of numbers.

Two quantities measured at each batch size b follow

    y(b) = y_inf (1 + (b_c/b)^q)^(1/q),        y = N(b), iterations to a target loss, or y = 1/h(b).

At small b, y is y_inf b_c / b (perfect scaling); at large b it is y_inf (the plateau). For every q these two asymptotes
meet at b_c, the critical batch size: b_N or b_h. q determines how sharply y bends there.

With q = 1 this is the law of McCandlish et al. (2018), N(b) = N_inf (1 + b_N/b), which the paper uses for h(b) (section
5), and the form of Lemma 3.1: with replacement `beta(b) = k_op (1 + (gamma/k_op - 1)/b)`. An N(b) tuned freely over
stepsizes may bend more sharply, because the best stepsize stops growing when it becomes unstable. Leave-one-out
prediction of the batch sizes decides between the laws (`fit_law`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Real

LEAST_BATCH_SIZES = 3
"""Batch sizes that a fit needs: the law has two parameters, and fits any two points exactly."""

LEAST_FOR_BEND = 5
"""Batch sizes needed to fit q. Default: 5; with one left out, one more than the three parameters remains."""

BENDS = np.geomspace(1, 8, 13)
"""The q that are tried. Default: 1 to 8, in steps of 19 %, then between these. At q = 8 the law is a corner except for
9 % at b_c itself; with a softer bend than that of q = 1 the plateau, and with it b_c, would lie beyond the batch sizes
that were run."""

ROUGH = 1e-4
"""Precision of the fits that are only compared with each other; their sums of squares are then good to 1e-8."""

EXACT = 1e-6
"""A scatter about the law below which another law has nothing left to explain."""

REACH = 1e3
"""b_c is searched from b_min / REACH, where y changes by 0.1 % over all b, to b_max * REACH."""

_GRID = 240  # points of the first search: about ten a decade where b spans four decades


def log_law(
    b: Real[np.ndarray, " b"], log_b_c: float | Float[np.ndarray, "..."], q: float | Float[np.ndarray, "..."]
) -> Float[np.ndarray, "*r b"]:
    """`log y(b) - log y_inf` for several b_c and q, whose shapes broadcast."""
    distance = np.asarray(log_b_c, dtype=float)[..., None] - np.log(b)
    sharpness = np.asarray(q, dtype=float)[..., None]
    return np.logaddexp(0, sharpness * distance) / sharpness


def law(b: Real[np.ndarray, " b"], y_inf: float, b_c: float, q: float) -> Float[np.ndarray, " b"]:
    """The law y(b)."""
    return y_inf * np.exp(log_law(b, np.log(b_c), q))


def slopes(b: Real[np.ndarray, " b"], b_c: float, q: float) -> Float[np.ndarray, "2 b"]:
    """The derivatives of `log y` by `log b_c` and by `log q`."""
    distance = math.log(b_c) - np.log(b)
    share = np.exp(-np.logaddexp(0, -q * distance))  # (b_c/b)^q / (1 + (b_c/b)^q)
    return np.array([share, share * distance - np.logaddexp(0, q * distance) / q])


@dataclass(frozen=True)
class SaturationFit:
    """Fits of y(b) = y_inf (1 + (b_c/b)^q)^(1/q), one for each replicate.

    Attributes:
        b_c: The critical batch size; nan if fewer than three y are usable.
        y_inf: The limit of y at large b.
        rms_log_residual: Root mean square of log y - log fit: 0.05 is a scatter of 5 %.
        q: How sharply y bends at b_c.
        edge: -1 if b_c is at the lower end of the search range (y does not fall with b), 1 if it is at the upper end (y
            falls like 1/b or faster), 0 otherwise.
    """

    b_c: Float[np.ndarray, "*replicates"]
    y_inf: Float[np.ndarray, "*replicates"]
    rms_log_residual: Float[np.ndarray, "*replicates"]
    q: Float[np.ndarray, "*replicates"]
    edge: Int[np.ndarray, "*replicates"]


def fit_saturation(
    b: Real[np.ndarray, " b"],
    y: Float[np.ndarray, "*replicates b"],
    q: float | Float[np.ndarray, "..."] = 1.0,
    precision: float = 1e-8,
) -> SaturationFit:
    """Fit y(b) = y_inf (1 + (b_c/b)^q)^(1/q) by least squares in log y, for a given q.

    Log y, because the noise of h and N is multiplicative: the fit then does not depend on the unit of y, and a batch
    size at which y is ten times smaller has the same weight. For a given b_c the best log y_inf is the mean of log y
    minus the law, so that only a search over log b_c remains: a grid for all replicates at once, then golden section.

    Args:
        b: Batch sizes.
        y: Positive values; nan if absent.
        q: One for each replicate, or one for all; its shape broadcasts to theirs.
        precision: Of log b_c, as a fraction of the grid's spacing.

    Returns:
        One fit for each of the leading axes of y.

    Example:
        >>> b = np.array([1, 2, 4, 8, 16, 32, 64, 256])
        >>> N = np.array([410.0, 220, 135, 85, 60, 50, 45, 40])
        >>> round(float(fit_saturation(b, N).b_c), 1)
        9.6
    """
    z = np.log(y.reshape(-1, len(b)))  # (r, b)
    q = np.broadcast_to(np.asarray(q, dtype=float), y.shape[:-1]).reshape(-1)
    used = np.isfinite(z)
    count = used.sum(axis=1)
    enough = count >= LEAST_BATCH_SIZES
    count = np.maximum(count, 1)
    centre = np.where(used, z, 0).sum(axis=1) / count  # sums of squares lose no digits to a large mean
    z = np.where(used, z - centre[:, None], 0)

    grid = np.linspace(math.log(b.min() / REACH), math.log(b.max() * REACH), _GRID)
    best = np.empty(len(z), dtype=int)
    for value in np.unique(q):  # replicates with the same q share the curves of the grid
        rows = q == value
        best[rows] = _grid_search(log_law(b, grid, value).T, z[rows], used[rows], count[rows])
    edge = np.where(best == 0, -1, np.where(best == _GRID - 1, 1, 0))
    around = np.clip(best, 1, _GRID - 2)  # a point with a neighbour on both sides
    refined = _golden_section(
        lambda log_b_c: _residuals(log_law(b, log_b_c, q), z, used, count)[1],
        grid[around - 1],
        grid[around + 1],
        precision,
    )
    log_b_c = np.where(edge == 0, refined, grid[best])
    offset, sse = _residuals(log_law(b, log_b_c, q), z, used, count)

    def shaped(values: Float[np.ndarray, " r"]) -> Float[np.ndarray, "*replicates"]:
        return np.where(enough, values, math.nan).reshape(y.shape[:-1])

    return SaturationFit(
        b_c=shaped(np.exp(log_b_c)),
        y_inf=shaped(np.exp(offset + centre)),
        rms_log_residual=shaped(np.sqrt(sse / count)),
        q=shaped(q),
        edge=np.where(enough, edge, 0).reshape(y.shape[:-1]),
    )


def fit_law(b: Real[np.ndarray, " b"], y: Float[np.ndarray, " b"]) -> tuple[SaturationFit, bool]:
    """Fit the law with q = 1, or with the best q if the data support it.

    Each batch size is left out in turn and predicted from the others, once with q = 1 and once with the q that fits
    them best. The latter is taken if its squared errors are smaller on average by more than the standard error of that
    average: the one-standard-error rule (Hastie, Tibshirani and Friedman 2009, section 7.10), which keeps the simpler
    law if it does as well.

    Args:
        b: Batch sizes.
        y: Positive values; nan if absent.

    Returns:
        The fit, and whether q was fitted.
    """
    known = np.isfinite(y) & (y > 0)
    b, y, size = b[known], y[known], int(known.sum())
    plain = fit_saturation(b, y)
    if size < LEAST_FOR_BEND or float(plain.rms_log_residual) < EXACT:
        return plain, False
    rows = np.where(np.eye(size, dtype=bool), math.nan, y)  # row i lacks batch size i
    errors = []
    for q in (1.0, fit_bend(b, rows, rounds=2)):
        fit = fit_saturation(b, rows, q, ROUGH)
        foretold = np.log(fit.y_inf)[:, None] + log_law(b, np.log(fit.b_c), fit.q)
        errors.append(np.diagonal(foretold - np.log(y)) ** 2)  # of row i the batch size it lacks
    gain = errors[0] - errors[1]
    if not gain.mean() > gain.std(ddof=1) / math.sqrt(size):
        return plain, False
    return fit_saturation(b, y, fit_bend(b, y)), True


def fit_bend(
    b: Real[np.ndarray, " b"], y: Float[np.ndarray, "*replicates b"], rounds: int = 3
) -> Float[np.ndarray, "*replicates"]:
    """The q, between the first and the last of `BENDS`, with the least sum of squares.

    Args:
        b: Batch sizes.
        y: Positive values; nan if absent.
        rounds: Number of grids, each after the first between the neighbours of the best q so far; one is good to 19 %,
            three to 0.5 %.
    """
    rows = y.reshape(-1, len(b))
    tried = np.broadcast_to(BENDS[:, None], (len(BENDS), len(rows)))
    for _ in range(rounds):
        made = fit_saturation(b, np.broadcast_to(rows, (len(tried), *rows.shape)), tried, ROUGH)
        k = np.clip(made.rms_log_residual.argmin(axis=0), 1, len(tried) - 2)
        # the next grid of each row lies between the neighbours of its best q
        last, tried = tried, np.geomspace(tried[k - 1, range(len(rows))], tried[k + 1, range(len(rows))], len(BENDS))
    # `made` belongs to `last`: the grid after it was not fitted
    return last[made.rms_log_residual.argmin(axis=0), range(len(rows))].reshape(y.shape[:-1])


def _residuals(
    curves: Float[np.ndarray, "r b"],
    z: Float[np.ndarray, "r b"],
    used: Bool[np.ndarray, "r b"],
    count: Int[np.ndarray, " r"],
) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"]]:
    """The best log y_inf for each curve, and the remaining sum of squares."""
    difference = z - curves  # (r, b)
    offset = np.where(used, difference, 0).sum(axis=1) / count
    return offset, (np.where(used, difference - offset[:, None], 0) ** 2).sum(axis=1)


def _grid_search(
    curves: Float[np.ndarray, "b k"],
    z: Float[np.ndarray, "r b"],
    used: Bool[np.ndarray, "r b"],
    count: Int[np.ndarray, " r"],
) -> Int[np.ndarray, " r"]:
    """Index of the best curve for each row. The square is expanded, so that three matrix products suffice."""
    curves = curves - curves.mean(axis=0)  # changes the offset only, and the expanded squares lose fewer digits
    weights = used.astype(float)
    sums = z.sum(axis=1, keepdims=True) - weights @ curves  # (r, k)
    return (weights @ curves**2 - 2 * z @ curves - sums**2 / count[:, None]).argmin(axis=1)


def _golden_section(
    f: Callable[[Float[np.ndarray, " r"]], Float[np.ndarray, " r"]],
    low: Float[np.ndarray, " r"],
    high: Float[np.ndarray, " r"],
    precision: float,
) -> Float[np.ndarray, " r"]:
    """Minimize r functions of one variable, each between its own bounds, to a fraction of their distance."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = f(left), f(right)
    for _ in range(math.ceil(math.log(precision) / math.log(ratio))):
        falls = at_left > at_right
        low, high = np.where(falls, left, low), np.where(falls, high, right)
        # of the two inner points one stays inside, so that each round needs a single new value of f
        kept, at_kept = np.where(falls, right, left), np.where(falls, at_right, at_left)
        new = low + high - kept  # the golden section is symmetric
        at_new = f(new)
        left, right = np.where(falls, kept, new), np.where(falls, new, kept)
        at_left, at_right = np.where(falls, at_kept, at_new), np.where(falls, at_new, at_kept)
    return (low + high) / 2
