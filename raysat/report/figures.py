"""A sweep's figures as plain data, which `assets/` draws: series, marks and axes, and nothing about pixels.

A *figure* has axes and several *views*, one for each combination of what a reader can choose (`at`). A view has
*series* (points, or a line, each with a name in the legend), *marks* (values on the horizontal axis) and notes. A
figure of several quantities has a view for each, which says what it is `of`. A view of several targets has their
losses (`levels`), the place of the headline's (`start`), and what it shows at each (`by`), beside what all of them
share: notes, marks, and where series have none of their own their `x`, which of curves is `dense`. A value of null is
not drawn, an infinite end of an interval is drawn to the frame. A series with `"interactive": false` is a curve without
points to be asked for; one with `"clip": true` is cut at the frame, where the axes reach around the others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import pandas as pd

from raysat.analysis import (
    GROUP,
    READING,
    SETTING,
    Analysis,
    best_of,
    by_h,
    comparable,
    devices,
    key_of,
    method,
    no_interpolation,
    number,
    readings,
    scatter,
    short_settings,
    usable,
)
from raysat.analysis.efficiency import RULES
from raysat.analysis.ladder import Ladder
from raysat.analysis.words import bounds
from raysat.plots import CAPTIONS as STATIC_CAPTIONS
from raysat.plots.attempts import Attempt, plainly
from raysat.report import iterations
from raysat.report.series import PALETTE, Json, dense, ends_of, mark_at, measured, numbers, sentence
from raysat.saturation.formulas import h_interpolated

CHOICES = ("Data and model", "Width", "Stepsizes")
"""What a reader picks, in the order of a view's `at`."""

LOSS = {"mse": "loss L (½ mean squared residual)", "cross_entropy": "loss L (mean cross-entropy, nats)"}


def payload(
    trials: pd.DataFrame,
    curves: pd.DataFrame,
    analysis: Analysis,
    ladder: Ladder,
    start: Mapping | None,
    attempt: Attempt = plainly,
) -> Json:
    """All figures of a sweep.

    Args:
        trials: The `trials` table.
        curves: The `curves` table.
        analysis: Its analysis.
        ladder: The same at many targets.
        start: The row of `raysat.analysis.summary` that is shown first. Default: the first reading.
        attempt: Makes the views of each reading. Default: an error is raised.
    """
    names = short_settings(analysis.fits)
    at = {key: [names[key[: len(SETTING)]], _width(row), method(row)] for key, row in _rows(analysis.fits)}
    points, fits, costs, choices = map(_by_reading, (analysis.points, analysis.fits, analysis.costs, analysis.choices))
    steps, rungs = map(_by_reading, (ladder.points, ladder.fits))
    chosen = _chosen(comparable(trials))
    draw = {
        "steps": lambda key: [iterations.steps(steps[key], rungs[key])] if key in steps else [],
        "targets": lambda key: [iterations.targets(rungs[key])] if key in rungs else [],
        "costs": lambda key: _costs(costs[key], choices[key]) if key in costs else [],
        "exponents": lambda key: [_exponents(points[key], fits[key])] if key in points else [],
        "loss-curves": lambda key: [_loss_curves(chosen[key], curves)] if key in chosen else [],
    }
    figures = []
    for name, make in draw.items():
        made = [(key, attempt(f"{TITLES[name]}, {', '.join(at[key])},", partial(_written, make, key))) for key in at]
        views = [{"at": at[key], **view} for key, several in made for view in several or ()]
        if views:
            figures.append(
                {"name": name, "title": TITLES[name], "caption": CAPTIONS[name], **AXES[name]} | {"views": views}
            )
    first = next(iter(at.values()), [])
    return {"choices": CHOICES, "start": at[key_of(start)] if start is not None else first, "figures": figures}


def _written(make: Callable[[tuple], Iterable[Json | None]], key: tuple) -> list[Json]:
    """The views of a reading, which are checked for what a page cannot have."""
    views = [view for view in make(key) if view]
    json.dumps(views, allow_nan=False)
    return views


TITLES = {
    "loss-curves": "Loss along training, by batch size",
    "exponents": "Convergence exponent against batch size",
    "steps": "Iterations to a target loss against batch size",
    "targets": "Critical batch size against the target loss",
    "costs": "Cost to a target loss against batch size",
}

CAPTIONS = STATIC_CAPTIONS | {
    "steps": (
        "Iterations N(b) to a target loss against batch size b: geometric mean over seeds with 95 % interval, the fit "
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
        "What a target loss costs against batch size b: samples b N(b), seconds in SGD steps (evaluations not "
        "counted), or device-hours (of a GPU, or a core where there is none): geometric mean over seeds with 95 % "
        "interval. Marked, for the deepest target (circles): where the cost is least, and b_20, up to which less than "
        "20 % of the samples are wasted."
    ),
}

NO_INTERVALS = "No intervals: there is one seed, and no fit about which it could scatter."

COSTS = {
    "samples": {"label": "samples to the target", "short": "samples"},
    "seconds": {"label": "seconds in SGD steps to the target", "short": "seconds"},
    "device_hours": {"label": "device-hours to the target", "short": "device-hours"},
}
"""The costs of `raysat.analysis.efficiency`, each a quantity of the last figure."""

_BATCH = [{"key": "b", "label": "batch size b (samples)", "short": "b", "log": True}]
AXES = {
    "loss-curves": {
        "x": [
            {"key": "iteration", "label": "iteration t", "short": "t", "log": True},
            {"key": "samples", "label": "samples used, t b", "short": "samples", "log": True},
            {"key": "seconds", "label": "seconds in SGD steps", "short": "seconds", "log": True},
            {"key": "device_seconds", "label": "device-seconds in SGD steps", "short": "device-seconds", "log": True},
        ],
        "y": {"label": "loss L", "short": "L", "log": True},
    },
    "exponents": {"x": _BATCH, "y": {"label": "exponent h (1/iterations)", "short": "h", "log": False}},
    "steps": {"x": _BATCH, "y": {"label": "iterations N to the target loss", "short": "N", "log": True}},
    "targets": {
        "x": [{"key": "target", "label": "target loss L", "short": "L ≤", "log": True}],
        "y": {"label": "critical batch size b_N (samples)", "short": "b_N", "log": True},
    },
    "costs": {
        "x": _BATCH,
        "y": {"label": "cost to the target", "short": "cost", "log": True},
        "of": [{"key": cost, "label": axis["label"]} for cost, axis in COSTS.items()],
    },
}


def _rows(table: pd.DataFrame) -> Iterator[tuple[tuple, dict]]:
    for row in table[list(READING)].drop_duplicates().to_dict("records"):
        yield key_of(row), row


def _by_reading(table: pd.DataFrame) -> dict[tuple, pd.DataFrame]:
    groups = table.groupby(list(READING), dropna=False, sort=False)
    return {key_of(rows.iloc[0]): rows for _, rows in groups}


def _chosen(trials: pd.DataFrame) -> dict[tuple, pd.DataFrame]:
    """For each reading the trial of each seed and batch size: of several stepsizes the best one by h."""
    chosen = {}
    for _, group in usable(trials).groupby(list(GROUP), dropna=False, sort=False):
        for reading in readings(group):
            chosen[key_of(reading.iloc[0])] = best_of(reading.assign(score=by_h), "score")
    return chosen


def _width(row: Mapping) -> str:
    return str(row["width"]) if row["width"] else "none"


def _loss_curves(chosen: pd.DataFrame, curves: pd.DataFrame) -> Json | None:
    paths = chosen[["cell_id", "batch_size"]].assign(devices=devices(chosen)).merge(curves, on="cell_id")
    paths = paths.assign(device_seconds=paths["devices"] * paths["seconds"])
    measured = paths.groupby(["batch_size", "iteration"]).agg(
        samples=("samples", "median"),
        seconds=("seconds", "median"),
        device_seconds=("device_seconds", "median"),
        median=("train_loss", "median"),
        low=("train_loss", "min"),
        high=("train_loss", "max"),
        count=("train_loss", "count"),
    )
    by_size = list(measured.groupby(level="batch_size"))
    if not by_size:  # rows without their curves
        return None
    series, ends = [], []
    for k, (b, losses) in enumerate(by_size):
        losses = losses.droplevel("batch_size")
        losses = losses[losses["count"] == losses["count"].max()]
        several = losses["count"].max() > 1
        ends.append(next(iter(losses["median"].dropna().iloc[::-1]), math.nan))
        series.append(
            {"name": f"b = {b}", "shade": k / max(1, len(by_size) - 1), "mark": k, "line": True}
            | {
                "x": {"iteration": losses.index.tolist()}
                | {key: numbers(losses[key]) for key in ("samples", "seconds", "device_seconds")}
            }
            | {"y": numbers(losses["median"])}
            | ({"low": numbers(losses["low"]), "high": numbers(losses["high"]), "spread": "band"} if several else {})
        )
    first, last = by_size[0][0], by_size[-1][0]
    said = (
        f"{len(series)} batch sizes, b = {first} to {last}; the loss ends at {number(ends[0])} for b = {first} and at "
        f"{number(ends[-1])} for b = {last}."
    )
    return {"series": series, "summary": said, "y": {"label": LOSS.get(chosen["loss"].iloc[0], "loss L")}}


def _exponents(points: pd.DataFrame, fits: pd.DataFrame) -> Json | None:
    points, fit = points[points["quantity"] == "h"], fits[fits["quantity"] == "b_h"].iloc[0]
    if points["value"].isna().all():
        return None
    name = "measured h, 95 % interval" if points["low"].notna().any() else "measured h"
    series = [measured(points, name, "ink", 0, extra=("h_interp",))]
    notes = [] if math.isnan(fit["range"]) else [f"h varies by a factor of {number(fit['range'])}."]
    if points["h_interp"].notna().any():
        b, stands_in = dense(points["batch_size"]), int(points["h_interp_n"].iloc[0])
        one, full = points["value"].iloc[0], points["value"].iloc[-1]
        curve = {"x": {"b": numbers(b)}, "y": numbers(h_interpolated(size, one, full) for size in b)}
        name = f"predicted: interpolated from h(1) and h({stands_in})"
        series.append({"name": name, "tone": "blue", "dash": "7 4", "line": True, "interactive": False, **curve})
        if stands_in < points["n"].iloc[0]:
            notes.append(f"h({stands_in}) stands in for h(n), n = {points['n'].iloc[0]:,}.")
    else:
        notes.append(sentence(no_interpolation(points.iloc[0])))
    if not math.isnan(fit["value"]):
        notes.append(f"Fit: b_h = {number(fit['value'])} samples, {scatter(fit['rms_log_residual'])}.")
    notes += [sentence(fit["reason"])] * bool(fit["reason"])
    said = ends_of(points, "h", "per iteration")
    return {"series": series, "notes": notes, "summary": said, "ticks": {"b": points["batch_size"].tolist()}}


def _costs(costs: pd.DataFrame, choices: pd.DataFrame) -> Iterator[Json]:
    """A view for each cost that was measured."""
    sizes = sorted(costs["batch_size"].unique().tolist())
    for cost, axis in COSTS.items():
        own = costs[costs["cost"] == cost].sort_values(
            ["headline", "target", "batch_size"], ascending=[False, True, True]
        )
        if own.empty:
            continue
        chosen = choices[choices["headline"].astype(bool) & choices["choice"].isin(RULES[cost])]
        tones = iter(("blue", *(tone for tone in PALETTE if tone not in ("blue", "orange"))))
        series = [
            measured(rows, f"to L ≤ {target:g}", next(tones, "ink"), k) | {"line": True}
            for k, (target, rows) in enumerate(own.groupby("target", sort=False))
        ]
        marks, notes = [], [NO_INTERVALS] * bool(own["low"].isna().all())
        for choice in chosen.to_dict("records"):
            name, tone, dash = ("b_20", "orange", "6 4") if choice["choice"] == "b_20" else ("least", "ink", "8 3 2 3")
            said = f"{name} at b = {number(choice['batch_size'])} {bounds(choice['low'], choice['high'])}".strip()
            if math.isfinite(choice["batch_size"]):
                marks.append(mark_at(said, tone, dash, (choice["batch_size"], choice["low"], choice["high"])))
            notes += [f"{name}: {choice['reason']}."] * bool(choice["reason"])
        first = own[own["headline"].astype(bool)]
        said = [ends_of(first if len(first) else own, axis["short"].capitalize(), axis["label"])]
        said += [f"Marked: {mark['name']}." for mark in marks]
        about = {"of": cost, "y": axis, "ticks": {"b": sizes}, "summary": " ".join(said)}
        yield {**about, "series": series, "marks": marks, "notes": notes}
