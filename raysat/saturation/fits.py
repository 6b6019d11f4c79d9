"""Estimators of the critical batch size, as pure functions of numbers.

Two quantities measured at each batch size b follow the same law,

    1/h(b) = (1/h_inf) (1 + b_h/b)        h(b): convergence exponent (section 5 of the paper)
    N(b)   = N_inf (1 + b_N/b)            N(b): iterations to a target loss (Shallue et al. 2019)

The second is the law of McCandlish et al. (2018). Lemma 3.1 has the same form: with replacement
`beta(b) = k_op (1 + (gamma/k_op - 1)/b)`.

Uncertainty comes from resampling seeds, not trials: a seed has the same w_0 at every batch size, so that its errors at
different batch sizes go together. Of one seed the fit's residuals are resampled instead, which does not show how seeds
differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from raysat.text import percent

REPLICATES = 2000
"""Bootstrap replicates. Default: 2000, as Efron and Tibshirani (1993, section 13.3) ask of percentile intervals: 1000
or more."""

LEAST_BATCH_SIZES = 3
"""A line through two points fits whatever they are."""

_REACH = 1e3  # b_c is sought from b_min / _REACH, where y changes by 0.1 % over all b, to b_max * _REACH
_GRID = 240  # points of the first search: about ten a decade where b spans four decades


def steps_to_target(iterations: Real[np.ndarray, " t"], losses: Float[np.ndarray, " t"], eps: float) -> float:
    """N(b; eps): the first iteration at which the loss is at most eps, log L taken linear in t between evaluations.

    Args:
        iterations: Iterations of the evaluations, ascending, the first of them 0.
        losses: The loss at each.
        eps: The target loss.

    Returns:
        The iteration, a fraction; 0 where L(w_0) <= eps; nan where no evaluation reaches eps.

    Example:
        >>> steps_to_target(np.array([0, 10]), np.array([1.0, 0.01]), 0.1)
        5.0
    """
    reached = np.flatnonzero(losses <= eps)
    if not reached.size:
        return math.nan
    k = int(reached[0])
    if k == 0:
        return float(iterations[0])
    above, below = np.log(losses[k - 1]), np.log(max(losses[k], np.finfo(float).tiny))
    share = (above - math.log(eps)) / (above - below)
    return float(iterations[k - 1] + share * (iterations[k] - iterations[k - 1]))


def choose_targets(initial: Float[np.ndarray, " trials"], deepest: Float[np.ndarray, " trials"]) -> tuple[float, ...]:
    """Up to three loss levels that all trials start above and reach.

    They lie at 1/2, 3/4 and all of the way, in log L, from the smallest initial loss to the deepest loss that every
    trial reaches, rounded up to two digits. An early level sees the large eigenvalues of K, a late one the small ones.

    Args:
        initial: Each trial's L(w_0).
        deepest: Each trial's smallest loss.

    Returns:
        The levels, descending; none where some trial stays above the smallest initial loss.
    """
    if not (initial.size and np.all(initial > 0) and np.all(deepest > 0)):
        return ()
    start, end = initial.min(), deepest.max()
    if not end < start:
        return ()
    levels = {_round_up(float(start ** (1 - share) * end**share)) for share in (0.5, 0.75, 1.0)}
    return tuple(sorted((level for level in levels if level < start), reverse=True))


def _round_up(value: float) -> float:
    """The smallest number of two significant digits that is not below `value`."""
    rounded = float(f"{value:.1e}")
    if rounded < value:
        rounded = float(f"{rounded + 10.0 ** (math.floor(math.log10(value)) - 1):.1e}")
    return rounded


@dataclass(frozen=True)
class SaturationFit:
    """Fits of y(b) = y_inf (1 + b_c/b), one for each replicate.

    Attributes:
        b_c: The critical batch size; nan where fewer than three y are usable.
        y_inf: The limit of y at large b.
        rms_log_residual: Root mean square of log y - log fit: 0.05 is a scatter of 5 %.
        edge: -1 where b_c is as small as was sought (y does not fall with b), 1 where it is as large (y falls like 1/b
            or faster), 0 otherwise.
    """

    b_c: Float[np.ndarray, "*replicates"]
    y_inf: Float[np.ndarray, "*replicates"]
    rms_log_residual: Float[np.ndarray, "*replicates"]
    edge: Int[np.ndarray, "*replicates"]


def fit_saturation(b: Real[np.ndarray, " b"], y: Float[np.ndarray, "*replicates b"]) -> SaturationFit:
    """Fit y(b) = y_inf (1 + b_c/b) by least squares in log y.

    In log y because the noise of h and N is multiplicative: the fit then does not depend on the unit of y, and a batch
    size at which y is ten times smaller weighs as much. For a given b_c the best log y_inf is the mean of
    log y - log(1 + b_c/b), so that what is left is a search along log b_c: a grid for all replicates at once, then
    golden section to 1e-8.

    Args:
        b: Batch sizes.
        y: Positive values; nan where there is none.

    Returns:
        One fit for each of the leading axes of y.

    Example:
        >>> b = np.array([1, 2, 4, 8, 16, 32, 64, 256])
        >>> N = np.array([410.0, 220, 135, 85, 60, 50, 45, 40])
        >>> round(float(fit_saturation(b, N).b_c), 1)
        9.6
    """
    z = np.log(y.reshape(-1, len(b)))  # (r, b)
    used = np.isfinite(z)
    count = used.sum(axis=1)
    enough = count >= LEAST_BATCH_SIZES
    count = np.maximum(count, 1)
    centre = np.where(used, z, 0).sum(axis=1) / count
    z = np.where(used, z - centre[:, None], 0)

    grid = np.linspace(math.log(b.min() / _REACH), math.log(b.max() * _REACH), _GRID)
    best = _grid_search(grid, b, z, used, count)
    edge = np.where(best == 0, -1, np.where(best == _GRID - 1, 1, 0))
    around = np.clip(best, 1, _GRID - 2)
    refined = _golden_section(
        lambda log_b_c: _residuals(log_b_c, b, z, used, count)[1], grid[around - 1], grid[around + 1]
    )
    log_b_c = np.where(edge == 0, refined, grid[best])
    offset, sse = _residuals(log_b_c, b, z, used, count)

    shaped = lambda values: np.where(enough, values, math.nan).reshape(y.shape[:-1])  # noqa: E731
    return SaturationFit(
        b_c=shaped(np.exp(log_b_c)),
        y_inf=shaped(np.exp(offset + centre)),
        rms_log_residual=shaped(np.sqrt(sse / count)),
        edge=np.where(enough, edge, 0).reshape(y.shape[:-1]),
    )


def _residuals(
    log_b_c: Float[np.ndarray, " r"],
    b: Real[np.ndarray, " b"],
    z: Float[np.ndarray, "r b"],
    used: Bool[np.ndarray, "r b"],
    count: Int[np.ndarray, " r"],
) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"]]:
    """The best log y_inf for each b_c, and the sum of squares it leaves."""
    difference = z - np.log1p(np.exp(log_b_c)[:, None] / b)  # (r, b)
    offset = np.where(used, difference, 0).sum(axis=1) / count
    return offset, (np.where(used, difference - offset[:, None], 0) ** 2).sum(axis=1)


def _grid_search(
    grid: Float[np.ndarray, " k"],
    b: Real[np.ndarray, " b"],
    z: Float[np.ndarray, "r b"],
    used: Bool[np.ndarray, "r b"],
    count: Int[np.ndarray, " r"],
) -> Int[np.ndarray, " r"]:
    """Index of the grid's best log b_c. The square is multiplied out, so that it takes three matrix products."""
    curves = np.log1p(np.exp(grid)[:, None] / b).T  # (b, k)
    curves -= curves.mean(axis=0)
    weights = used.astype(float)
    sums = z.sum(axis=1, keepdims=True) - weights @ curves  # (r, k)
    return (weights @ curves**2 - 2 * z @ curves - sums**2 / count[:, None]).argmin(axis=1)


def _golden_section(
    f: Callable[[Float[np.ndarray, " r"]], Float[np.ndarray, " r"]],
    low: Float[np.ndarray, " r"],
    high: Float[np.ndarray, " r"],
) -> Float[np.ndarray, " r"]:
    """Minimize r functions of one variable, each between its own bounds, to 1e-8 of a bracket below 1."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = f(left), f(right)
    for _ in range(math.ceil(math.log(1e-8) / math.log(ratio))):
        falls = at_left > at_right
        low, high = np.where(falls, left, low), np.where(falls, high, right)
        kept, at_kept = np.where(falls, right, left), np.where(falls, at_right, at_left)
        new = low + high - kept  # the golden section is symmetric
        at_new = f(new)
        left, right = np.where(falls, kept, new), np.where(falls, new, kept)
        at_left, at_right = np.where(falls, at_kept, at_new), np.where(falls, at_new, at_kept)
    return (low + high) / 2


def resample_seeds(
    values: Float[np.ndarray, "seeds b"], replicates: int = REPLICATES, seed: int = 0
) -> Float[np.ndarray, "replicates b"]:
    """Geometric means over seeds drawn with replacement: the cluster bootstrap, a seed with all its batch sizes.

    Args:
        values: Positive values; nan where a seed has none. A replicate then uses those of its seeds that have one.
        replicates: Number of replicates.
        seed: Of the generator: the same values give the same replicates.

    Returns:
        The means; nan where none of a replicate's seeds has a value.
    """
    n_seeds = len(values)
    drawn = np.random.default_rng(seed).multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=replicates)
    distinct, which = np.unique(drawn, axis=0, return_inverse=True)  # few seeds make few different replicates
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(values)
        used = np.isfinite(logs)
        return np.exp((distinct @ np.where(used, logs, 0)) / (distinct @ used))[which]


def resample_residuals(
    b: Real[np.ndarray, " b"],
    y: Float[np.ndarray, " b"],
    fit: SaturationFit,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Float[np.ndarray, "replicates b"]:
    """The fitted curve with the fit's own residuals, in log y, drawn anew for each b: the residual bootstrap.

    The residuals are scaled by sqrt(m/(m-2)) for the two parameters that were fitted to m values, without which they
    are smaller than the errors (Davison and Hinkley 1997, section 6.2.3).

    Args:
        b: Batch sizes, at least three.
        y: What was fitted; no nan.
        fit: The fit of y.
        replicates: Number of replicates.
        seed: Of the generator: the same values give the same replicates.
    """
    fitted = np.log(fit.y_inf * (1 + fit.b_c / b))
    residuals = (np.log(y) - fitted) * math.sqrt(len(b) / (len(b) - 2))
    return np.exp(fitted + np.random.default_rng(seed).choice(residuals, (replicates, len(b))))


def geometric_mean(values: Float[np.ndarray, "seeds b"]) -> Float[np.ndarray, " b"]:
    """The mean over seeds that the fits use; nan where no seed has a value."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(values)
        used = np.isfinite(logs)
        return np.exp(np.where(used, logs, 0).sum(axis=0) / used.sum(axis=0))


def interval(replicates: Float[np.ndarray, "replicates *rest"]) -> Float[np.ndarray, "2 *rest"]:
    """The 95 % percentile interval over the first axis, nan left out; its ends are replicates: they may be inf."""
    columns = replicates.reshape(len(replicates), -1).T
    ends = [
        np.quantile(kept, [0.025, 0.975], method="inverted_cdf") if len(kept) else [math.nan, math.nan]
        for kept in (column[~np.isnan(column)] for column in columns)
    ]
    return np.array(ends, dtype=float).T.reshape(2, *replicates.shape[1:])


def student_t(freedom: int) -> float:
    """Half the width of a 95 % interval in standard errors: the 97.5 % quantile of Student's t.

    Args:
        freedom: Degrees of freedom of the standard error.
    """
    from scipy.special import stdtrit  # loading it takes a quarter of a second, and most sweeps do not need it

    return float(stdtrit(freedom, 0.975))


@dataclass(frozen=True)
class CriticalBatch:
    """A measured critical batch size, or the reason why there is none.

    Attributes:
        value: b_h or b_N in samples; nan where the data do not support a fit.
        low: Lower end of the 95 % interval; 0 where it is below all that was sought.
        high: Upper end; inf where it is above all that was sought.
        interval: What was resampled for it: `seeds`, or of one seed the fit's `residuals`; empty without a value.
        asymptote: h_inf or N_inf, in the unit of the quantity.
        rms_log_residual: Of the fit, refused or not: 0.05 is a scatter of 5 %; nan where there was nothing to fit.
        range: Largest over smallest of the quantity's means over the batch sizes.
        seeds: Seeds with a value.
        batch_sizes: Batch sizes with a value.
        reason: Reservations in words; empty where there are none.
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    interval: Literal["", "seeds", "residuals"] = ""
    asymptote: float = math.nan
    rms_log_residual: float = math.nan
    range: float = math.nan
    seeds: int = 0
    batch_sizes: int = 0
    reason: str = ""


def critical_batch(
    b: Real[np.ndarray, " b"], values: Float[np.ndarray, "seeds b"], quantity: Literal["h", "N"]
) -> CriticalBatch:
    """Fit the critical batch size to a quantity of several seeds, or say why that cannot be done.

    The fit is of the geometric mean over seeds. It is refused where fewer than three batch sizes have a value, where a
    value is not positive, where the quantity varies with b by less than its own interval over seeds or than it scatters
    about the fit, and where b_c comes out above the largest batch size, where there is nothing to hold it. With fewer
    than about five seeds a percentile interval is too narrow: two seeds make three different replicates.

    Args:
        b: Batch sizes, ascending.
        values: h or N; nan where a seed has none.
        quantity: `h`, of which 1/h follows the law, or `N`, which follows it.
    """
    counts = {
        "seeds": int(np.isfinite(values).any(axis=1).sum()),
        "batch_sizes": int(np.isfinite(values).any(axis=0).sum()),
    }
    if (values <= 0).any():
        where = ", ".join(f"{size:g}" for size in b[(values <= 0).any(axis=0)])
        why = "the loss did not fall" if quantity == "h" else "the target is not below the initial loss"
        return CriticalBatch(**counts, reason=f"{quantity} is not positive at b = {where}: {why}")
    mean = geometric_mean(values)
    usable = np.isfinite(mean)
    b, values, mean = b[usable], values[np.isfinite(values).any(axis=1)][:, usable], mean[usable]
    spread = float(mean.max() / mean.min()) if mean.size else math.nan
    if counts["batch_sizes"] < LEAST_BATCH_SIZES:
        found = f"{counts['batch_sizes']} batch size{'s' * (counts['batch_sizes'] != 1)} with a value"
        return CriticalBatch(**counts, range=spread, reason=f"{found}, a fit needs {LEAST_BATCH_SIZES}")

    law = (lambda q: 1 / q) if quantity == "h" else (lambda q: q)
    fit = fit_saturation(b, law(mean))
    found = {**counts, "range": spread, "rms_log_residual": float(fit.rms_log_residual)}
    several = counts["seeds"] > 1
    replicates = resample_seeds(values) if several else resample_residuals(b, law(mean), fit)
    if refusal := _refusal(b, fit, spread, _width(replicates) if several else 1.0, quantity):
        return CriticalBatch(**found, reason=refusal)
    distinct, which = np.unique(law(replicates) if several else replicates, axis=0, return_inverse=True)
    resampled = fit_saturation(b, distinct)
    low, high = interval(np.select([resampled.edge < 0, resampled.edge > 0], [0.0, math.inf], resampled.b_c)[which])
    return CriticalBatch(
        **found,
        value=float(fit.b_c),
        low=float(low),
        high=float(high),
        interval="seeds" if several else "residuals",
        asymptote=float(law(fit.y_inf)),
    )


def _width(replicates: Float[np.ndarray, "replicates b"]) -> float:
    """The median over b of the interval's upper over its lower end.

    A replicate's level, which is common to its batch sizes and says nothing of b, is taken out first.
    """
    logs = np.log(replicates)
    low, high = interval(np.exp(logs - np.nanmean(logs, axis=1, keepdims=True)))
    return float(np.nanmedian(high / low))


def _refusal(b: Real[np.ndarray, " b"], fit: SaturationFit, spread: float, width: float, quantity: str) -> str:
    """Why the fit says nothing of b_c, or an empty string."""
    if not math.isfinite(fit.b_c):
        return f"{quantity} spans more than floating-point numbers can hold"
    if fit.edge < 0:
        towards = "rise" if quantity == "h" else "fall"
        return f"no dependence on b is visible: {quantity} does not {towards} as b grows"
    varies = f"no dependence on b is visible: {quantity} varies by {percent(spread - 1)} over the batch sizes"
    visible = math.log((1 + fit.b_c / b.min()) / (1 + fit.b_c / b.max()))
    scatter = float(fit.rms_log_residual) * math.sqrt(len(b) / (len(b) - 2))  # two parameters were fitted
    if visible < scatter:
        return f"{varies} and scatters by {percent(scatter)} about the fit"
    if visible < math.log(width):
        along = f"{percent(math.expm1(visible))} along the fit"
        return f"{varies}, {along}, less than its interval over seeds at one of them ({percent(width - 1)})"
    if fit.b_c > b.max():
        return f"beyond the largest batch size run ({b.max():g}): no saturation is seen up to it"
    return ""
