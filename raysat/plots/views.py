"""The figures as plain data: each function takes tables of one reading and returns a `View` for both renderers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from raysat.analysis import THEORY_CAVEAT, devices, no_interpolation, number, policy, scatter, target_label
from raysat.analysis.efficiency import RULES, WASTE
from raysat.analysis.words import bounds
from raysat.plots.description import PALETTE, Axis, Mark, Series, View, dense, ends_of, measured, sentence
from raysat.saturation.fits import law
from raysat.saturation.forecast import Forecast
from raysat.saturation.formulas import h_interpolated
from raysat.spec.goals import TRAIN_LOSS, Target

BATCH = Axis("batch size b (samples)", "b", key="b")

AXES: dict[str, tuple[tuple[Axis, ...], Axis]] = {
    "loss-curves": (
        (
            Axis("iteration t", "t", key="iteration"),
            Axis("samples used, t b", "samples", key="samples"),
            Axis("seconds in SGD steps", "seconds", key="seconds"),
            Axis("device-seconds in SGD steps", "device-seconds", key="device_seconds"),
        ),
        Axis("loss L", "L"),
    ),
    "exponents": ((BATCH,), Axis("exponent h (1/iterations)", "h", log=False)),
    "steps": ((BATCH,), Axis("iterations N to the target loss", "N")),
    "targets": ((Axis("target loss L", "L ≤", key="target"),), Axis("critical batch size b_N (samples)", "b_N")),
    "costs": ((BATCH,), Axis("cost to the target", "cost")),
}
"""The axes of each figure: the horizontal ones, among which a reader of the page chooses, and the vertical one."""

LOSS = {"mse": "½ mean squared residual", "cross_entropy": "mean cross-entropy, nats"}

COSTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "samples": ("samples", "samples", {"tone": "ink", "mark": 0}),
    "seconds": ("seconds", "seconds in SGD steps", {"tone": "blue", "mark": 1, "dash": "dashed"}),
    "device_hours": (
        *("device-hours", "device-hours"),
        {"tone": "orange", "mark": 2, "dash": "dashdot", "hollow": True},
    ),
    "money": ("money", "money at the given prices", {"tone": "green", "mark": 3, "dash": "dotted"}),
}
"""The costs of `raysat.analysis.efficiency`: short name, unit, and look in a figure of all of them."""

NO_INTERVALS = "No intervals: there is one seed, and no fit about which it could scatter."


def loss_curves(chosen: pd.DataFrame, curves: pd.DataFrame, sizes: Sequence[int] = ()) -> View:
    """Show L(w_t) with a line for each batch size: the median over seeds, in a band from the smallest to the largest.

    Args:
        chosen: The trial that counts for each seed and batch size.
        curves: The `curves` table.
        sizes: The batch sizes of all panels, so that each has the same look in all. Default: those of `chosen`.
    """
    paths = chosen[["cell_id", "batch_size"]].assign(devices=devices(chosen)).merge(curves, on="cell_id")
    paths = paths.assign(device_seconds=paths["devices"] * paths["seconds"])
    known = paths.groupby(["batch_size", "iteration"]).agg(
        **{name: (name, "median") for name in ("samples", "seconds", "device_seconds")},
        median=("train_loss", "median"),
        low=("train_loss", "min"),
        high=("train_loss", "max"),
        count=("train_loss", "count"),
    )
    by_size = {b: losses.droplevel("batch_size") for b, losses in known.groupby(level="batch_size")}
    if not by_size:  # rows without their curves
        return View(())
    places, series, ends = sorted({*sizes, *by_size}), [], []
    for b, losses in by_size.items():
        # only iterations at which all seeds have a loss: the median jumps when one of them ends
        losses = losses[losses["count"] == losses["count"].max()]
        ends.append(next(iter(losses["median"].dropna().iloc[::-1]), math.nan))
        k = places.index(b)
        one = Series(
            f"b = {b}",
            {"iteration": losses.index} | {key: losses[key] for key in ("samples", "seconds", "device_seconds")},
            losses["median"],
            **{"end": f"b = {b}", "shade": k / max(1, len(places) - 1), "mark": k, "line": True},
        )
        several = losses["count"].max() > 1
        series.append(replace(one, low=losses["low"], high=losses["high"], spread="band") if several else one)
    first, *_, last = [*by_size, *by_size]  # twice, for a single batch size
    said = (
        f"{len(series)} batch sizes, b = {first} to {last}; the loss ends at {number(ends[0])} for b = {first} and at "
        f"{number(ends[-1])} for b = {last}."
    )
    loss = chosen["loss"].iloc[0]
    return View(series, summary=said, y=Axis(f"loss L ({LOSS.get(loss, f'mean of {loss}')})", "L"))


def exponents(points: pd.DataFrame, fits: pd.DataFrame) -> View:
    """Show h(b) with its intervals, the interpolated h, and the range of h in words."""
    points, fit = points[points["quantity"] == "h"], fits[fits["quantity"] == "b_h"].iloc[0]
    kind = "measured h, 95 % interval"
    name = kind if points["low"].notna().any() else "measured h"
    series = [measured(points, name, ("h_interp",), kind=kind, mark=0)]
    words = [] if math.isnan(fit["range"]) else [f"h varies by a factor of {number(fit['range'])}"]
    interpolated = points["h_interp"].notna().any()
    if interpolated:
        b, stands_in = dense(points["batch_size"]), int(points["h_interp_n"].iloc[0])
        one, full = points["value"].iloc[0], points["value"].iloc[-1]
        look: dict[str, Any] = {"tone": "blue", "dash": "dashed", "line": True}
        name, kind = f"predicted: interpolated from h(1) and h({stands_in})", "interpolated, h(1) to h(n)"
        series.append(Series(name, {"b": b}, [h_interpolated(size, one, full) for size in b], kind, **look))
        # section 5 interpolates between h(1) and h(n); the largest b that was run replaces n
        if stands_in < points["n"].iloc[0]:
            words.append(f"h({stands_in}) stands in for h(n), n = {points['n'].iloc[0]:,}")
    notes = [f"{one}." for one in words]
    if not interpolated:
        why = no_interpolation(points.iloc[0])
        words, notes = [*words, why], [*notes, sentence(why)]
    if not math.isnan(fit["value"]):
        words.append(f"b_h = {number(fit['value'])}")
        notes.append(f"Fit: b_h = {number(fit['value'])} samples, {scatter(fit['rms_log_residual'])}.")
    notes += [sentence(fit["reason"])] * bool(fit["reason"])
    ticks = {"b": points["batch_size"].tolist()}
    return View(series, notes=notes, words=words, summary=ends_of(points, "h", "per iteration"), ticks=ticks)


def at_target(points: pd.DataFrame, fit: Mapping, sizes: list[int]) -> View:
    """Show N(b) at a target with its fit, perfect scaling, b_N and b_star.

    Args:
        points: The rows of `Analysis.points` at the target.
        fit: The row of `Analysis.fits` at the target.
        sizes: The batch sizes of the reading.
    """
    # nan at batch sizes without a value: the views of all targets share one x
    rows = points.set_index("batch_size").reindex(sizes).reset_index()
    b, value, target = dense(sizes), number(fit["value"]), target_label(fit)
    kind = "measured N, 95 % interval"
    one = measured(rows, f"N to {target}", kind=kind, end=target, tone="blue", mark=0)
    notes, marks, words = [], [], ["no b_N: see the table"]
    if not math.isnan(fit["value"]):
        curve = law(b, fit["asymptote"], fit["value"], fit["q"])
        one = replace(one, name=f"{one.name}, fit b_N = {value}", fit=({"b": b}, curve))
        notes.append(f"Fit: b_N = {value} samples, {scatter(fit['rms_log_residual'])}.")
        said = f"b_N = {value} {bounds(fit['low'], fit['high'])}".rstrip()
        ends = fit["value"], fit["low"], fit["high"]
        marks, words = [Mark(f"{said}, measured", "blue", "dashdot", *ends, kind="b_N, fitted")], [f"b_N = {value}"]
    notes += [sentence(fit["reason"])] * bool(fit["reason"])
    if not math.isnan(fit["b_star"]):
        words.append(f"b_star = {number(fit['b_star'])}")
        ends = fit["b_star"], fit["b_star_min"], fit["b_star_max"]
        marks.append(Mark(f"{words[-1]}, predicted", "orange", "dashed", *ends, kind="b_star, predicted"))
    if policy(fit["stepsize"]) == "theory" and fit["metric"] == TRAIN_LOSS:
        notes.append(THEORY_CAVEAT)
        words += ["eta is made from beta(b):", "this checks the code"]
    series, known = [one], rows.dropna(subset="value")
    if len(known):  # perfect scaling from the smallest batch size that has a value
        series.append(_perfect(known.iloc[0]["batch_size"], known.iloc[0]["value"], sizes))
    summary = [ends_of(rows, "N", f"iterations to {Target.in_row(fit).words}")]
    summary += [f"Marked: {mark.name}." for mark in marks]
    y = None if fit["metric"] == TRAIN_LOSS else Axis("iterations N to the target", "N")
    return View(series, marks, notes, words, " ".join(summary), ticks={"b": sizes}, y=y)


def deepening(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows by metric, as they come, and from the easiest target of each to the hardest."""
    places = {metric: k for k, metric in enumerate(dict.fromkeys(rows["metric"]))}
    depth = [-Target(*row).eps for row in zip(rows["metric"], rows["target"], strict=True)]
    return rows.iloc[np.lexsort((depth, [places[metric] for metric in rows["metric"]]))]


def of_target(table: pd.DataFrame, fit: Mapping) -> pd.DataFrame:
    """Select the rows of a fit's target."""
    return table[(table["metric"] == fit["metric"]) & (table["target"] == fit["target"])]


def _perfect(size: int, steps: float, sizes: Sequence[int]) -> Series:
    """Return the series of an N(b) that falls like 1/b from the smallest batch size on."""
    b = dense(sizes)
    look: dict[str, Any] = {"tone": "soft", "dash": "dotted", "line": True, "clip": True}
    return Series(f"perfect scaling N({size})/b", {"b": b}, steps * size / b, "perfect scaling N(1)/b", **look)


def steps(points: pd.DataFrame, fits: pd.DataFrame) -> View:
    """Show N(b) at all targets: the first headline with perfect scaling, b_N and b_star, the others with their fits."""
    points, fits = points[points["quantity"] == "N"], fits[fits["quantity"] == "b_N"]
    sizes = sorted(points["batch_size"].unique().tolist())
    ranked = deepening(fits).iloc[::-1]
    main = ranked["headline"].astype(bool) & (ranked["metric"] == fits["metric"].iloc[0])
    ranked = ranked.iloc[np.argsort(~main.to_numpy(), kind="stable")]
    views = [at_target(of_target(points, fit), fit, sizes) for fit in ranked.to_dict("records")]
    # the shared legend explains the headline alone (`kind`); labels at the right edge name the other targets
    others = [replace(view.series[0], kind="", mark=k, hollow=True) for k, view in enumerate(views[1:], 1)]
    return replace(views[0], series=[*views[0].series, *others])


def targets(fits: pd.DataFrame) -> View:
    """Show b_N against the target, and b_star; the view is empty if fewer than two targets have a b_N."""
    ranked = fits.dropna(subset="target").sort_values("target", ascending=False)
    known = ranked.dropna(subset="value")
    if len(known) < 2:
        return View(())
    # such a b_N may change with a wider grid: its points are hollow; the words are those of `measure`
    at_end = known["reason"].str.contains("widen the grid", regex=False)
    series = []
    for name, rows in (("b_N", known[~at_end]), ("b_N, best stepsize at an end of those tried", known[at_end])):
        look: dict[str, Any] = {"tone": "blue", "mark": 0, "spread": "bars", "hollow": name != "b_N"}
        look |= {"low": rows["low"], "high": rows["high"], "extra": {"q": rows["q"]}}
        series += [Series(name, {"target": rows["target"]}, rows["value"], **look)] * bool(len(rows))
    star = ranked["b_star"].iloc[0]
    if not math.isnan(star):
        ends = ranked["target"].min(), ranked["target"].max()
        look = {"tone": "orange", "dash": "dashed", "line": True}
        series.append(Series(f"b_star = {number(star)}, predicted", {"target": ends}, [star, star], **look))
    first, last = known.iloc[0], known.iloc[-1]
    said = (
        f"b_N goes from {number(first['value'])} at loss {first['target']:g} to {number(last['value'])} at loss "
        f"{last['target']:g}; it has a value at {len(known)} of {len(ranked)} targets."
    )
    return View(series, summary=said)


def costs(rows: pd.DataFrame, choices: pd.DataFrame) -> Iterator[View]:
    """Yield a view of each measured cost at all targets of a metric, with minimum and b_20 marked for the headline."""
    sizes = sorted(rows["batch_size"].unique().tolist())
    ordered = rows.sort_values(["headline", "target", "batch_size"], ascending=[False, True, True])
    for cost, (name, unit, _) in COSTS.items():
        own = ordered[ordered["cost"] == cost]
        if own.empty:
            continue
        # the headline, which is sorted first, is blue; orange is the color of b_20
        tones = iter(("blue", *(tone for tone in PALETTE if tone not in ("blue", "orange"))))
        series = [
            measured(of, f"to {target_label(of.iloc[0])}", tone=next(tones, "ink"), mark=k, line=True)
            for k, (_, of) in enumerate(own.groupby("target", sort=False))
        ]
        marks, notes = [], [NO_INTERVALS] * bool(own["low"].isna().all())
        chosen = choices[choices["headline"].astype(bool) & choices["choice"].isin(RULES[cost])]
        for choice in chosen.to_dict("records"):
            what, tone, dash = (
                ("b_20", "orange", "dashed") if choice["choice"] == "b_20" else ("least", "ink", "dashdot")
            )
            said = f"{what} at b = {number(choice['batch_size'])} {bounds(choice['low'], choice['high'])}".strip()
            if math.isfinite(choice["batch_size"]):
                marks.append(Mark(said, tone, dash, choice["batch_size"], choice["low"], choice["high"]))
            notes += [f"{what}: {choice['reason']}."] * bool(choice["reason"])
        first = own[own["headline"].astype(bool)]
        axis = Axis(f"{unit} to the target", name)
        summary = [ends_of(first if len(first) else own, name.capitalize(), axis.label)]
        summary += [f"Marked: {mark.name}." for mark in marks]
        yield View(series, marks, notes, summary=" ".join(summary), ticks={"b": sizes}, of=cost, y=axis)


def costs_over_least(rows: pd.DataFrame) -> View:
    """Show all costs of the first metric's headline target at each b, each over its minimum."""
    rows = rows[rows["metric"] == rows["metric"].iloc[0]]
    series, words = [], [target_label(rows.iloc[0])]
    for cost, (name, _, look) in COSTS.items():
        own = rows[rows["cost"] == cost].sort_values("batch_size")
        if own.empty:
            continue
        least = own.iloc[own["value"].argmin()]
        words.append(f"least: {number(least['value'])} {name} at b = {least['batch_size']}")
        relative = own.assign(**{end: own[end] / least["value"] for end in ("value", "low", "high")})
        series.append(measured(relative, name, kind=name, line=True, **look))
    name, ends = f"{WASTE:.0%} above the least".replace("%", " %"), rows["batch_size"].agg(["min", "max"])
    look = {"tone": "soft", "dash": "dotted", "line": True}
    # beyond the batch sizes on both sides: the line crosses the whole panel
    series.append(Series(name, {"b": ends * [1 / 2, 2]}, [1 + WASTE] * 2, name, **look))
    ticks = {"b": sorted(rows["batch_size"].unique().tolist())}
    return View(series, words=words, ticks=ticks, y=Axis("cost to the target over its least", "cost"))


def forecast(made: Forecast) -> View:
    """Show the forecast N(b) of a typical run and of the mean loss, with b_N and b_star."""
    rows, fit = made.by_batch, made.typical
    sizes = rows["batch_size"].tolist()
    x, b = {"b": sizes}, dense(sizes)
    kinds = "forecast N, typical run", "forecast N, mean loss"
    typical = Series("N, typical run", x, rows["N"], kinds[0], tone="blue", mark=0, extra={"eta": rows["eta"]})
    mean = Series("N, mean loss", x, rows["N_mean"], kinds[1], mark=1, extra={"eta": rows["eta_mean"]})
    marks, words = [], [f"L ≤ {number(made.target)}", "no b_N: see the remarks"]
    if not math.isnan(fit.value):
        typical = replace(typical, fit=({"b": b}, law(b, fit.asymptote, fit.value, fit.q)))
        # in place of the words for a refused fit
        words[1:] = [f"b_N = {number(fit.value)}", f"(mean loss {number(made.mean.value)})"]
        marks.append(_at(f"b_N = {number(fit.value)}, forecast", "blue", "dashdot", fit.value, "b_N"))
    star = f"b_star = {number(made.b_star)}"
    marks.append(_at(star, "orange", "dashed", made.b_star, "b_star"))
    if not math.isnan(made.mean.value):
        name = f"b_N = {number(made.mean.value)}, of the mean loss"
        marks.append(_at(name, "soft", "dashdot", made.mean.value, "b_N of the mean loss"))
    series = [typical, mean, _perfect(sizes[0], rows["N"].iloc[0], sizes)]
    return View(series, marks, made.remarks, [*words, star], ticks=x)


def _at(name: str, tone: str, dash: Any, value: float, kind: str) -> Mark:
    """Return a mark without an interval: one of no width is not drawn."""
    return Mark(name, tone, dash, value, value, value, kind)
