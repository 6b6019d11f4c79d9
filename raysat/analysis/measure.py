"""A reading's h and N at each batch size, and the critical batch sizes fitted to them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from raysat.analysis.readings import READING, best_of, policy, usable
from raysat.fits import (
    CriticalBatch,
    choose_targets,
    critical_batch,
    geometric_mean,
    interval,
    resample_seeds,
    steps_to_target,
)
from raysat.schema import DIVERGED, FAILED, TARGET_REACHED
from raysat.theory import h_interpolated

STATISTICS = ("gamma", "k_op", "b_star", "b_star_thm33", "noise_scale")
"""The columns of `trials` that a fit carries: means over seeds, and with `_min` and `_max` their ends."""

SMALL_RANGE = 1.5
"""Below this ratio of largest to smallest, h or N is said to vary little. Default: 1.5; the exponents in the paper's
MNIST figure span a ratio of about 1.33, at which any b_h lets them agree with the interpolated curve."""

POINTS = (
    *(*READING, "quantity", "target", "batch_size", "value", "low", "high", "seeds", "eta", "eta_beta", "eta_k_op"),
    *("h_interp", "h_interp_n"),
)
FITS = (
    *(*READING, "quantity", "target", "headline", "value", "low", "high", "interval", "asymptote"),
    *("rms_log_residual", "range", "seeds", "batch_sizes", "n_diverged", "n_failed"),
    *("eta_beta_min", "eta_beta_max", "eta_k_op_max", "reason"),
    *(name + end for name in STATISTICS for end in ("", "_min", "_max")),
)

Paths = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""The loss along each trial, by cell_id: iterations, ascending from 0, and the loss at each."""

_NO_PATH = (np.zeros(0), np.zeros(0))


@dataclass(frozen=True)
class Measurement:
    """One quantity of a reading, and what was fitted to it.

    Attributes:
        about: The columns that name it: those of the reading, `quantity` (`h` or `N`), `target`, `headline`.
        best: The best trial of each (seed, batch size), the quantity in the column `value`.
        points: A row for each batch size, of the columns `POINTS`.
        fit: The row of its critical batch size, of the columns `FITS`.
    """

    about: dict
    best: pd.DataFrame
    points: list[dict]
    fit: dict


def measure(reading: pd.DataFrame, paths: Paths, targets: Sequence[float]) -> Iterator[Measurement]:
    """Measure h, and N for each target.

    Args:
        reading: The trials of a reading.
        paths: Their losses.
        targets: Loss levels. Where there are none they are chosen (`raysat.fits.choose_targets`).
    """
    head = reading[list(READING)].iloc[0].to_dict()
    trials = usable(reading)
    yield _measured({**head, "quantity": "h", "target": math.nan, "headline": True}, best_by_h(trials), reading)

    deepest = [paths.get(cell_id, _NO_PATH)[1].min(initial=math.inf) for cell_id in trials["cell_id"]]
    best = best_of(trials.assign(deepest=deepest), "deepest")
    levels = tuple(targets) or choose_targets(
        best["loss_init"].to_numpy(dtype=float), best["deepest"].to_numpy(dtype=float)
    )
    reached = [level for level in levels if best["deepest"].max() <= level]
    headline = min(reached, default=max(levels, default=math.nan))
    for level in levels:
        about = {**head, "quantity": "N", "target": level, "headline": level == headline}
        yield _measured(about, best_by_steps(trials, paths, level), reading)
    if not levels:
        about = {**head, "quantity": "N", "target": math.nan, "headline": True}
        none = CriticalBatch(reason="no loss level below the initial one is reached by all trials")
        yield Measurement(about, best.iloc[:0].assign(value=math.nan), [], _fit_row(about, reading, none))


def best_by_h(trials: pd.DataFrame) -> pd.DataFrame:
    """The trial of the largest h of each (seed, batch size); h as `value`."""
    return best_of(trials.assign(value=trials["h"], score=-trials["h"]), "score")


def best_by_steps(trials: pd.DataFrame, paths: Paths, level: float) -> pd.DataFrame:
    """The trial of the smallest N of each (seed, batch size); N as `value`, nan where none reaches the level."""
    steps = [steps_to_target(*paths.get(cell_id, _NO_PATH), level) for cell_id in trials["cell_id"]]
    return best_of(trials.assign(value=steps), "value")


def by_seed(best: pd.DataFrame, column: str = "value") -> pd.DataFrame:
    """A column of the best trials as a table: a row for each seed, a column for each batch size."""
    return best.pivot(index="seed", columns="batch_size", values=column).astype(float)


def _measured(about: dict, best: pd.DataFrame, reading: pd.DataFrame) -> Measurement:
    """The points and the fit of one quantity from the best trial of each (seed, batch size)."""
    table = by_seed(best)
    b, values = table.columns.to_numpy(), table.to_numpy()
    fit = critical_batch(b, values, about["quantity"])
    if about["quantity"] == "N" and (missing := int(best["value"].isna().sum())):
        reason = f"{missing} of {len(best)} trials do not reach L <= {about['target']:g}"
        fit = CriticalBatch(seeds=fit.seeds, batch_sizes=fit.batch_sizes, reason=reason)
        values = np.where(np.isin(b, best.loc[best["value"].isna(), "batch_size"]), math.nan, values)
    row = _fit_row(about, reading, fit)
    row |= {
        "eta_beta_min": best["eta_beta"].min(),
        "eta_beta_max": best["eta_beta"].max(),
        "eta_k_op_max": (best["eta"] * best["k_op"]).max(),
        "reason": "; ".join(filter(None, [fit.reason, *_remarks(about, best, reading, fit)])),
    }
    return Measurement(about, best, _points(about, best, b, values), row)


def _fit_row(about: dict, reading: pd.DataFrame, fit: CriticalBatch) -> dict:
    lost = {f"n_{status}": int((reading["status"] == status).sum()) for status in (DIVERGED, FAILED)}
    by_seed = reading.groupby("seed")[list(STATISTICS)].first().astype(float)
    ends = {"": by_seed.mean(), "_min": by_seed.min(), "_max": by_seed.max()}
    statistics = {name + end: statistic[name] for end, statistic in ends.items() for name in STATISTICS}
    return {**about, **lost, **statistics, **asdict(fit), "quantity": f"b_{about['quantity']}"}


def _points(about: dict, best: pd.DataFrame, b: np.ndarray, values: np.ndarray) -> list[dict]:
    """A row for each batch size; nan where a value is not positive, or where not every seed reaches the target."""
    if not values.size:
        return []
    values = np.where((values > 0) | np.isnan(values), values, math.nan)
    mean = geometric_mean(values)
    low, high = interval(resample_seeds(values)) if len(values) > 1 else np.full((2, len(b)), math.nan)
    predicts = about["quantity"] == "h" and b[0] == 1
    return [
        {name: about[name] for name in (*READING, "quantity", "target")}
        | {"batch_size": int(size), "value": mean[k], "low": low[k], "high": high[k], "seeds": len(trials)}
        | {"eta": trials["eta"].median(), "eta_beta": trials["eta_beta"].median()}
        | {"eta_k_op": (trials["eta"] * trials["k_op"]).median(), "h_interp_n": int(b[-1])}
        | {"h_interp": h_interpolated(float(size), mean[0], mean[-1]) if predicts else math.nan}
        for k, (size, trials) in enumerate(best.groupby("batch_size"))
    ]


def _remarks(about: dict, best: pd.DataFrame, reading: pd.DataFrame, fit: CriticalBatch) -> Iterator[str]:
    """What must be said beside a fit, refused or not."""
    quantity, percent = about["quantity"], f"{100 * (fit.range - 1):.2g} %"
    if fit.interval == "residuals":
        yield "one seed: the interval is over the fit's residuals and does not show how seeds differ"
    if fit.range < SMALL_RANGE and quantity == "h" and policy(about["stepsize"]).startswith("fixed"):
        yield f"under one stepsize for all b, h varies by only {percent}: agreement of h with h_interp says little"
    elif fit.range < SMALL_RANGE and "varies by" not in fit.reason:
        yield f"{quantity} varies by only {percent} over the batch sizes"
    if sizes := _sizes_without(best, reading):
        yield f"at b = {sizes} a seed has no trial that ended well: what diverged or failed there is not in the fit"
    if quantity == "h" and (best["status"] == TARGET_REACHED).any():
        yield "trials ended at the target loss, so that T, on which h depends, differs between batch sizes"
    if about["stepsize"] == "grid_relative" and best["eta_beta"].max() < 1.01 * best["eta_beta"].min():
        yield f"at every b the same multiple of 1/beta(b) is best: {quantity} follows beta(b) nearly by construction"
    if about["tuning"] == "free" and (largest := (best["eta"] / best["eta_limit"]).max()) >= 1:
        yield (
            f"the best stepsizes reach {largest:.2g} times the largest at which the linearized network is stable, "
            "beyond which the theory says nothing"
        )
    for end, sizes in at_edges(best, reading):
        yield f"the best stepsize is the {end} tried at b = {sizes}: widen the grid"


def at_edges(best: pd.DataFrame, reading: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Where the best of a tuned reading is the `largest` or the `smallest` stepsize tried: the batch sizes.

    Among stable stepsizes the largest is no edge of the grid: what lies above is known not to be stable.
    """
    if not reading["tuning"].iloc[0]:
        return
    widest = reading.groupby(["seed", "batch_size"])["eta"].agg(["min", "max"])
    tried = best.join(widest, on=["seed", "batch_size"])
    for column, name in (("max", "largest"), ("min", "smallest")):
        at = tried.loc[tried["eta"] == tried[column], "batch_size"]
        if len(at) and not (name == "largest" and reading["tuning"].iloc[0] == "stable"):
            yield name, ", ".join(map(str, sorted(set(at))))


def _sizes_without(best: pd.DataFrame, reading: pd.DataFrame) -> str:
    """The batch sizes at which some seed of the reading has no measured trial."""
    asked = set(reading[["seed", "batch_size"]].itertuples(index=False, name=None))
    found = set(best[["seed", "batch_size"]].itertuples(index=False, name=None))
    return ", ".join(map(str, sorted({int(size) for _, size in asked - found})))
