"""Intervals of 95 % from the scatter of seeds about a law: of its parameters, of the values, and of choices.

The scatter is the standard deviation of log values, about a fitted law or about their means over seeds. With i the seed
and b the batch size, the measured quantity is

    log y_i(b) = a_i + log f(b; theta) + e_i(b),        theta = (log b_c, log q),

where a_i is the level of a seed, common to all batch sizes because they share its w_0, and f is the law
(`raysat.saturation.fits`). Logarithms, because the scatter of h and N is multiplicative.

**Parameters** (`of_critical_batch`). Linearized about the fit, theta is a regression on the law's slopes s(b), so that

    cov theta = sigma^2 M^-1,    M = sum_ib s_ib s_ib^T,    s_ib = s(b) - mean of s over the batch sizes of seed i,

sigma^2 = sum e^2 / (values - seeds - parameters) being the variance of the values about the law with each seed's own
level. It measures how far values are from the law, and exists for a single seed too. With k > 1 seeds, the differences
between the seeds' own b_c give a second estimate of the variance, with k - 1 degrees of freedom:

    sandwich = k/(k - 1) sum_i (M^-1 sum_b s_ib e_i(b))^2        (Cameron and Miller 2015, section II.B)

If the sandwich is larger than chance explains (an F test at the level of `POOLED`), seeds do differ in b_c, and it is
the variance used. Otherwise the variance is the mean of both, weighted by k - 1 and `PRIOR` degrees of freedom as in a
moderated t (Smyth 2004). Errors that all seeds share are not part of it: the spacing of the stepsizes and of the
evaluations shifts all N(b) by the same eps(b), which adds `sum_b c(b)^2 eps(b)^2` to the variance, c(b) being the
derivative of log b_c by log y(b). The interval is Student's, symmetric in log b_c (Seber and Wild 2003, Nonlinear
Regression, section 5.1).

**Values** (`of_values`). The mean over k seeds varies by the variance of one seed's value over k. That variance is
assumed to be the same at all m batch sizes, and is the sum of two mean squares: that of the seeds' levels, with k - 1
degrees of freedom, and that of the remainder of each value, with (k - 1)(m - 1). The degrees of freedom of the sum are
Satterthwaite's (1946). With one seed there is only the scatter about the law.

**Choices** (`replicates`), such as the batch size of the least cost, depend on the means at several batch sizes: they
are repeated with values drawn from Student's distribution about these means. A seed's level changes no choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Real

from raysat.saturation.fits import SaturationFit, log_law, slopes

REPLICATES = 2000
"""Draws. Default: 2000; Efron and Tibshirani (1993, section 13.3) ask for 1000 or more for percentile intervals."""


PRIOR = 4
"""Degrees of freedom with which the scatter about the law is weighted against the seeds' own b_c. Default: 4, with
which the coverage on synthetic data is the same whether b_c differs between seeds a little or not at all;
benchmarks/coverage.py has real SGD."""

POOLED = 0.25
"""Level of the test whether seeds differ in b_c. Default: 0.25, as Bancroft (1964) recommends for pooling after a
preliminary test; at 0.05 a difference as large as the scatter is missed too often."""


def student_t(freedom: float) -> float:
    """Half the width of a 95 % interval in standard errors: the 97.5 % quantile of Student's t.

    Args:
        freedom: Degrees of freedom of the standard error; the result is nan if there are none.
    """
    from scipy.special import stdtrit  # loading it takes a quarter of a second, and most sweeps do not need it

    return float(stdtrit(freedom, 0.975)) if freedom > 0 else math.nan


def logarithms(values: Float[np.ndarray, "seeds b"]) -> Float[np.ndarray, "seeds b"]:
    """The logarithms of positive values; nan for any other value."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(values)
    return np.where(np.isfinite(logs), logs, math.nan)


def geometric_mean(values: Float[np.ndarray, "seeds b"]) -> Float[np.ndarray, " b"]:
    """The mean over seeds that the fits use; nan if no seed has a value."""
    logs = logarithms(values)
    count = np.isfinite(logs).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.exp(np.nansum(logs, axis=0) / np.where(count, count, math.nan))


@dataclass(frozen=True)
class Scatter:
    """The scatter of single values, in logs, after each seed's level is removed.

    Attributes:
        deviation: Standard deviation; nan if the values do not determine it.
        freedom: Its degrees of freedom.
    """

    deviation: float
    freedom: int


def about_law(
    b: Real[np.ndarray, " b"], values: Float[np.ndarray, "seeds b"], fit: SaturationFit, bent: bool
) -> Scatter:
    """The scatter about a fitted law.

    Args:
        b: Batch sizes.
        values: The fitted values of each seed; nan if absent.
        fit: The fit of their geometric mean.
        bent: Whether its q was fitted too.
    """
    left = logarithms(values) - log_law(b, np.log(fit.b_c), fit.q)
    return _of_residuals(left, 2 if bent else 1)


def of_seeds(values: Float[np.ndarray, "seeds b"]) -> Scatter:
    """The scatter of several seeds about their means."""
    logs = logarithms(values)
    known = np.isfinite(logs).any(axis=0)
    return _of_residuals(logs[:, known] - np.nanmean(logs[:, known], axis=0), int(known.sum()) - 1)


def _of_residuals(left: Float[np.ndarray, "seeds b"], parameters: int) -> Scatter:
    left = left[np.isfinite(left).any(axis=1)]
    # one degree of freedom is lost for each seed's level, and one for each parameter
    freedom = int(np.isfinite(left).sum()) - len(left) - parameters
    if freedom < 1:
        return Scatter(math.nan, 0)
    left = left - np.nanmean(left, axis=1, keepdims=True)
    return Scatter(math.sqrt(np.nansum(left**2) / freedom), freedom)


def of_critical_batch(
    b: Real[np.ndarray, " b"],
    values: Float[np.ndarray, "seeds b"],
    fit: SaturationFit,
    bent: bool,
    resolution: Float[np.ndarray, " b"] | None = None,
) -> float:
    """The interval of b_c, as the factor between the fit and either end; nan if the scatter is not known.

    Args:
        b: Batch sizes.
        values: The fitted values of each seed; nan if absent.
        fit: The fit of their geometric mean.
        bent: Whether its q was fitted too.
        resolution: eps(b), the error of log y(b) that all seeds share. Default: none.
    """
    left = logarithms(values) - log_law(b, np.log(fit.b_c), fit.q)
    used, parameters = np.isfinite(left), 2 if bent else 1
    scatter = _of_residuals(left, parameters)
    if not scatter.freedom:
        return math.nan
    design = slopes(b, float(fit.b_c), float(fit.q))[:parameters]  # (p, b)
    levels = np.where(used, design[:, None], 0).sum(2) / np.maximum(used.sum(1), 1)  # (p, seeds)
    centred = np.where(used, design[:, None] - levels[:, :, None], 0)  # (p, seeds, b)
    inverse = np.linalg.pinv(np.einsum("pib,qib->pq", centred, centred))
    variance, freedom = scatter.deviation**2 * inverse[0, 0], scatter.freedom
    if used.any(axis=1).sum() > 1:
        variance, freedom = _of_several(np.where(used, left, 0), centred, inverse, variance, freedom)
    if resolution is not None:
        answer = inverse[0] @ centred.sum(1)  # (b,); c(b) of the module's docstring
        variance += float(np.nansum((answer * resolution) ** 2))
    # symmetric in log b_c; 500, since exp overflows at 709
    return math.exp(min(student_t(freedom) * math.sqrt(variance), 500.0))


def _of_several(
    left: Float[np.ndarray, "seeds b"],
    centred: Float[np.ndarray, "p seeds b"],
    inverse: Float[np.ndarray, "p p"],
    variance: float,
    freedom: int,
) -> tuple[float, int]:
    """The variance of log b_c with several seeds, and its degrees of freedom; see the module's docstring.

    Args:
        left: Each log value minus the law; 0 if absent.
        centred: The law's slopes minus their mean over each seed's batch sizes; 0 if there is no value.
        inverse: M^-1.
        variance: The variance by the scatter about the law.
        freedom: Its degrees of freedom.
    """
    from scipy.special import fdtri  # as above

    known = (centred != 0).any(axis=(0, 2))  # a seed with a single value has no slope
    left, centred, seeds = left[known], centred[:, known], int(known.sum())
    if seeds < 2:
        return variance, freedom
    # by how much each seed's residuals move log b_c, to first order
    of_each = np.einsum("p,pib,ib->i", inverse[0], centred, left)
    sandwich = seeds / (seeds - 1) * float((of_each**2).sum())
    within, within_freedom = 0.0, 0  # of the values about each seed's own fit, in which b_c may differ between seeds
    for design, values in zip(centred.swapaxes(0, 1), left, strict=True):
        at = (design != 0).any(axis=0)
        own, values = design[:, at].T, values[at] - values[at].mean()
        within += float(np.square(values - own @ np.linalg.lstsq(own, values, rcond=None)[0]).sum())
        within_freedom += int(at.sum()) - 1 - len(design)
    if within_freedom > 0:
        expected = within / within_freedom * inverse[0, 0]
        if sandwich > expected * float(fdtri(seeds - 1, within_freedom, 1 - POOLED)):
            return max(sandwich, variance), seeds - 1
    prior = min(PRIOR, freedom)
    return (prior * variance + (seeds - 1) * sandwich) / (prior + seeds - 1), prior + seeds - 1


def of_values(
    values: Float[np.ndarray, "seeds b"],
    alone: Scatter | None = None,
    resolution: float | Float[np.ndarray, " b"] = 0.0,
) -> Float[np.ndarray, "2 b"]:
    """The interval of the geometric mean over seeds at each batch size; nan if there is none.

    Args:
        values: Positive values; nan if a seed has none.
        alone: The scatter about a law, used if there is only one seed. Default: one seed has no interval.
        resolution: The error of each log value that all seeds share.
    """
    logs = logarithms(values)
    logs = logs[np.isfinite(logs).any(axis=1)] if logs.size else logs
    mean, count = np.log(geometric_mean(np.exp(logs))), np.isfinite(logs).sum(axis=0)
    if len(logs) < 2:
        scatter = alone or Scatter(math.nan, 0)
        # `0 * mean` gives it the shape of the mean, and nan if there is no value
        half = student_t(scatter.freedom) * np.sqrt(scatter.deviation**2 + np.square(resolution) + 0 * mean)
        return _ends(mean, half)
    levels = np.nanmean(logs - mean, axis=1)  # a_i of the module's docstring, up to their mean
    parts = [(levels.var(ddof=1), len(levels) - 1)]
    if (left := of_seeds(values)).freedom:  # 1/m of a value's own variance is in that of the levels already
        parts.append((left.deviation**2 * (1 - 1 / max((count > 0).sum(), 1)), left.freedom))
    variance = sum(part for part, _ in parts)
    # Satterthwaite: the chi square with the same mean and variance as the sum
    freedom = variance**2 / sum(part**2 / of for part, of in parts) if variance else 1.0
    half = student_t(freedom) * np.sqrt(variance / np.where(count, count, math.nan) + np.square(resolution))
    return _ends(mean, half)


def _ends(mean: Float[np.ndarray, " b"], half: Float[np.ndarray, " b"]) -> Float[np.ndarray, "2 b"]:
    """The ends of intervals in logs, as values; 0 and infinity if they underflow or overflow."""
    with np.errstate(over="ignore", under="ignore"):
        return np.exp(mean + np.array([-half, half]))


def replicates(
    values: Float[np.ndarray, "seeds b"],
    alone: Scatter | None = None,
    resolution: float | Float[np.ndarray, " b"] = 0.0,
    number: int = REPLICATES,
    seed: int = 0,
) -> Float[np.ndarray, "number b"]:
    """Draw replicates of the geometric means over seeds, without the level that all batch sizes of a seed share.

    Args:
        values: Positive values; nan if a seed has none.
        alone: The scatter about a law, used if there is only one seed.
        resolution: The error of each log value that all seeds share.
        number: Number of replicates.
        seed: Seed of the generator: the same values give the same replicates.

    Returns:
        The means; nan if the scatter is not known.
    """
    logs = logarithms(values)
    several = np.isfinite(logs).any(axis=1).sum() > 1
    scatter = of_seeds(values) if several else alone
    if scatter is None or not scatter.freedom:
        return np.full((1, values.shape[1]), math.nan)
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal((number, values.shape[1]))
    # Student's: one chi square for all batch sizes of a replicate, which share the estimated deviation
    noise *= np.sqrt(scatter.freedom / generator.chisquare(scatter.freedom, (number, 1)))
    count = np.isfinite(logs).sum(axis=0)
    error = np.sqrt(scatter.deviation**2 / np.where(count, count, math.nan) + np.square(resolution))
    with np.errstate(over="ignore", under="ignore"):
        return geometric_mean(values) * np.exp(error * noise)


def percentiles(drawn: Float[np.ndarray, "replicates *rest"]) -> Float[np.ndarray, "2 *rest"]:
    """The 95 % percentile interval over the first axis, without nan; its ends are replicates and may be inf."""
    columns = drawn.reshape(len(drawn), -1).T
    ends = [
        np.quantile(kept, [0.025, 0.975], method="inverted_cdf") if len(kept) else [math.nan, math.nan]
        for kept in (column[~np.isnan(column)] for column in columns)
    ]
    return np.array(ends, dtype=float).T.reshape(2, *drawn.shape[1:])
