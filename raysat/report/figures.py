"""A sweep's figures as plain data, which `assets/` draws.

A figure has axes and several views, one for each combination of a reader's choices (`at`); a figure of several
quantities has a view for each, with the key of the quantity (`of`). A view is a `raysat.plots.description.View` as
JSON. If it has several targets, it also has their losses (`levels`), the index of the headline's (`start`), those of
the sweep's own (`own`), and what it shows at each (`by`); fields outside `by` are shared by all targets, such as the
positions of series without their own: `x`, and for curves `dense`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import numpy as np
import pandas as pd

from raysat.analysis import (
    GROUP,
    READING,
    SETTING,
    Analysis,
    best_of,
    by_h,
    comparable,
    key_of,
    method,
    readings,
    short_settings,
    target_symbol,
    usable,
)
from raysat.analysis.ladder import Ladder
from raysat.plots import CAPTIONS as STATIC_CAPTIONS
from raysat.plots.attempts import Attempt, plainly
from raysat.plots.description import Mark, View, dense
from raysat.plots.views import AXES, COSTS, at_target, costs, deepening, exponents, loss_curves, of_target, targets
from raysat.report.series import Json, as_json, axis_json, mark_json, numbers
from raysat.spec.goals import METRICS, TRAIN_LOSS

CHOICES = ("Data and model", "Width", "Stepsizes")
"""The choices of a reader, in the order of a view's `at`; if targets are of other metrics, the metric is last."""

METRIC = "Metric"
"""The name of that choice."""


def payload(
    trials: pd.DataFrame,
    curves: pd.DataFrame,
    analysis: Analysis,
    ladder: Ladder,
    start: Mapping | None,
    attempt: Attempt = plainly,
) -> Json:
    """Make all figures of a sweep.

    Args:
        trials: The `trials` table.
        curves: The `curves` table.
        analysis: The analysis of both.
        ladder: The analysis at many targets.
        start: The row of `raysat.analysis.summary` to show first. Default: the first reading.
        attempt: Calls the function that makes the views of each reading. Default: errors are raised.
    """
    # the columns of a reading begin with those of its setting
    names = short_settings(analysis.fits)
    named = METRICS if {*analysis.fits["metric"]} - {TRAIN_LOSS} else {}
    at = {
        key: [names[key[: len(SETTING)]], _width(row), method(row), *[METRICS[row["metric"]]] * bool(named)]
        for key, row in _rows(analysis.fits)
    }
    points, fits, spent, choices = map(_by_reading, (analysis.points, analysis.fits, analysis.costs, analysis.choices))
    reached, rungs = map(_by_reading, (ladder.points, ladder.fits))
    chosen = _chosen(comparable(trials))
    draw = {
        "steps": lambda key: [_steps(reached[key], rungs[key])] if key in reached else [],
        "targets": lambda key: [_targets(rungs[key])] if key in rungs and _of_loss(key) else [],
        "costs": lambda key: map(_drawn, costs(spent[key], choices[key])) if key in spent else [],
        "exponents": lambda key: [_drawn(exponents(points[key], fits[key]))] if key in points and _of_loss(key) else [],
        "loss-curves": lambda key: [_drawn(loss_curves(chosen[key], curves))] if key in chosen else [],
    }
    figures = []
    for name, make in draw.items():
        made = [(key, attempt(f"{TITLES[name]}, {', '.join(at[key])},", partial(_written, make, key))) for key in at]
        views = [{"at": at[key], **view} for key, several in made for view in several or ()]
        if views:
            one = about(name, TITLES[name], CAPTIONS[name])
            shown = {view.get("of") for view in views}
            one |= {"of": [quantity for quantity in one["of"] if quantity["key"] in shown]} if "of" in one else {}
            figures.append({**one, "views": views})
    first = next(iter(at.values()), []) if start is None else at[key_of(start, OF_METRIC)]
    return {"choices": (*CHOICES, *[METRIC] * bool(named)), "start": first, "figures": figures}


def about(name: str, title: str, caption: str) -> Json:
    """Return the parts of a figure other than its views: name, texts and axes."""
    across, up = AXES[name]
    axes = {"x": [axis_json(axis) for axis in across], "y": axis_json(up)}
    quantities = {"of": [{"key": cost, "label": f"{unit} to the target"} for cost, (_, unit, _) in COSTS.items()]}
    return {"name": name, "title": title, "caption": caption, **axes} | (quantities if name == "costs" else {})


def _written(make: Callable[[tuple], Iterable[Json | None]], key: tuple) -> list[Json]:
    """Make the views of a reading, and check that they can be written as JSON."""
    views = [view for view in make(key) if view]
    json.dumps(views, allow_nan=False)  # fails here, within an attempt, rather than for the whole page
    return views


TITLES = {
    "loss-curves": "Loss along training, by batch size",
    "exponents": "Convergence exponent against batch size",
    "steps": "Iterations to a target against batch size",
    "targets": "Critical batch size against the target loss",
    "costs": "Cost to a target against batch size",
}

CAPTIONS = STATIC_CAPTIONS | {
    "steps": (
        "Iterations N(b) to a target against batch size b: geometric mean over seeds with 95 % interval, the fit "
        "N_inf (1 + (b_N/b)^q)^(1/q), perfect scaling N(1)/b, and, with their intervals, the fitted critical batch "
        "size b_N and b_star = gamma/k_op, predicted at initialization. The target is that of the answer; move it to "
        "see another."
    ),
    "targets": (
        "The critical batch size b_N, fitted to N(b), against the target loss that N counts to, with its 95 % "
        "interval; b_star, predicted at initialization, is dashed. Hollow: the best stepsize of some batch size is the "
        "largest or smallest that was tried there, so that another might be better. Where there is no point the data "
        "support no b_N; the notes of the figure above say why. Training goes from right to left."
    ),
    "costs": (
        "What a target costs against batch size b: samples b N(b), seconds in SGD steps (evaluations not "
        "counted), device-hours (of a GPU, or a core where there is none), or with prices money: geometric mean over "
        "seeds with 95 % interval. Marked, for the deepest target (circles): where the cost is least, and b_20, up to "
        "which less than 20 % of the samples are wasted."
    ),
}


OF_METRIC = (*READING, "metric")
"""The columns that the rows of a view share."""


def _of_loss(key: tuple) -> bool:
    return key[-1] == TRAIN_LOSS


def _rows(table: pd.DataFrame) -> Iterator[tuple[tuple, dict]]:
    for row in table[list(OF_METRIC)].drop_duplicates().to_dict("records"):
        yield key_of(row, OF_METRIC), row


def _by_reading(table: pd.DataFrame) -> dict[tuple, pd.DataFrame]:
    # `key_of`, since pandas' own keys may contain nan, which does not equal itself
    groups = table.groupby(list(OF_METRIC), dropna=False, sort=False)
    return {key_of(rows.iloc[0], OF_METRIC): rows for _, rows in groups}


def _chosen(trials: pd.DataFrame) -> dict[tuple, pd.DataFrame]:
    """Select, for each reading under the training loss, the best trial by h of each seed and batch size."""
    chosen = {}
    for _, group in usable(trials).groupby(list(GROUP), dropna=False, sort=False):
        for reading in readings(group):
            chosen[(*key_of(reading.iloc[0]), TRAIN_LOSS)] = best_of(reading.assign(score=by_h), "score")
    return chosen


def _width(row: Mapping) -> str:
    return str(row["width"]) if row["width"] else "none"


def _drawn(view: View) -> Json | None:
    return None if view.empty else as_json(view)


def _steps(points: pd.DataFrame, fits: pd.DataFrame) -> Json | None:
    """Make the view of N(b) at each target; the batch sizes, which all targets share, are stored once."""
    if points["value"].isna().all():
        return None
    sizes = sorted(points["batch_size"].unique().tolist())
    ranked = deepening(fits.dropna(subset="target"))
    by = [as_json(at_target(of_target(points, fit), fit, sizes)) for fit in ranked.to_dict("records")]
    x: Json = {"b": sizes}
    shared: Json = {"x": x, "dense": {"b": numbers(dense(sizes))}, "ticks": x}
    for view in by:  # `shared` has these once for all targets
        del view["ticks"]
        for series in view["series"]:
            del series["x"]
            series.get("fit", {}).pop("x", None)
    return {**_levels(ranked), "by": by, **shared}


def _targets(fits: pd.DataFrame) -> Json | None:
    """Make the view of b_N against the target, with a mark at the chosen target."""
    view = targets(fits)
    if view.empty:
        return None
    ranked = fits.dropna(subset="target").sort_values("target", ascending=False)
    picked = (
        Mark(f"L ≤ {level:g}, the target shown above", "soft", "dashdot", level, math.nan, math.nan)
        for level in ranked["target"]
    )
    shared = {name: part for name, part in as_json(view).items() if part}
    return {**_levels(ranked), "by": [{"marks": [mark_json(mark)]} for mark in picked], **shared}


def _levels(ranked: pd.DataFrame) -> Json:
    """Return the targets of a reading, the index of the headline's, and those of the sweep's own."""
    start, own = (np.flatnonzero(ranked[name].to_numpy(dtype=bool)).tolist() for name in ("headline", "own"))
    metric = ranked["metric"].iloc[0]
    named = {"metric": METRICS[metric], "symbol": target_symbol(metric)}
    return {**named, "levels": numbers(ranked["target"]), "start": min(start, default=0), "own": own}
