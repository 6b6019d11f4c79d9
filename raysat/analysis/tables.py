"""The analysis of a sweep as tidy tables; reading them from and writing them to its results folder."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raysat.analysis.efficiency import CHOICES, COSTS, cost_rows, trials_at_once
from raysat.analysis.foreseen import PredictedCurves, predict_curves
from raysat.analysis.measure import FITS, POINTS, Paths, measure
from raysat.analysis.predictors import COMPARISON, compare
from raysat.analysis.reading import GROUP, comparable, python_strings, readings
from raysat.analysis.targets import shared
from raysat.errors import InputError
from raysat.spec.goals import METRICS, TRAIN_LOSS, Target, by_metric, falling
from raysat.spec.goals import asked as asked_by
from raysat.spec.labels import beyond_theory, transform_in
from raysat.spec.prices import Prices, as_prices
from raysat.storage.files import Location, write_aside
from raysat.storage.initial import PREDICTING
from raysat.storage.schema import FAILED, REFUSED, arrow_schema
from raysat.storage.store import Store


@dataclass(frozen=True)
class Analysis:
    """The results of a sweep as tidy tables. The columns `raysat.analysis.READING` identify a reading.

    Attributes:
        points: One row for each reading, quantity (`h` or `N`), target (`metric` and `target`) and batch size. `value`
            is the geometric mean over seeds, `low` and `high` its 95 % interval (with one seed, from the scatter about
            a fit); `eta` the median stepsize of the trials that counted, `eta_beta` and `eta_k_op` the same times
            beta(b) and k_op; `h_interp` the paper's predicted exponent (section 5), and `h_interp_n` the batch size
            whose h replaces h(n) in it.
        fits: One row for each reading, quantity (`b_h` or `b_N`) and target. `value`, `low` and `high` are the critical
            batch size in samples and its interval, `interval` the source of that, `q` how sharply the law bends there
            (`raysat.saturation.fits`), `asymptote` h or N at large b, `range` the largest mean over the smallest,
            `eta_beta_min` to `eta_beta_max` the range of the stepsizes that counted in units of 1/beta(b),
            `eta_k_op_max` the largest in units of 1/k_op, `reason` the reservations in words; the predictions at
            initialization are means over seeds, with `_min` and `_max`, `unpredicted` says why there are none,
            `approximated` how the predicted network differs from the trained one. `headline` marks one b_h of each
            reading, and one b_N of each metric; the rows of the metric that the sweep is about come first.
        comparison: One row for each fit and predictor (`raysat.analysis.predictors`): the prediction with its extremes
            over seeds, the measured value, and their ratio. `analysis.parquet` contains this table; docs/columns.md has
            its columns.
        costs: One row for each reading, target, cost (`samples`, `seconds`, `device_hours`, and with prices `money`)
            and batch size with which every seed reached the target: the geometric mean over seeds and its 95 %
            interval.
        choices: One row for each reading, target and choice (`least_samples`, `least_seconds`, `least_device_hours`,
            `least_money`, `b_20`): the batch size with its 95 % interval, what it costs there, and the reservations in
            words.
    """

    points: pd.DataFrame
    fits: pd.DataFrame
    comparison: pd.DataFrame
    costs: pd.DataFrame
    choices: pd.DataFrame


def analyze(
    trials: pd.DataFrame,
    curves: pd.DataFrame,
    targets: Sequence[float | str | Target] = (),
    ntk: pd.DataFrame | None = None,
    prices: Prices = (),
) -> Analysis:
    """Estimate, fit and compare all that a sweep's tables support.

    Args:
        trials: The `trials` table.
        curves: The `curves` table.
        targets: Targets for N(b) (`raysat.spec.goals.Target.of`); the metric of the first leads. Default: training
            losses that all compared readings share (`raysat.analysis.targets.shared`).
        ntk: The `ntk` table, for the forecast. Default: there is no forecast.
        prices: Of a device-hour, by device (`raysat.spec.prices`). Default: costs are not in money.
    """
    asked = by_metric(Target.of("targets", one) for one in targets)
    trials, paths = prepared(trials, curves, ntk, {one.metric for one in asked})
    at_once = trials_at_once(trials)
    automatic = None if asked else shared(trials, paths[TRAIN_LOSS])
    points, fits, comparison, costs, choices = [], [], [], [], []
    for _, group in trials.groupby(list(GROUP), dropna=False):
        # all trials of a group have the same targets
        own = asked if automatic is None else [Target(TRAIN_LOSS, level) for level in automatic[group.index[0]]]
        if ntk is None:
            foreseen = PredictedCurves(reason="no table ntk was given")
        else:
            foreseen = predict_curves(group, ntk, paths[TRAIN_LOSS])
        for reading in readings(group):
            made = list(measure(reading, group, paths, own))
            levels = [one.about["target"] for one in made if one.about["metric"] == TRAIN_LOSS]
            deepest = min((level for level in levels if not math.isnan(level)), default=math.nan)
            for measured in made:
                points += measured.points
                fits.append(measured.fit)
                comparison += compare(measured, reading, foreseen, deepest)
                if measured.about["quantity"] == "N":
                    cost, choice = cost_rows(measured, at_once, prices)
                    costs, choices = costs + cost, choices + choice
    return Analysis(
        points=pd.DataFrame(points, columns=list(POINTS)),
        fits=pd.DataFrame(fits, columns=list(FITS)),
        comparison=pd.DataFrame(comparison, columns=list(COMPARISON)),
        costs=pd.DataFrame(costs, columns=list(COSTS)),
        choices=pd.DataFrame(choices, columns=list(CHOICES)),
    )


OF_THEORY = ("b_star", "b_star_thm33")
"""Statistics that predict the critical batch size of fixed-stepsize SGD, and of no other training."""


def prepared(
    trials: pd.DataFrame, curves: pd.DataFrame, ntk: pd.DataFrame | None, metrics: Collection[str] = ()
) -> tuple[pd.DataFrame, dict[str, Paths]]:
    """Select the trials that count, with a column `unpredicted` (why there are no statistics), and their metrics.

    Args:
        trials: The `trials` table.
        curves: The `curves` table.
        ntk: The `ntk` table, if there is one.
        metrics: The metrics that are read besides the training loss.
    """
    trials = comparable(trials).sort_values("finished_at", kind="stable")
    # The same cell under two ids, if a user's own module changed between two runs: the later one counts.
    outdated = trials.duplicated([*GROUP, "seed", "batch_size", "eta"], keep="last") & trials["eta"].notna()
    by_cell = [(str(cell_id), path) for cell_id, path in curves.sort_values("iteration").groupby("cell_id")]
    paths = {metric: _paths(by_cell, metric) for metric in (TRAIN_LOSS, *sorted({*metrics} - {TRAIN_LOSS}))}
    reasons, kept = refused(ntk), python_strings(trials[~outdated])
    # `copy` joins the columns of one type in one block again
    kept = kept.assign(unpredicted=[reasons.get(init_id, "") for init_id in kept["init_id"]]).copy()
    beyond = kept["training"].map(beyond_theory)
    kept.loc[beyond != "", "unpredicted"] = beyond
    kept.loc[beyond != "", [*OF_THEORY, "eta_limit"]] = math.nan
    # a transform adds its own noise to the gradients, so that no statistic of the samples predicts
    kept.loc[kept["training"].map(transform_in) != "", list(PREDICTING)] = math.nan
    return kept, paths


def _paths(by_cell: Iterable[tuple[str, pd.DataFrame]], metric: str) -> Paths:
    """Read a metric along each trial from its rows of `curves`, ascending.

    Raises:
        InputError: The sweep has not measured it.
    """
    found = {
        cell_id: (path["iteration"].to_numpy(), np.asarray(falling(metric, path[metric].to_numpy(dtype=float))))
        for cell_id, path in by_cell
    }
    if metric != TRAIN_LOSS and found and all(np.isnan(values).all() for _, values in found.values()):
        raise InputError(f"this sweep has no {METRICS[metric]}: name a target of another metric.")
    return found


def refused(ntk: pd.DataFrame | None) -> dict[str, str]:
    """Return why initializations have no statistics, by init_id."""
    if ntk is None:
        return {}
    rows = ntk[ntk["method"].isin([REFUSED, FAILED])]
    return dict(zip(rows["init_id"], rows["method_reason"], strict=True))


def load(root: Location) -> tuple[dict, pd.DataFrame, pd.DataFrame]:
    """Read the record, the trials and the curves of a results folder.

    Raises:
        InputError: The folder is not a results folder, or of another schema version.
    """
    store = Store(root)
    return store.readable(), store.read("trials"), store.read("curves")


def analyze_folder(
    root: Location, record: Mapping, trials: pd.DataFrame, curves: pd.DataFrame, targets: Sequence[Target] = ()
) -> Analysis:
    """Analyze what `load` has read, for some targets or, without any, for those of the sweep."""
    return analyze(trials, curves, levels(record, targets), Store(root).read("ntk"), prices(record))


def levels(record: Mapping, targets: Sequence[Target] = ()) -> tuple[Target, ...]:
    """The given targets or, without any, those of the sweep; empty if there are none."""
    return tuple(targets) or asked_by(record["sweep"])


def prices(record: Mapping) -> Prices:
    """The prices of devices that the sweep names."""
    return as_prices("prices", record["sweep"].get("prices") or ())


def save(analysis: Analysis, folder: Location) -> None:
    """Write the comparison to `analysis.parquet` in a folder."""
    table = pa.Table.from_pandas(analysis.comparison, schema=arrow_schema("analysis"), preserve_index=False)
    write_aside(folder / "analysis.parquet", partial(pq.write_table, table))
