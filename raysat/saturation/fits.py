"""The law of saturation, and its fit, as pure functions of numbers.

Two quantities measured at each batch size b follow

    y(b) = y_inf (1 + (b_c/b)^q)^(1/q),        y = N(b), iterations to a target loss, or y = 1/h(b).

At small b it is y_inf b_c / b, perfect scaling; at large b it is y_inf, the plateau. The two meet at b_c, whatever q
is: the critical batch size, b_N or b_h. q says how sharply y bends there.

With q = 1 it is the law of McCandlish et al. (2018), N(b) = N_inf (1 + b_N/b), which the paper has for h(b) (section
5), and the form of Lemma 3.1: with replacement `beta(b) = k_op (1 + (gamma/k_op - 1)/b)`. A freely tuned N(b) may bend
more sharply, for the best stepsize stops growing where it becomes unstable. Which law holds is decided by leaving batch
sizes out (`fit_law`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Real

LEAST_BATCH_SIZES = 3
"""A line through two points fits whatever they are."""

LEAST_FOR_BEND = 5
"""Batch sizes from which on q is fitted. Default: 5; for three parameters, and with one left out, one is to spare."""

BENDS = np.geomspace(1, 8, 13)
"""The q that are tried. Default: 1 to 8, in steps of 19 %, then between these. At q = 8 the law is a corner but for 9 %
at b_c itself, and with a bend softer than that of q = 1 the plateau, and with it b_c, would lie beyond what was run."""

ROUGH = 1e-4
"""Precision of the fits that are compared with each other; what is left of the squares is then good to 1e-8."""

EXACT = 1e-6
"""A scatter about the law below which there is nothing that another law could explain."""

REACH = 1e3
"""b_c is sought from b_min / REACH, where y changes by 0.1 % over all b, to b_max * REACH."""

_GRID = 240  # points of the first search: about ten a decade where b spans four decades


def log_law(
    b: Real[np.ndarray, " b"], log_b_c: float | Float[np.ndarray, "..."], q: float | Float[np.ndarray, "..."]
) -> Float[np.ndarray, "*r b"]:
    """`log y(b) - log y_inf`, for each of several b_c and q, whose shapes broadcast."""
    distance = np.asarray(log_b_c, dtype=float)[..., None] - np.log(b)
    sharpness = np.asarray(q, dtype=float)[..., None]
    return np.logaddexp(0, sharpness * distance) / sharpness


def law(b: Real[np.ndarray, " b"], y_inf: float, b_c: float, q: float) -> Float[np.ndarray, " b"]:
    """y(b)."""
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
        b_c: The critical batch size; nan where fewer than three y are usable.
        y_inf: The limit of y at large b.
        rms_log_residual: Root mean square of log y - log fit: 0.05 is a scatter of 5 %.
        q: How sharply y bends at b_c.
        edge: -1 where b_c is as small as was sought (y does not fall with b), 1 where it is as large (y falls like 1/b
            or faster), 0 otherwise.
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

    In log y because the noise of h and N is multiplicative: the fit then does not depend on the unit of y, and a batch
    size at which y is ten times smaller weighs as much. For a given b_c the best log y_inf is the mean of what the law
    leaves of log y, so that the rest is a search along log b_c: a grid for all replicates at once, then golden
    section.

    Args:
        b: Batch sizes.
        y: Positive values; nan where there is none.
        q: Of each replicate, or of all; its shape broadcasts to theirs.
        precision: Of log b_c, as a share of the grid's distance.

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
    centre = np.where(used, z, 0).sum(axis=1) / count
    z = np.where(used, z - centre[:, None], 0)

    grid = np.linspace(math.log(b.min() / REACH), math.log(b.max() * REACH), _GRID)
    best = np.empty(len(z), dtype=int)
    for value in np.unique(q):
        rows = q == value
        best[rows] = _grid_search(log_law(b, grid, value).T, z[rows], used[rows], count[rows])
    edge = np.where(best == 0, -1, np.where(best == _GRID - 1, 1, 0))
    around = np.clip(best, 1, _GRID - 2)
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
    """The fit with q = 1, or with the q that fits best where the batch sizes ask for it.

    Each batch size is left out in turn and foretold from the others, once by q = 1 and once by the q that fits them
    best. The latter is taken where its squared errors are smaller on average by more than the standard error of that
    average: the one-standard-error rule (Hastie, Tibshirani and Friedman 2009, section 7.10), which keeps the simpler
    law where it does as well.

    Args:
        b: Batch sizes.
        y: Positive values; nan where there is none.

    Returns:
        The fit, and whether q was fitted.
    """
    known = np.isfinite(y) & (y > 0)
    b, y, size = b[known], y[known], int(known.sum())
    plain = fit_saturation(b, y)
    if size < LEAST_FOR_BEND or float(plain.rms_log_residual) < EXACT:
        return plain, False
    rows = np.where(np.eye(size, dtype=bool), math.nan, y)  # one left out of each
    errors = []
    for q in (1.0, fit_bend(b, rows, rounds=2)):
        fit = fit_saturation(b, rows, q, ROUGH)
        foretold = np.log(fit.y_inf)[:, None] + log_law(b, np.log(fit.b_c), fit.q)
        errors.append(np.diagonal(foretold - np.log(y)) ** 2)
    gain = errors[0] - errors[1]
    if not gain.mean() > gain.std(ddof=1) / math.sqrt(size):
        return plain, False
    return fit_saturation(b, y, fit_bend(b, y)), True


def fit_bend(
    b: Real[np.ndarray, " b"], y: Float[np.ndarray, "*replicates b"], rounds: int = 3
) -> Float[np.ndarray, "*replicates"]:
    """The q from the first to the last of `BENDS` that leaves the least squares.

    Args:
        b: Batch sizes.
        y: Positive values; nan where there is none.
        rounds: How often a grid is laid between the neighbours of the best q; one is good to 19 %, three to 0.5 %.
    """
    rows = y.reshape(-1, len(b))
    tried = np.broadcast_to(BENDS[:, None], (len(BENDS), len(rows)))
    for _ in range(rounds):
        made = fit_saturation(b, np.broadcast_to(rows, (len(tried), *rows.shape)), tried, ROUGH)
        k = np.clip(made.rms_log_residual.argmin(axis=0), 1, len(tried) - 2)
        last, tried = tried, np.geomspace(tried[k - 1, range(len(rows))], tried[k + 1, range(len(rows))], len(BENDS))
    return last[made.rms_log_residual.argmin(axis=0), range(len(rows))].reshape(y.shape[:-1])


def _residuals(
    curves: Float[np.ndarray, "r b"],
    z: Float[np.ndarray, "r b"],
    used: Bool[np.ndarray, "r b"],
    count: Int[np.ndarray, " r"],
) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"]]:
    """The best log y_inf for each curve, and the sum of squares it leaves."""
    difference = z - curves  # (r, b)
    offset = np.where(used, difference, 0).sum(axis=1) / count
    return offset, (np.where(used, difference - offset[:, None], 0) ** 2).sum(axis=1)


def _grid_search(
    curves: Float[np.ndarray, "b k"],
    z: Float[np.ndarray, "r b"],
    used: Bool[np.ndarray, "r b"],
    count: Int[np.ndarray, " r"],
) -> Int[np.ndarray, " r"]:
    """Index of the best curve. The square is multiplied out, so that it takes three matrix products."""
    curves = curves - curves.mean(axis=0)
    weights = used.astype(float)
    sums = z.sum(axis=1, keepdims=True) - weights @ curves  # (r, k)
    return (weights @ curves**2 - 2 * z @ curves - sums**2 / count[:, None]).argmin(axis=1)


def _golden_section(
    f: Callable[[Float[np.ndarray, " r"]], Float[np.ndarray, " r"]],
    low: Float[np.ndarray, " r"],
    high: Float[np.ndarray, " r"],
    precision: float,
) -> Float[np.ndarray, " r"]:
    """Minimize r functions of one variable, each between its own bounds, to a share of their distance."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = f(left), f(right)
    for _ in range(math.ceil(math.log(precision) / math.log(ratio))):
        falls = at_left > at_right
        low, high = np.where(falls, left, low), np.where(falls, high, right)
        kept, at_kept = np.where(falls, right, left), np.where(falls, at_right, at_left)
        new = low + high - kept  # the golden section is symmetric
        at_new = f(new)
        left, right = np.where(falls, kept, new), np.where(falls, new, kept)
        at_left, at_right = np.where(falls, at_kept, at_new), np.where(falls, at_new, at_kept)
    return (low + high) / 2
