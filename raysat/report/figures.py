"""A sweep's figures as plain data, which `assets/` draws: series, marks and axes, and nothing about pixels.

A *figure* has axes and several *views*, one for each combination of what a reader can choose (`at`). A view has
*series* (points, or a line, each with a name in the legend), *marks* (values on the horizontal axis) and notes. A
figure of several quantities has a view for each, which says what it is `of`. A value of null is not drawn, an infinite
end of an interval is drawn to the frame. A *quiet* series is a curve without points to be asked for, a *loose* one may
leave the frame.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from raysat.analysis import (
    GROUP,
    READING,
    SETTING,
    THEORY_CAVEAT,
    Analysis,
    best_of,
    comparable,
    devices,
    method,
    no_interpolation,
    number,
    policy,
    readings,
    scatter,
    usable,
)
from raysat.analysis.efficiency import RULES
from raysat.analysis.words import bounds
from raysat.plots import CAPTIONS as STATIC_CAPTIONS
from raysat.plots.attempts import Attempt, plainly
from raysat.saturation.fits import law
from raysat.saturation.formulas import h_interpolated

Json = dict[str, Any]

DIGITS = 5
"""Significant digits of the numbers in a page."""

SMOOTH = 96
"""Points of a curve that is known at every b. Default: 96, at which no corner is seen on either kind of axis."""

TONES = ("blue", "orange", "green", "purple", "ink")
"""Colours of series without an order, named in `assets/page.css`, which says how far apart they are."""

INFINITE = "Infinity"
"""How an infinite number stands in a page, for JSON has none."""

CHOICES = ("Data and model", "Width", "Stepsizes")
"""What a reader picks, in the order of a view's `at`."""

LOSS = {"mse": "loss L (½ mean squared residual)", "cross_entropy": "loss L (mean cross-entropy, nats)"}


def payload(
    trials: pd.DataFrame, curves: pd.DataFrame, analysis: Analysis, start: Mapping | None, attempt: Attempt = plainly
) -> Json:
    """All figures of a sweep.

    Args:
        trials: The `trials` table.
        curves: The `curves` table.
        analysis: Its analysis.
        start: The row of `raysat.analysis.summary` that is shown first. Default: the first reading.
        attempt: Makes the views of each reading. Default: an error is raised.
    """
    names = short_settings(analysis.fits)
    at = {key: [names[key[: len(SETTING)]], _width(row), method(row)] for key, row in _rows(analysis.fits)}
    points, fits, costs, choices = map(_by_reading, (analysis.points, analysis.fits, analysis.costs, analysis.choices))
    chosen = _chosen(comparable(trials))
    draw = {
        "steps": lambda key: [_steps(points[key], fits[key])] if key in points else [],
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
    "costs": "Cost to a target loss against batch size",
}

CAPTIONS = STATIC_CAPTIONS | {
    "steps": (
        "Iterations N(b) to a target loss against batch size b: geometric mean over seeds with 95 % interval, the fit "
        "N_inf (1 + (b_N/b)^q)^(1/q), perfect scaling N(1)/b, and, with their intervals, the fitted critical batch "
        "size b_N of the deepest target (circles) and b_star = gamma/k_op, predicted at initialization."
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
    "costs": {
        "x": _BATCH,
        "y": {"label": "cost to the target", "short": "cost", "log": True},
        "of": [{"key": cost, "label": axis["label"]} for cost, axis in COSTS.items()],
    },
}


def numbers(values: Iterable[float]) -> list[float | str | None]:
    """The values as JSON has them: a few digits, `INFINITE` for infinity, null for what is no number."""
    return [
        INFINITE if value == math.inf else float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
        for value in map(float, values)
    ]


def short_settings(fits: pd.DataFrame) -> dict[tuple, str]:
    """A name for each setting, of the data set, the model and what else differs between them."""
    rows = fits[list(SETTING)].drop_duplicates().to_dict("records")
    facts = []
    for row in rows:
        try:
            options = dict(json.loads(row["model_options"]))
        except (TypeError, ValueError):
            options = {}
        hidden = {"model_options", "depth", "activation", "iterations_least"}  # depth, activation are options too
        facts.append({name: value for name, value in row.items() if name not in hidden} | options)
    every = list(dict.fromkeys(name for fact in facts for name in fact))
    varied = [name for name in every if len({str(fact.get(name)) for fact in facts}) > 1]
    return {
        key_of(row, SETTING): ", ".join(
            [f"{fact['dataset']}", f"{fact['model']}"]
            + [f"{name} = {fact[name]}" for name in varied if name not in ("dataset", "model") and name in fact]
        )
        for row, fact in zip(rows, facts, strict=True)
    }


def key_of(row: Mapping | pd.Series, columns: Sequence[str] = READING) -> tuple:
    """A reading's values as a dictionary's key: nan, which equals nothing, is None."""
    return tuple(None if pd.isna(row[name]) else row[name] for name in columns)


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
            chosen[key_of(reading.iloc[0])] = best_of(reading.assign(score=-reading["h"]), "score")
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
    series = [_measured(points, name, "ink", 0, extra=("h_interp",))]
    notes = [] if math.isnan(fit["range"]) else [f"h varies by a factor of {number(fit['range'])}."]
    if points["h_interp"].notna().any():
        b, stands_in = _dense(points["batch_size"]), int(points["h_interp_n"].iloc[0])
        one, full = points["value"].iloc[0], points["value"].iloc[-1]
        curve = {"x": {"b": numbers(b)}, "y": numbers(h_interpolated(size, one, full) for size in b)}
        name = f"predicted: interpolated from h(1) and h({stands_in})"
        series.append({"name": name, "tone": "blue", "dash": "7 4", "line": True, "quiet": True, **curve})
        if stands_in < points["n"].iloc[0]:
            notes.append(f"h({stands_in}) stands in for h(n), n = {points['n'].iloc[0]:,}.")
    else:
        notes.append(_sentence(no_interpolation(points.iloc[0])))
    if not math.isnan(fit["value"]):
        notes.append(f"Fit: b_h = {number(fit['value'])} samples, {scatter(fit['rms_log_residual'])}.")
    notes += [_sentence(fit["reason"])] * bool(fit["reason"])
    said = _ends(points, "h", "per iteration")
    return {"series": series, "notes": notes, "summary": said, "ticks": {"b": points["batch_size"].tolist()}}


def _steps(points: pd.DataFrame, fits: pd.DataFrame) -> Json | None:
    points, fits = points[points["quantity"] == "N"], fits[fits["quantity"] == "b_N"]
    if points["value"].isna().all():
        return None
    series, marks, notes, said = [], [], [], []
    by_rank = fits.sort_values(["headline", "target"], ascending=[False, True])
    tones = iter(("blue", *(tone for tone in TONES if tone not in ("blue", "orange"))))  # orange is b_star's
    for k, fit in enumerate(by_rank.to_dict("records")):
        rows = points[(points["target"] == fit["target"]) & points["value"].notna()]
        if fit["headline"]:
            marks = _marks(fit)
            if not math.isnan(fit["value"]):
                notes.append(f"Fit: b_N = {number(fit['value'])} samples, {scatter(fit['rms_log_residual'])}.")
            notes += [_sentence(fit["reason"])] * bool(fit["reason"])
        if rows.empty:
            continue
        one = _measured(rows, f"N to L ≤ {fit['target']:g}", next(tones, "ink"), k)
        b = _dense(rows["batch_size"])
        if not math.isnan(fit["value"]):
            fitted = law(b, fit["asymptote"], fit["value"], fit["q"])
            one["fit"] = {"x": {"b": numbers(b)}, "y": numbers(fitted)}
            one["name"] += f", fit b_N = {number(fit['value'])}"
        series.append(one)
        if fit["headline"]:
            first = rows.iloc[0]
            perfect = first["value"] * first["batch_size"] / b
            curve = {"x": {"b": numbers(b)}, "y": numbers(perfect)}
            name = f"perfect scaling N({first['batch_size']})/b"
            series.append(
                {"name": name, "tone": "soft", "dash": "2 4", "line": True, "quiet": True, "loose": True, **curve}
            )
            said.append(_ends(rows, "N", f"iterations to loss {fit['target']:g}"))
    if policy(by_rank["stepsize"].iloc[0]) == "theory":
        notes.append(THEORY_CAVEAT)
    said += [f"Marked: {mark['name']}." for mark in marks]
    sizes = sorted(points["batch_size"].unique().tolist())
    return {"series": series, "marks": marks, "notes": notes, "summary": " ".join(said), "ticks": {"b": sizes}}


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
        tones = iter(("blue", *(tone for tone in TONES if tone not in ("blue", "orange"))))
        series = [
            _measured(rows, f"to L ≤ {target:g}", next(tones, "ink"), k) | {"line": True}
            for k, (target, rows) in enumerate(own.groupby("target", sort=False))
        ]
        marks, notes = [], [NO_INTERVALS] * bool(own["low"].isna().all())
        for choice in chosen.to_dict("records"):
            name, tone, dash = ("b_20", "orange", "6 4") if choice["choice"] == "b_20" else ("least", "ink", "8 3 2 3")
            said = f"{name} at b = {number(choice['batch_size'])} {bounds(choice['low'], choice['high'])}".strip()
            if math.isfinite(choice["batch_size"]):
                marks.append(_mark(said, tone, dash, (choice["batch_size"], choice["low"], choice["high"])))
            notes += [f"{name}: {choice['reason']}."] * bool(choice["reason"])
        first = own[own["headline"].astype(bool)]
        said = [_ends(first if len(first) else own, axis["short"].capitalize(), axis["label"])]
        said += [f"Marked: {mark['name']}." for mark in marks]
        about = {"of": cost, "y": axis, "ticks": {"b": sizes}, "summary": " ".join(said)}
        yield {**about, "series": series, "marks": marks, "notes": notes}


def _measured(rows: pd.DataFrame, name: str, tone: str, mark: int, extra: Sequence[str] = ()) -> Json:
    """Points with intervals, and what else a reader may want to know of each."""
    shown = {"seeds": rows["seeds"].tolist()}
    shown |= {
        column: numbers(rows[column])
        for column in (*extra, "eta", "eta_beta", "eta_k_op")
        if column in rows and rows[column].notna().any()
    }
    values = {end: numbers(rows[end]) for end in ("low", "high")} if rows["low"].notna().any() else {}
    spread = {"spread": "bars"} if values else {}
    about = {"name": name, "tone": tone, "mark": mark, "x": {"b": rows["batch_size"].tolist()}}
    return about | {"y": numbers(rows["value"]), **values, **spread, "extra": shown}


def _marks(fit: Mapping) -> list[Json]:
    """b_N and b_star on the axis of batch sizes, with their intervals."""
    marks = []
    for name, key, tone, dash, kind in (
        ("b_N", "value", "blue", "8 3 2 3", "measured"),
        ("b_star", "b_star", "orange", "6 4", "predicted"),
    ):
        ends = ("low", "high") if key == "value" else ("b_star_min", "b_star_max")
        value, low, high = (fit[column] for column in (key, *ends))
        if not math.isnan(value):
            ends = f" {bounds(low, high)}".rstrip() if kind == "measured" else ""
            marks.append(_mark(f"{name} = {number(value)}{ends}, {kind}", tone, dash, (value, low, high)))
    return marks


def _mark(name: str, tone: str, dash: str, values: tuple[float, float, float]) -> Json:
    """A value on the horizontal axis, and the ends of its interval."""
    return {"name": name, "tone": tone, "dash": dash} | dict(zip(("at", "low", "high"), numbers(values), strict=True))


def _dense(sizes: pd.Series) -> np.ndarray:
    return np.geomspace(sizes.min(), sizes.max(), SMOOTH)


def _ends(rows: pd.DataFrame, quantity: str, unit: str) -> str:
    rows = rows.dropna(subset="value")
    if rows.empty:
        return f"{quantity} has no value."
    ends = (f"{number(row['value'])} at b = {row['batch_size']}" for row in (rows.iloc[0], rows.iloc[-1]))
    return f"{quantity} goes from {' to '.join(ends)}, {unit}."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
