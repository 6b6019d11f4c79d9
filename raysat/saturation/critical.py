"""The critical batch size fitted to a measured quantity, with its interval, or the reason why there is none.

The quantity is h(b), the decay of log L per iteration over T iterations, or N(b), the iterations to a target loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Real

from raysat.saturation.fits import LEAST_BATCH_SIZES, REACH, SaturationFit, fit_law, log_law
from raysat.saturation.intervals import (
    geometric_mean,
    of_critical_batch,
    of_seeds,
    student_t,
)
from raysat.text import percent


@dataclass(frozen=True)
class CriticalBatch:
    """A measured critical batch size, or the reason why there is none.

    Attributes:
        value: b_h or b_N in samples; nan if the data do not support a fit.
        low: Lower end of the 95 % interval; 0 if it is below the search range.
        high: Upper end; inf if it is above the search range.
        interval: Its source: the scatter of several `seeds` about the fit, or the `residuals` of a single seed; empty
            if there is no interval.
        q: How sharply the law bends at b_c (`raysat.saturation.fits`); 1 unless the data support another value.
        asymptote: h_inf or N_inf, in the unit of the quantity.
        rms_log_residual: Of the fit, accepted or not: 0.05 is a scatter of 5 %; nan if there was nothing to fit.
        range: Largest over smallest of the quantity's means over the batch sizes.
        seeds: Seeds with a value.
        batch_sizes: Batch sizes with a value.
        reason: Why there is no value or no interval, or another reservation, in words; empty if none.
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    interval: Literal["", "seeds", "residuals"] = ""
    q: float = math.nan
    asymptote: float = math.nan
    rms_log_residual: float = math.nan
    range: float = math.nan
    seeds: int = 0
    batch_sizes: int = 0
    reason: str = ""


def critical_batch(
    b: Real[np.ndarray, " b"],
    values: Float[np.ndarray, "seeds b"],
    quantity: Literal["h", "N"],
    resolution: Float[np.ndarray, " b"] | None = None,
) -> CriticalBatch:
    """Fit the critical batch size to a quantity measured with one or several seeds, or say why that cannot be done.

    The fit is to the geometric mean over seeds, with the interval of `raysat.saturation.intervals`. It is refused if
    fewer than three batch sizes have a value, if a value is not positive, if the target is less than one iteration
    away, if the quantity varies with b by less than its interval over seeds or its scatter about the fit, or if b_c
    lies beyond the batch sizes that were run, where no data constrain it.

    Args:
        b: Batch sizes, ascending.
        values: h or N; nan if a seed has none.
        quantity: `h` (1/h follows the law) or `N` (which follows it).
        resolution: The error of each batch size's log N that all seeds share, such as that due to the spacing of the
            stepsizes.
    """
    counts: dict[str, Any] = {
        "seeds": int(np.isfinite(values).any(axis=1).sum()),
        "batch_sizes": int(np.isfinite(values).any(axis=0).sum()),
    }
    if (values <= 0).any():  # no logarithm; false for nan, a value that is absent
        where = ", ".join(f"{size:g}" for size in b[(values <= 0).any(axis=0)])
        why = "the loss did not fall" if quantity == "h" else "the target is not below the initial loss"
        return CriticalBatch(**counts, reason=f"{quantity} is not positive at b = {where}: {why}")
    mean = geometric_mean(values)
    usable = np.isfinite(mean)
    # keep the seeds with any value, and the batch sizes at which some seed has one
    b, values, mean = b[usable], values[np.isfinite(values).any(axis=1)][:, usable], mean[usable]
    resolution = None if resolution is None else resolution[usable]
    with np.errstate(over="ignore"):
        spread = float(mean.max() / mean.min()) if mean.size else math.nan
    if counts["batch_sizes"] < LEAST_BATCH_SIZES:
        found = f"{counts['batch_sizes']} batch size{'s' * (counts['batch_sizes'] != 1)} with a value"
        return CriticalBatch(**counts, range=spread, reason=f"{found}, a fit needs {LEAST_BATCH_SIZES}")
    if quantity == "N" and (mean < 1).any():
        where = ", ".join(f"{size:g}" for size in b[mean < 1])
        reason = f"the target is less than one iteration away at b = {where}: take a lower one"
        return CriticalBatch(**counts, range=spread, reason=reason)

    y = 1 / values if quantity == "h" else values  # what follows the law
    fit, bent = fit_law(b, geometric_mean(y))
    found = {**counts, "range": spread, "rms_log_residual": float(fit.rms_log_residual)}
    if refusal := _refusal(b, fit, spread, _width(values), quantity):
        return CriticalBatch(**found, reason=refusal)
    factor, b_c = of_critical_batch(b, y, fit, bent, resolution), float(fit.b_c)
    return CriticalBatch(
        **found,
        value=b_c,
        low=_sought(b_c / factor, b),
        high=_sought(b_c * factor, b),
        interval="" if math.isnan(factor) else "seeds" if counts["seeds"] > 1 else "residuals",
        q=float(fit.q),
        asymptote=float(1 / fit.y_inf if quantity == "h" else fit.y_inf),
        reason="each seed has too few batch sizes to tell its level: no interval" * math.isnan(factor),
    )


def _sought(end: float, b: Real[np.ndarray, " b"]) -> float:
    """The end of an interval; 0 or infinity if it is outside the search range."""
    return 0.0 if end < b.min() / REACH else math.inf if end > b.max() * REACH else end


def _width(values: Float[np.ndarray, "seeds b"]) -> float:
    """Upper over lower end of the interval at one batch size, without the seeds' levels; 1 if there is no scatter."""
    scatter = of_seeds(values)
    if not scatter.freedom:
        return 1.0
    # a mean over seeds has 1/seeds of one value's variance; removing levels over m batch sizes leaves 1 - 1/m of it
    share = (1 - 1 / values.shape[1]) / np.median(np.isfinite(values).sum(axis=0))
    # exp overflows at 709; a factor of exp(500) is beyond every range of b
    return math.exp(min(2 * student_t(scatter.freedom) * scatter.deviation * math.sqrt(share), 500.0))


def _refusal(b: Real[np.ndarray, " b"], fit: SaturationFit, spread: float, width: float, quantity: str) -> str:
    """Return why the fit does not determine b_c; an empty string if it does."""
    if not math.isfinite(fit.b_c):
        return f"{quantity} spans more than floating-point numbers can hold"
    if fit.edge < 0:
        towards = "rise" if quantity == "h" else "fall"
        return f"no dependence on b is visible: {quantity} does not {towards} as b grows"
    varies = f"no dependence on b is visible: {quantity} varies by {percent(spread - 1)} over the batch sizes"
    # judged by the fit, to which all values contribute, because the two at the ends scatter
    ends = log_law(b[[0, -1]], math.log(fit.b_c), float(fit.q))
    visible = float(ends[0] - ends[1])  # by how much the fit, in logs, changes over the batch sizes
    scatter = float(fit.rms_log_residual) * math.sqrt(len(b) / (len(b) - 2))  # two parameters were fitted
    if visible < scatter:
        return f"{varies} and scatters by {percent(scatter)} about the fit"
    if visible < math.log(width):
        along = f"{percent(math.expm1(visible))} along the fit"
        return f"{varies}, {along}, less than its interval over seeds at one of them ({percent(width - 1)})"
    if fit.b_c < b.min():
        left = percent(math.expm1(ends[0]))
        return f"below the smallest batch size run ({b.min():g}), where {quantity} is {left} from its limit"
    if fit.b_c > b.max():
        return f"beyond the largest batch size run ({b.max():g}): no saturation is seen up to it"
    return ""
