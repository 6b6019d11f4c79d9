"""A reading's h and N at each batch size, and the critical batch sizes fitted to them.

Intervals are those of `raysat.saturation.intervals`. With one seed they come from the scatter about the fit: each value
is assumed to scatter as those at the other batch sizes do. Without a fit a single seed has no intervals.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from raysat.analysis.reading import READING, Paths, best_of, by_h, policy, usable, vanished
from raysat.analysis.targets import deepest
from raysat.ntk.words import approximations
from raysat.saturation.critical import CriticalBatch, critical_batch
from raysat.saturation.fits import fit_law
from raysat.saturation.formulas import h_interpolated
from raysat.saturation.intervals import Scatter, about_law, geometric_mean, of_values
from raysat.saturation.targets import below_parabola, earliest, in_time, lateness, steps_to_target, uncertainty
from raysat.spec.goals import TRAIN_LOSS, Target, rises
from raysat.spec.labels import beyond_theory
from raysat.spec.phases import in_label, samples_at
from raysat.spec.race import SLACK
from raysat.storage.initial import PREDICTING
from raysat.storage.schema import BEATEN, COMPLETED, DIVERGED, FAILED, TARGET_REACHED
from raysat.text import number, percent

STATISTICS = ("gamma", "k_op", *PREDICTING)
"""The columns of `trials` that a row of fits contains: means over seeds, and with `_min` and `_max` the extremes."""

SMALL_RANGE = 1.5
"""The ratio of largest to smallest below which a remark says that h or N varies little. Default: 1.5; the exponents in
the paper's MNIST figure span a ratio of about 1.33, at which any b_h lets them agree with the interpolated curve."""

POINTS = (
    *(*READING, "quantity", "metric", "target", "batch_size", "value", "low", "high", "seeds"),
    *("eta", "eta_beta", "eta_k_op", "h_interp", "h_interp_n"),
)
FITS = (
    *(*READING, "quantity", "metric", "target", "headline", "value", "low", "high", "interval", "q", "asymptote"),
    *("rms_log_residual", "range", "seeds", "batch_sizes", "n_diverged", "n_failed", "n_infeasible"),
    *("eta_beta_min", "eta_beta_max", "eta_k_op_max", "reason", "unpredicted", "approximated"),
    *(name + end for name in STATISTICS for end in ("", "_min", "_max")),
)

UNSURE = 0.5
"""The fraction of `lateness` that is uncertain. Default: a half, with which intervals cover in
benchmarks/coverage.py."""

OF_TRAINING_LOSS = "the theory is of the training loss"
"""Why b_N of another metric has no prediction."""

_NO_PATH = (np.zeros(0), np.zeros(0))


@dataclass(frozen=True)
class Measurement:
    """One quantity of a reading, and the fit to it.

    Attributes:
        about: The columns that identify it: those of the reading, `quantity` (`h` or `N`), `metric`, `target`,
            `headline`, and for N the number of `n_infeasible` trials.
        asked: The batch sizes of its group, ascending.
        best: The best trial of each (seed, batch size), with the quantity in the column `value`; nan at a batch size
            for which some seed has none.
        alone: The scatter about the fit if there is one seed and a fit; otherwise None.
        resolution: The error of each log value that all seeds share, by batch size of `best`, due to the spacing of
            stepsizes and of evaluations.
        points: A row for each batch size, with the columns `POINTS`.
        fit: The row of its critical batch size, with the columns `FITS`.
    """

    about: dict
    asked: list[int]
    best: pd.DataFrame
    alone: Scatter | None
    resolution: Float[np.ndarray, " b"]
    points: list[dict]
    fit: dict


def measure(
    reading: pd.DataFrame, group: pd.DataFrame, paths: Mapping[str, Paths], targets: Sequence[Target]
) -> Iterator[Measurement]:
    """Measure h, and N for each target.

    A trial that ran all its iterations without reaching a target, and did not diverge, is *infeasible* for it, as
    Shallue et al. (2019) call it.

    Args:
        reading: The trials of a reading.
        group: All trials of its group.
        paths: Their falling metrics, by metric.
        targets: The targets, those of a metric together. The headline of each metric is the deepest that all batch
            sizes reach.
    """
    head, initial = reading[list(READING)].iloc[0].to_dict(), _initial(reading)
    trials = usable(reading)
    about = {**head, "quantity": "h", "metric": TRAIN_LOSS, "target": math.nan, "headline": True, "n_infeasible": 0}
    yield _measured(about, best_by_h(trials), reading, group, initial)

    for metric, together in groupby(dict.fromkeys(targets), lambda one: one.metric):
        levels, own = list(together), paths[metric]
        ends = deepest(reading, own)["deepest"].max()
        reached = [one.eps for one in levels if ends <= one.eps]
        headline = min(reached, default=max(one.eps for one in levels))
        ran = trials.loc[trials["status"] == COMPLETED, "cell_id"]
        lowest = np.array([own[cell_id][1].min(initial=math.inf) for cell_id in ran if cell_id in own])
        for one in levels:
            about = {**head, "quantity": "N", "metric": metric, "target": one.level, "headline": one.eps == headline}
            about["n_infeasible"] = int((~(lowest <= one.eps)).sum())
            yield _measured(about, best_by_steps(trials, own, one), reading, group, initial)
    if not targets:
        about = {**about, "quantity": "N"}
        none = CriticalBatch(reason=_no_level(trials))
        empty = trials.iloc[:0].assign(value=math.nan)
        yield Measurement(about, _sizes(group), empty, None, np.empty(0), [], _fit_row(about, initial, none))


def _no_level(trials: pd.DataFrame) -> str:
    """Return why a reading has no target."""
    at_once = trials[(trials["status"] == TARGET_REACHED) & (trials["iterations_done"] == 0)]
    if at_once.empty:
        return "no loss level below the initial one is reached by all trials"
    return f"target_loss is not below the loss at initialization, {number(at_once['loss_init'].min())}: lower it"


def best_by_h(trials: pd.DataFrame) -> pd.DataFrame:
    """Select the trial with the largest h of each (seed, batch size); h is `value`, with its `resolution`."""
    trials = trials.assign(value=trials["h"], score=by_h(trials))
    with np.errstate(divide="ignore", invalid="ignore"):
        # log 1/h, which like log N is smallest at the best stepsize
        depth = -np.log(trials["h"].to_numpy(dtype=float))
    return best_of(trials.assign(resolution=stepsize_resolution(trials, depth)), "score")


def best_by_steps(trials: pd.DataFrame, paths: Paths, target: Target) -> pd.DataFrame:
    """Select the trial with the smallest N of each (seed, batch size); N is `value`, nan if none reaches the target.

    Trials are compared by `first`, the iteration at which the target is reached according to the evaluations. A trial
    that was stopped before it, at an iteration below `first`, might have been the best: the row is then `undecided`. In
    a race every trial far behind the best one counts as being at its limit, regardless of when it was cut.

    N is corrected for the delay in log N due to the spacing of evaluations (`raysat.saturation.targets.lateness`), by
    its mean over the seeds of a batch size. Half of the delay is uncertain: `resolution`, the error of log N that the
    seeds share, contains that half and the error due to the spacing of stepsizes.

    Args:
        trials: The trials of a reading that can be measured.
        paths: The falling metric of the target along them.
        target: The target.
    """
    level = target.eps
    own = [paths.get(cell_id, _NO_PATH) for cell_id in trials["cell_id"]]
    steps = np.array([steps_to_target(*path, level) for path in own], dtype=float)
    key = [trials["seed"], trials["batch_size"]]
    least = pd.Series(steps, trials.index).groupby(key).transform("min").to_numpy(dtype=float)
    told = steps
    if (trials["status"] == BEATEN).any():
        told = np.fmin(steps, SLACK * least)  # a nan, of a trial cut before, becomes the limit
    last = np.array([path[0][-1] if len(path[0]) else math.nan for path in own], dtype=float)
    # `~(last >= least)`, unlike `last < least`, is true if `least` is nan: no trial has reached the target
    rival = trials["status"].isin([TARGET_REACHED, BEATEN]) & np.isnan(steps) & ~np.isnan(last) & ~(last >= least)
    undecided = rival.groupby(key).transform("any") if rival.any() else rival
    with np.errstate(divide="ignore"):  # N = 0 at a target that w_0 meets
        spaced = stepsize_resolution(trials, np.log(told))
    best = best_of(trials.assign(first=steps, spaced=spaced, undecided=undecided), "first")
    own = [paths.get(cell_id, _NO_PATH) for cell_id in best["cell_id"]]
    found = ([of(*path, level) for path in own] for of in (lateness, earliest, uncertainty))
    late, least, unsure = (np.nan_to_num(np.array(one, dtype=float)) for one in found)
    first, value = best["first"].to_numpy(dtype=float), np.empty(len(best))
    places: Any = best.groupby("batch_size").indices  # arrays, by batch size
    for rows in places.values():
        value[rows] = in_time(first[rows], late[rows], least[rows])
    # independent errors: their squares add
    error = np.sqrt(best["spaced"] ** 2 + unsure**2 + (UNSURE * late) ** 2)
    return best.assign(value=value, resolution=error).drop(columns="spaced")


def stepsize_resolution(trials: pd.DataFrame, depth: Float[np.ndarray, " trials"]) -> Float[np.ndarray, " trials"]:
    """Estimate the excess of the smallest log N, or log 1/h, of a (seed, batch size) over that at the optimal stepsize.

    It is the depth, below the best trial, of the parabola in log eta through the best trial and its neighbours; 0 for
    all other trials, and if the best does not have neighbours on both sides.
    """
    found = np.zeros(len(trials))
    log_eta = np.log(trials["eta"].to_numpy(dtype=float))
    places: Any = trials.groupby(["seed", "batch_size"]).indices  # arrays, by key
    for rows in places.values():
        rows = rows[np.isfinite(depth[rows])]
        rows = rows[np.argsort(log_eta[rows])]
        k = int(np.argmin(depth[rows])) if len(rows) else 0
        if not 0 < k < len(rows) - 1:
            continue
        near = rows[k - 1 : k + 2]
        if (np.diff(log_eta[near]) > 0).all():  # a stepsize that occurs twice allows no parabola
            found[rows[k]] = below_parabola(log_eta[near], depth[near])
    return found


def by_seed(best: pd.DataFrame, column: str = "value") -> pd.DataFrame:
    """A column of the best trials as a table: a row for each seed, a column for each batch size."""
    (seeds, row), (sizes, col) = (np.unique(best[name], return_inverse=True) for name in ("seed", "batch_size"))
    table = np.full((len(seeds), len(sizes)), math.nan)
    table[row, col] = best[column]
    return pd.DataFrame(table, pd.Index(seeds, name="seed"), pd.Index(sizes, name="batch_size"), copy=False)


def _measured(
    about: dict, best: pd.DataFrame, reading: pd.DataFrame, group: pd.DataFrame, initial: dict
) -> Measurement:
    """The points and the fit of one quantity from the best trial of each (seed, batch size)."""
    missing = best["value"].isna() | best.get("undecided", False)  # h is never undecided
    lost = sizes_without(best, reading[reading["status"] == DIVERGED])
    # all seeds or none: at a batch size, those that succeeded are a biased sample
    best = best.assign(value=best["value"].mask(best["batch_size"].isin({*lost, *best.loc[missing, "batch_size"]})))
    table = by_seed(best)
    b, values = table.columns.to_numpy(), table.to_numpy()
    # seeds have the same stepsizes and evaluations: their resolutions are estimates of one error
    shared = by_seed(best, "resolution").mean().to_numpy()
    fit = critical_batch(b, values, about["quantity"], shared)
    gone = best.loc[vanished(best), "batch_size"]
    if refusal := _refusal(about, best, lost, gone):
        fit = CriticalBatch(seeds=fit.seeds, batch_sizes=fit.batch_sizes, reason=refusal)
    # without a logarithm there is no geometric mean
    values = np.where((values > 0) | np.isnan(values), values, math.nan)
    alone = _alone(b, values, about["quantity"], fit)
    row = _fit_row(about, initial, fit)
    row |= {
        "eta_beta_min": best["eta_beta"].min(),
        "eta_beta_max": best["eta_beta"].max(),
        "eta_k_op_max": (best["eta"] * best["k_op"]).max(),
        "reason": "; ".join(filter(None, [fit.reason, *_remarks(about, best, reading, group, fit)])),
    }
    ends = of_values(values, alone, shared) if values.size else values
    return Measurement(about, _sizes(group), best, alone, shared, _points(about, best, b, values, ends), row)


def _refusal(about: dict, best: pd.DataFrame, lost: Sequence[int], gone: Collection[int]) -> str:
    """Return why there can be no fit for any values; empty if there can be one."""
    if about["quantity"] == "h" and len(gone):
        where = ", ".join(map(str, sorted(set(gone))))
        return f"at b = {where} the loss vanished, so that h has no value there: run fewer iterations, or see b_N"
    if about["quantity"] == "N" and best["undecided"].any():
        where = ", ".join(map(str, sorted(set(best.loc[best["undecided"], "batch_size"]))))
        return (
            f"at b = {where} a trial that ended at another target, or was cut, might have been the first to reach "
            f"{Target.in_row(about).inequality}: run the sweep with that target, under another name"
        )
    if about["quantity"] == "N" and (missing := int(best["first"].isna().sum())):
        return f"{missing} of {len(best)} trials do not reach {Target.in_row(about).inequality}"
    if lost:
        where = ", ".join(map(str, lost))
        return (
            f"at b = {where} every trial of a seed diverged, so that {about['quantity']} has no value there: take "
            "smaller stepsizes, or leave these batch sizes out"
        )
    if about["quantity"] == "h" and about["iterations_least"] < about["iterations"]:
        return (
            f"under a budget of samples T falls with b, here from {about['iterations']:,} to "
            f"{about['iterations_least']:,}, and h depends on T"
        )
    return ""


def _alone(b: np.ndarray, values: Float[np.ndarray, "seeds b"], quantity: str, fit: CriticalBatch) -> Scatter | None:
    """The scatter of a single seed about the fit, if there is a fit."""
    if fit.interval != "residuals":
        return None
    # the one seed with values; 1/h follows the law, as N does
    y = values[np.isfinite(values).any(axis=1)] ** (-1 if quantity == "h" else 1)
    return about_law(b, y, *fit_law(b, y[0]))


def _initial(reading: pd.DataFrame) -> dict:
    """The columns of a row of fits that do not depend on what is measured: counts, statistics, and words about them."""
    lost = {f"n_{status}": int((reading["status"] == status).sum()) for status in (DIVERGED, FAILED)}
    # all trials of a seed share its initialization, and so its statistics
    by_seed = reading.groupby("seed")[list(STATISTICS)].first().astype(float)
    ends = {"": by_seed.mean(), "_min": by_seed.min(), "_max": by_seed.max()}
    statistics = {name + end: statistic[name] for end, statistic in ends.items() for name in STATISTICS}
    said = dict.fromkeys(one for row in reading.to_dict("records") for one in approximations(row))
    return {**lost, **statistics, "unpredicted": reading["unpredicted"].iloc[0], "approximated": "; ".join(said)}


def _fit_row(about: dict, initial: dict, fit: CriticalBatch) -> dict:
    row = {**about, **initial, **asdict(fit), "quantity": f"b_{about['quantity']}"}
    if about["metric"] != TRAIN_LOSS:
        row |= dict.fromkeys((name + end for name in PREDICTING for end in ("", "_min", "_max")), math.nan)
        row |= {"unpredicted": OF_TRAINING_LOSS, "approximated": ""}
    return row


def _points(
    about: dict,
    best: pd.DataFrame,
    b: np.ndarray,
    values: Float[np.ndarray, "seeds b"],
    ends: Float[np.ndarray, "2 b"],
) -> list[dict]:
    """Make a row for each batch size; nan if a value is not positive, or if not every seed has one."""
    if not values.size:
        return []
    mean, (low, high) = geometric_mean(values), ends
    # h_interp needs the theory, h(1), and the same T at all batch sizes
    predicts = about["quantity"] == "h" and b[0] == 1 and about["iterations_least"] == about["iterations"]
    predicts = predicts and not beyond_theory(about["training"])
    by_size = best.assign(eta_k_op=best["eta"] * best["k_op"]).groupby("batch_size")
    etas = by_size[["eta", "eta_beta", "eta_k_op"]].median().to_dict("records")
    counts = by_size.size()
    return [
        {name: about[name] for name in (*READING, "quantity", "metric", "target")}
        | {"batch_size": int(size), "value": mean[k], "low": low[k], "high": high[k], "seeds": seeds}
        | {**etas[k], "h_interp_n": int(b[-1])}
        | {"h_interp": h_interpolated(float(size), mean[0], mean[-1]) if predicts else math.nan}
        for k, (size, seeds) in enumerate(zip(counts.index, counts, strict=True))
    ]


def _remarks(
    about: dict, best: pd.DataFrame, reading: pd.DataFrame, group: pd.DataFrame, fit: CriticalBatch
) -> Iterator[str]:
    """Yield the remarks about a fit, refused or not."""
    quantity, much = about["quantity"], percent(fit.range - 1)
    if fit.interval == "residuals":
        yield "one seed: the interval is of the scatter about the fit and does not show how seeds differ"
    elif best["seed"].nunique() == 1:
        yield f"one seed, and no fit about which it could scatter: {quantity}(b) has no interval"
    if quantity == "N" and fit.value > 0 and (near := _less_than_an_epoch(best)):
        lower = "higher" if rises(about["metric"]) else "lower"
        yield f"the target is less than an epoch away at b = {near}: a {lower} one says more of a whole training"
    interpolated = quantity == "h" and not beyond_theory(about["training"])
    if fit.range < SMALL_RANGE and interpolated and policy(about["stepsize"]).startswith("fixed"):
        yield f"under one stepsize for all b, h varies by only {much}: agreement of h with h_interp says little"
    elif fit.range < SMALL_RANGE and fit.batch_sizes > 1 and "varies by" not in fit.reason:
        yield f"{quantity} varies by only {much} over the batch sizes"
    for found, asked, what in (
        (best, reading[reading["status"] == FAILED], "no trial that ended well: what failed there"),
        (reading, group, "no stable stepsize: what is not stable there"),
    ):
        if sizes := sizes_without(found, asked):
            yield f"at b = {', '.join(map(str, sizes))} a seed has {what} is not in the fit"
    if quantity == "h" and (best["status"] == TARGET_REACHED).any():
        yield "trials ended at the target, so that T, on which h depends, differs between batch sizes"
    # 1 %: the multiples of a grid are further apart, and rounding does not reach it
    if about["stepsize"] == "grid_relative" and best["eta_beta"].max() < 1.01 * best["eta_beta"].min():
        yield f"at every b the same multiple of 1/beta(b) is best: {quantity} follows beta(b) nearly by construction"
    if about["tuning"] == "free" and (largest := (best["eta"] / best["eta_limit"]).max()) >= 1:
        yield (
            f"the best stepsizes reach {number(largest, 2)} times the largest at which the linearized network is "
            "stable, beyond which the theory says nothing"
        )
    for end, sizes in at_edges(best, reading):
        yield f"the best stepsize is the {end} tried at b = {sizes}: widen the grid"


def _less_than_an_epoch(best: pd.DataFrame) -> str:
    """The batch sizes at which N is less than a pass over the training samples."""
    pairs = zip(best["training"], best["batch_size"], best["value"], strict=True)
    samples = [samples_at(in_label(training), b, t) if t >= 0 else math.nan for training, b, t in pairs]
    epochs = pd.Series(samples, dtype=float) / best["n"].to_numpy()
    # means over seeds are geometric
    log_mean = pd.Series(np.log(epochs.to_numpy(dtype=float))).groupby(best["batch_size"].to_numpy()).mean()
    return ", ".join(map(str, log_mean.index[log_mean < 0]))


def at_edges(best: pd.DataFrame, reading: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield `largest` or `smallest`, and the batch sizes at which a grid's best stepsize is at that end of it.

    The largest one is not an end if a larger stepsize was tried and is known to be unstable.
    """
    if not reading["tuning"].iloc[0]:
        return
    key = ["seed", "batch_size"]
    of_key = reading.groupby(key)["eta"]
    widest = pd.DataFrame({"min": of_key.min(), "max": of_key.max()})
    # without a value there is no best one
    tried = best.loc[best["value"] > 0, [*key, "eta", "bounded"]].join(widest, on=key)
    for column, name in (("max", "largest"), ("min", "smallest")):
        at = (tried["eta"] == tried[column]) & ~(tried["bounded"] & (name == "largest"))
        if at.any():
            yield name, ", ".join(map(str, sorted(set(tried.loc[at, "batch_size"]))))


def _sizes(trials: pd.DataFrame) -> list[int]:
    return sorted(trials["batch_size"].unique().tolist())


def sizes_without(found: pd.DataFrame, asked: pd.DataFrame) -> list[int]:
    """The batch sizes at which some seed of `asked` has no trial in `found`."""
    pairs = (set(zip(trials["seed"], trials["batch_size"], strict=True)) for trials in (asked, found))
    return sorted({int(size) for _, size in set.difference(*pairs)})
