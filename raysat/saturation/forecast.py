"""Forecast of a sweep from the statistics at initialization: N(b), the best stepsizes, and the critical batch sizes.

Loss curves are those of the linearized network: of the mean loss (`raysat.saturation.recursion`), and of the typical
run (`raysat.saturation.typical`), which is what an experiment measures. The docstrings there derive them and say when
they fail. Critical batch sizes are refused for the same reasons as measured ones (`raysat.saturation.critical`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from raysat.saturation.critical import CriticalBatch, critical_batch
from raysat.saturation.formulas import beta
from raysat.saturation.recursion import Spectrum, largest_stable, loss_curves, noise_factor
from raysat.saturation.targets import attainable, steps_to_target
from raysat.saturation.typical import typical_steps
from raysat.text import number

GRID = 2.0 ** np.array([*np.arange(-4, -0.125, 0.25), -0.125, -0.0625])
"""The stepsizes among which the best is sought, as fractions of the largest stable one (the largest at which SGD on the
linearized network does not diverge): powers of 2^(1/4), and smaller steps near 1, where the best ones of large batches
lie."""

AROUND = 0.8, 2.1
"""Range in which the typical run's best stepsize is sought, in units of the mean loss's: it is larger if single bad
batches raise the mean, on steep spectra nearly twice as large."""

AHEAD = 1.5
"""The multiple of T to which the mean loss is followed: a typical run may reach the target earlier, and its best
stepsize is sought near that of the mean loss."""


@dataclass(frozen=True)
class Forecast:
    """A forecast from the statistics at initialization.

    Attributes:
        by_batch: One row a batch size: `N`, the iterations of a typical run with its best stepsize `eta`; `N_mean`,
            those of the mean loss with its best stepsize `eta_mean`; `eta_max`, the largest stable stepsize;
            `eta_theory` = 1/beta(b), and the mean loss's N and h under it: `N_theory` and `h_theory`.
        typical: b_N, fitted to N; if it has no value, `remarks` say why.
        mean: b_N, fitted to N_mean; likewise.
        theory: b_N, fitted to N_theory; likewise.
        b_h_theory: b_h, fitted to h_theory, at T iterations; likewise.
        b_star: gamma / k_op.
        n: Training samples.
        target: The loss to which N belongs.
        iterations: T.
        remarks: Why a critical batch size is refused, and at which batch sizes the best stepsize is the smallest or
            largest tried.
    """

    by_batch: pd.DataFrame
    typical: CriticalBatch
    mean: CriticalBatch
    theory: CriticalBatch
    b_h_theory: CriticalBatch
    b_star: float
    n: int
    target: float
    iterations: int
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Tuned:
    """N(b; eps) with each batch size's best stepsize, and that stepsize as a fraction of the largest stable one.

    Attributes:
        steps: N of the typical run; nan if the target is not reached within the iterations followed.
        share: Its best stepsize.
        mean_steps: N of the mean loss; likewise.
        mean_share: Its best stepsize.
    """

    steps: Float[np.ndarray, " k"]
    share: Float[np.ndarray, " k"]
    mean_steps: Float[np.ndarray, " k"]
    mean_share: Float[np.ndarray, " k"]


def tuned_steps(
    spectrum: Spectrum, b: Int[np.ndarray, " k"], eps: float, iterations: int, *, replacement: bool = False
) -> Tuned:
    """Compute N(b; eps) with each batch size's best stepsize of `GRID`.

    Args:
        spectrum: The spectrum.
        b: Batch sizes.
        eps: The target loss.
        iterations: T, up to which runs are followed.
        replacement: Whether batches are drawn with replacement.
    """
    phi = np.array([noise_factor(int(size), spectrum.n, replacement=replacement) for size in b])
    most = np.array([largest_stable(spectrum, value) for value in phi])
    eta, noise = most[:, None] * GRID, np.repeat(phi[:, None], len(GRID), 1)  # (k, g)
    curves = loss_curves(spectrum, eta.ravel(), noise.ravel(), math.ceil(AHEAD * iterations))
    t = np.arange(curves.shape[1])
    mean = np.array([steps_to_target(t, curve, eps) for curve in curves]).reshape(eta.shape)
    mean = np.where(np.isnan(mean), math.inf, mean)  # `min` and `argmin` would return nan
    known = np.isfinite(mean.min(1, keepdims=True))  # batch sizes at which the mean loss gets there at all
    # typical runs are dear: they are drawn only near the mean loss's best stepsize
    tried = known & near(np.broadcast_to(GRID, eta.shape), GRID[mean.argmin(1)][:, None])
    typical = np.full(eta.shape, math.inf)
    expected = np.broadcast_to(mean.min(1, keepdims=True), eta.shape)[tried]
    typical[tried] = typical_steps(spectrum, eta[tried], noise[tried], eps, iterations, expected)
    typical = np.where(np.isnan(typical), math.inf, typical)
    # beyond T it was followed only to find where typical runs are drawn
    mean = np.where(mean > iterations, math.inf, mean)
    return Tuned(*_best(typical), *_best(mean))


def near(eta: Float[np.ndarray, "..."], best: Float[np.ndarray, "..."]) -> Bool[np.ndarray, "..."]:
    """Return which stepsizes may be the typical run's best, given `best`, that of the mean loss."""
    return (eta >= AROUND[0] * best) & (eta <= AROUND[1] * best)


def _best(steps: Float[np.ndarray, "k g"]) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """The least N of each row and its stepsize in `GRID`; nan if not reached. No stepsize if w_0 meets the target."""
    least = steps.min(1)
    found = np.isfinite(least)
    return np.where(found, least, math.nan), np.where(found & (least > 0), GRID[steps.argmin(1)], math.nan)


def forecast(
    row: Mapping[str, Any],
    batch_sizes: Sequence[int],
    iterations: int,
    target: float | None = None,
    *,
    replacement: bool = False,
) -> Forecast:
    """Forecast a sweep's critical batch sizes from a row of statistics.

    Args:
        row: A row of `ntk`, or the fields of `NTKStatistics`, with spectral measures.
        batch_sizes: Batch sizes.
        iterations: T.
        target: The loss to which N counts. Default: what the smallest b reaches under 1/beta(b) in T iterations.
        replacement: Whether batches are drawn with replacement.
    """
    spectrum = Spectrum.of(row)
    gamma, k_op = float(row["gamma"]), float(row["k_op"])
    b = np.array(sorted(batch_sizes))
    phi = np.array([noise_factor(int(size), spectrum.n, replacement=replacement) for size in b])
    eta = 1 / np.array([beta(int(size), spectrum.n, gamma, k_op, replacement=replacement) for size in b])
    curves = loss_curves(spectrum, eta, phi, iterations)
    if target is None:
        target = float(attainable(curves[0][0], curves[0].min()))
    t = np.arange(iterations + 1)
    n_theory = np.array([steps_to_target(t, curve, target) for curve in curves])
    with np.errstate(divide="ignore"):  # a loss of 0: h is infinite, and its fit is refused below
        h = (np.log(curves[:, 0]) - np.log(curves[:, -1])) / iterations
    # h is inf if the loss comes to 0, and -inf if it overflows
    vanished = np.isposinf(h).any() and not np.isneginf(h).any()
    tuned = tuned_steps(spectrum, b, target, iterations, replacement=replacement)
    eta_max = np.array([largest_stable(spectrum, value) for value in phi])
    table = {"batch_size": b, "N": tuned.steps, "eta": tuned.share * eta_max}
    table |= {"N_mean": tuned.mean_steps, "eta_mean": tuned.mean_share * eta_max, "eta_max": eta_max}
    table |= {"eta_theory": eta, "N_theory": n_theory, "h_theory": h}
    missed = f"in T = {iterations:,} iterations L <= {number(target)} is not reached"
    fits = {
        "b_N": _fit(b, tuned.steps, "N", missed),
        "b_N of the mean loss": _fit(b, tuned.mean_steps, "N", missed),
        "b_N under 1/beta(b)": _fit(b, n_theory, "N", missed),
        "b_h under 1/beta(b)": _fit(b, h, "h", "the loss vanishes" if vanished else "the loss grows beyond all bounds"),
    }
    refused = {name: fit.reason for name, fit in fits.items() if math.isnan(fit.value)}
    return Forecast(
        pd.DataFrame(table),
        *fits.values(),
        b_star=gamma / k_op,
        n=spectrum.n,
        target=target,
        iterations=iterations,
        remarks=(*(f"No {name}: {why}." for name, why in refused.items()), *_at_ends(b, tuned.share)),
    )


def _fit(
    b: Int[np.ndarray, " k"], values: Float[np.ndarray, " k"], quantity: Literal["h", "N"], missed: str
) -> CriticalBatch:
    """A critical batch size, or why there is none; `missed` is the reason if some batch size has no value."""
    if not (known := np.isfinite(values)).all():
        return CriticalBatch(reason=f"{missed} at b = {', '.join(map(str, b[~known]))}")
    # there are no seeds, and the scatter of a forecast about the law is no sampling error: no interval
    return replace(critical_batch(b, values[None], quantity), low=math.nan, high=math.nan, interval="")


def _at_ends(b: Int[np.ndarray, " k"], share: Float[np.ndarray, " k"]) -> Iterator[str]:
    """Yield a sentence for each end of `GRID` beyond which a best stepsize may lie."""
    for end, name in ((GRID[0], "smallest"), (GRID[-1], "largest")):
        if (share == end).any():
            sizes = ", ".join(map(str, b[share == end]))
            yield (
                f"At b = {sizes} the best stepsize is the {name} tried, {end:.2g} of the largest stable one: N may be "
                "smaller beyond it."
            )
