"""The figures that move with the target: N(b), and b_N against the target."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float

from raysat.analysis import THEORY_CAVEAT, number, policy, scatter
from raysat.analysis.words import bounds
from raysat.report.series import Json, dense, ends_of, mark_at, measured, numbers, sentence
from raysat.saturation.fits import law


def steps(points: pd.DataFrame, fits: pd.DataFrame) -> Json | None:
    """N(b) at each target."""
    if points["value"].isna().all():
        return None
    sizes = sorted(points["batch_size"].unique().tolist())
    b = dense(points["batch_size"])
    ranked = fits.dropna(subset="target").sort_values("target", ascending=False)
    by_level = {level: rows.set_index("batch_size").reindex(sizes) for level, rows in points.groupby("target")}
    return {
        **_levels(ranked),
        "by": [_at_target(by_level[fit["target"]], fit, b) for fit in ranked.to_dict("records")],
        "marks": _predicted(fits.iloc[0].to_dict()),
        "notes": [THEORY_CAVEAT] * (policy(fits["stepsize"].iloc[0]) == "theory"),
        "x": {"b": sizes},
        "dense": {"b": numbers(b)},
        "ticks": {"b": sizes},
    }


def _levels(ranked: pd.DataFrame) -> Json:
    """The targets of a reading, the place of the headline's, and those of the sweep's own."""
    start, own = (np.flatnonzero(ranked[name].to_numpy(dtype=bool)).tolist() for name in ("headline", "own"))
    return {"levels": numbers(ranked["target"]), "start": min(start, default=0), "own": own}


def _at_target(rows: pd.DataFrame, fit: Mapping, b: Float[np.ndarray, " b"]) -> Json:
    """Return what the figure of N(b) shows at a target.

    Args:
        rows: The points by batch size, nan where there is no value.
        fit: Their fit.
        b: Where its curve is drawn.
    """
    marks, notes = [], [sentence(fit["reason"])] * bool(fit["reason"])
    one = measured(rows.reset_index(), f"N to L ≤ {fit['target']:g}", "blue", 0)
    del one["x"]
    if not math.isnan(fit["value"]):
        value = number(fit["value"])
        one |= {"name": f"{one['name']}, fit b_N = {value}"}
        one |= {"fit": {"y": numbers(law(b, fit["asymptote"], fit["value"], fit["q"]))}}
        notes.insert(0, f"Fit: b_N = {value} samples, {scatter(fit['rms_log_residual'])}.")
        ends = fit["value"], fit["low"], fit["high"]
        said = f"b_N = {value} {bounds(fit['low'], fit['high'])}".rstrip()
        marks = [mark_at(f"{said}, measured", "blue", "8 3 2 3", ends)]
    series, known = [one], rows["value"].dropna()
    if len(known):
        perfect = {"tone": "soft", "dash": "2 4", "line": True, "interactive": False, "clip": True}
        perfect |= {"y": numbers(known.iloc[0] * known.index[0] / b)}
        series.append({"name": f"perfect scaling N({known.index[0]})/b", **perfect})
    said = [ends_of(rows.reset_index(), "N", f"iterations to loss {fit['target']:g}")]
    said += [f"Marked: {mark['name']}." for mark in (*marks, *_predicted(fit))]
    return {"series": series, "marks": marks, "notes": notes, "summary": " ".join(said)}


def targets(fits: pd.DataFrame) -> Json | None:
    """b_N against the target; None where fewer than two targets have one."""
    ranked = fits.dropna(subset="target").sort_values("target", ascending=False)
    known = ranked.dropna(subset="value")
    if len(known) < 2:
        return None
    at_end = known["reason"].str.contains("widen the grid", regex=False)
    series = []
    for name, rows, look in (
        ("b_N", known[~at_end], {}),
        ("b_N, best stepsize at an end of those tried", known[at_end], {"hollow": True}),
    ):
        values = {name: numbers(rows[column]) for name, column in (("y", "value"), ("low", "low"), ("high", "high"))}
        about = {"name": name, "tone": "blue", "mark": 0, "spread": "bars", "extra": {"q": numbers(rows["q"])}}
        series += [about | look | {"x": {"target": numbers(rows["target"])}} | values] * bool(len(rows))
    star = ranked["b_star"].iloc[0]
    if not math.isnan(star):
        ends = numbers((ranked["target"].min(), ranked["target"].max()))
        look = {"tone": "orange", "dash": "6 4", "line": True, "interactive": False}
        series.append({"name": f"b_star = {number(star)}, predicted", **look, "x": {"target": ends}, "y": [star, star]})
    by = [
        {"marks": [mark_at(f"L ≤ {level:g}, the target shown above", "soft", "8 3 2 3", (level, math.nan, math.nan))]}
        for level in ranked["target"]
    ]
    first, last = known.iloc[0], known.iloc[-1]
    said = (
        f"b_N goes from {number(first['value'])} at loss {first['target']:g} to {number(last['value'])} at loss "
        f"{last['target']:g}; it has a value at {len(known)} of {len(ranked)} targets."
    )
    return {**_levels(ranked), "by": by, "series": series, "summary": said}


def _predicted(fit: Mapping) -> list[Json]:
    """b_star on the axis of batch sizes, from its smallest to its largest value over seeds."""
    values = tuple(fit[name] for name in ("b_star", "b_star_min", "b_star_max"))
    name = f"b_star = {number(values[0])}, predicted"
    return [] if math.isnan(values[0]) else [mark_at(name, "orange", "6 4", values)]
