"""The figures: each takes tables and returns a matplotlib `Figure`, or None where there is nothing to draw."""

from __future__ import annotations

import math
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from raysat.analysis import best_of, by_h, no_interpolation, number, policy, usable
from raysat.analysis.efficiency import WASTE
from raysat.plots.panels import (
    FIT,
    INK,
    MARKERS,
    SOFT,
    STAR,
    batch_axis,
    error_bars,
    finish,
    label_ends,
    legend,
    log_ticks,
    panel_of,
    panels_of,
    say,
)
from raysat.saturation.fits import law
from raysat.saturation.formulas import h_interpolated

COSTS: dict[str, tuple[str, dict[str, Any]]] = {
    "samples": ("samples", {"color": INK, "marker": "o", "linestyle": "-"}),
    "seconds": ("seconds", {"color": FIT, "marker": "s", "linestyle": "--"}),
    "device_hours": ("device-hours", {"color": STAR, "marker": "^", "linestyle": "-.", "markerfacecolor": "white"}),
}
"""Of each cost its name and its look."""


SMALLEST = 1e-250
"""The smallest loss on a log axis: below it the axis' own margin comes to 0, which such an axis does not have."""


def loss_curves(
    trials: pd.DataFrame,
    curves: pd.DataFrame,
    ax: Axes | None = None,
    target: float | None = None,
    title: str | None = None,
) -> Figure | None:
    """L(w_t) against t, log-log, one line a batch size; None where no trial is measured, or none has its curve.

    Args:
        trials: Rows of `trials`, of one setting.
        curves: The `curves` table.
        ax: Axes on which the best evidence is drawn. Default: a figure with a panel for each width and stepsize.
        target: A loss that is marked.
        title: The title. Default: what is shown, in short.
    """
    trials = usable(trials).assign(tuning="", score=by_h)
    if trials.empty:
        return None
    panels = panels_of(trials, ax, title, sharey=True)
    axes = panels.axes
    sizes = sorted(trials["batch_size"].unique())
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(sizes)))
    looks = {b: look for b, *look in zip(sizes, shades, cycle(MARKERS), strict=False)}
    ends = {key: [] for key in axes}
    for key, panel in axes.items():
        chosen = best_of(panel_of(trials, key), "score")
        paths = chosen[["cell_id", "batch_size"]].merge(curves, on="cell_id")
        paths = paths[paths["iteration"] > 0]
        measured = paths.groupby(["batch_size", "iteration"])["train_loss"].agg(["median", "min", "max", "count"])
        for b in measured.index.unique("batch_size"):
            losses = measured.loc[b]
            losses = losses[losses["count"] == losses["count"].max()]
            losses = losses[(losses["min"] > SMALLEST) & np.isfinite(losses["max"])]
            if losses.empty:
                continue
            shade, marker = looks[b]
            panel.fill_between(losses.index, losses["min"], losses["max"], color=shade, alpha=0.2, linewidth=0)
            panel.plot(
                losses.index, losses["median"], color=shade, marker=marker, markersize=3, markevery=3, linewidth=1
            )
            ends[key].append((losses.index[-1], losses["median"].iloc[-1], f"b = {b}", shade, marker))
        panel.set(xscale="log", yscale="log")
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if not any(ends.values()):  # rows without their curves, or with no loss above 0
        return None
    for key, panel in axes.items():
        log_ticks(panel)
        label_ends(panel, ends[key])
        if target is not None:
            panel.axhline(target, color=SOFT, linestyle=":", linewidth=1)
    loss = trials["loss"].iloc[0]
    named = {"mse": "½ mean squared residual", "cross_entropy": "mean cross-entropy, nats"}
    unit = named.get(loss, f"mean of {loss}")
    finish(panels, "iteration t", f"loss L ({unit})")
    return panels.figure


def exponents(
    points: pd.DataFrame, fits: pd.DataFrame, ax: Axes | None = None, title: str | None = None
) -> Figure | None:
    """h(b) with intervals against the interpolated h, and the range of h in words; None where there is no h.

    Args:
        points: `Analysis.points`, of one setting.
        fits: `Analysis.fits`, of one setting.
        ax: As for `loss_curves`.
        title: As for `loss_curves`.
    """
    points, fits = points[points["quantity"] == "h"], fits[fits["quantity"] == "b_h"]
    if points["value"].isna().all():
        return None
    panels = panels_of(points, ax, title)
    for key, panel in panels.axes.items():
        rows, fit = panel_of(points, key), panel_of(fits, key).iloc[0]
        interpolated = rows["h_interp"].notna().any()
        if interpolated:
            b = np.geomspace(1, rows["batch_size"].max(), 200)
            one, full = rows["value"].iloc[0], rows["value"].iloc[-1]
            panel.plot(b, [h_interpolated(size, one, full) for size in b], color=FIT, linestyle="--", linewidth=1.5)
        error_bars(panel, rows, "o")
        tops = rows[["value", "high"]].to_numpy(dtype=float)
        if (known := tops[np.isfinite(tops)]).size:
            panel.set(ylim=(0, 1.25 * known.max()))
        batch_axis(panel, points["batch_size"])
        said = [] if math.isnan(fit["range"]) else [f"h varies by a factor of {number(fit['range'])}"]
        said += [] if math.isnan(fit["value"]) else [f"b_h = {number(fit['value'])}"]
        stands_in = rows["h_interp_n"].iloc[0]
        if interpolated and stands_in < rows["n"].iloc[0]:
            said.append(f"h({stands_in}) stands in for h(n)")
        if not interpolated:
            said.append(no_interpolation(rows.iloc[0]))
        say(panel, said, "bottom")
    finish(panels, "batch size b (samples)", "exponent h (1/iterations)")
    legend(
        panels,
        ("measured h, 95 % interval", {"marker": "o", "color": INK, "linestyle": ""}),
        ("interpolated, h(1) to h(n)", {"color": FIT, "linestyle": "--"}),
    )
    return panels.figure


def steps(points: pd.DataFrame, fits: pd.DataFrame, ax: Axes | None = None, title: str | None = None) -> Figure | None:
    """N(b) and its fits on log-log axes, with perfect scaling, b_N and b_star; None where no target is reached.

    Args:
        points: `Analysis.points`, of one setting.
        fits: `Analysis.fits`, of one setting.
        ax: As for `loss_curves`.
        title: As for `loss_curves`.
    """
    points, fits = points[points["quantity"] == "N"], fits[fits["quantity"] == "b_N"]
    if points["value"].isna().all():
        return None
    panels = panels_of(points, ax, title)
    for key, panel in panels.axes.items():
        reached = panel_of(points, key).dropna(subset="value")
        if len(reached):
            panel.set(yscale="log", ylim=(reached["value"].min() / 1.6, reached["value"].max() * 3))
            log_ticks(panel)
        batch_axis(panel, points["batch_size"])
        ends = []
        by_rank = panel_of(fits, key).sort_values(["headline", "target"], ascending=[False, True])
        for fit, marker in zip(by_rank.to_dict("records"), cycle(MARKERS), strict=False):
            rows = reached[reached["target"] == fit["target"]]
            if len(rows):
                _one_target(panel, rows, fit, marker)
                x, y = rows.iloc[-1][["batch_size", "value"]]
                ends.append((x, y, f"L ≤ {fit['target']:g}", INK, marker, fit["headline"]))
            if fit["headline"]:
                _mark_critical(panel, fit)
        label_ends(panel, ends)
    finish(panels, "batch size b (samples)", "iterations N to the target loss")
    legend(
        panels,
        ("measured N, 95 % interval", {"marker": "o", "color": INK, "linestyle": ""}),
        ("fit N_inf (1 + (b_N/b)^q)^(1/q)", {"color": FIT}),
        ("perfect scaling N(1)/b", {"color": SOFT, "linestyle": ":"}),
        ("b_N, fitted", {"color": FIT, "linestyle": "-."}),
        ("b_star, predicted", {"color": STAR, "linestyle": "--"}),
    )
    return panels.figure


def costs(rows: pd.DataFrame, ax: Axes | None = None, title: str | None = None) -> Figure | None:
    """Return what the headline target costs at each b, over the least that it costs; None where no target is reached.

    Args:
        rows: `Analysis.costs`, of one setting.
        ax: As for `loss_curves`.
        title: As for `loss_curves`.
    """
    rows = rows[rows["headline"].astype(bool)]
    if rows.empty:
        return None
    panels = panels_of(rows, ax, title)
    for key, panel in panels.axes.items():
        said = []
        for cost, (name, look) in COSTS.items():
            own = panel_of(rows, key)
            own = own[own["cost"] == cost].sort_values("batch_size")
            if own.empty:
                continue
            least = own.iloc[own["value"].argmin()]
            said.append(f"least: {number(least['value'])} {name} at b = {least['batch_size']}")
            relative = own.assign(**{end: own[end] / least["value"] for end in ("value", "low", "high")})
            panel.plot(relative["batch_size"], relative["value"], linewidth=1, **look)
            error_bars(panel, relative, look["marker"], color=look["color"], filled=cost != "device_hours")
        panel.axhline(1 + WASTE, color=SOFT, linestyle=":", linewidth=1)
        panel.set_yscale("log")
        low, high = panel.get_ylim()
        panel.set_ylim(low, high * (high / low) ** 0.5)  # room for the words above the curves
        batch_axis(panel, rows["batch_size"])
        log_ticks(panel)
        say(panel, [f"L ≤ {panel_of(rows, key)['target'].iloc[0]:g}", *said], "top")
    finish(panels, "batch size b (samples)", "cost to the target over its least")
    shown = [(name, look) for cost, (name, look) in COSTS.items() if (rows["cost"] == cost).any()]
    legend(panels, *shown, ("20 % above the least", {"color": SOFT, "linestyle": ":"}))
    return panels.figure


def _one_target(panel: Axes, rows: pd.DataFrame, fit: dict, marker: str) -> None:
    main = fit["headline"]
    b = np.geomspace(rows["batch_size"].min(), rows["batch_size"].max(), 200)
    if not math.isnan(fit["value"]):
        panel.plot(b, law(b, fit["asymptote"], fit["value"], fit["q"]), color=FIT, linewidth=1.5 if main else 0.8)
    if main:
        first = rows.iloc[0]
        panel.plot(b, first["value"] * first["batch_size"] / b, color=SOFT, linestyle=":", linewidth=1.5)
    error_bars(panel, rows, marker, filled=main)


def _mark_critical(panel: Axes, fit: dict) -> None:
    """Vertical lines at b_N and b_star of the headline fit, named at opposite ends of the panel."""
    low, high = panel.get_xlim()
    if not math.isnan(fit["value"]):
        panel.axvline(fit["value"], color=FIT, linestyle="-.", linewidth=1)
        panel.axvspan(max(fit["low"], low), min(fit["high"], high), color=FIT, alpha=0.15, linewidth=0)
    said = [f"b_N = {number(fit['value'])}"] if not math.isnan(fit["value"]) else ["no b_N: see the table"]
    if not math.isnan(fit["b_star"]):
        panel.axvline(fit["b_star"], color=STAR, linestyle="--", linewidth=1)
        said.append(f"b_star = {number(fit['b_star'])}")
    panel.set_xlim(low, high)
    if policy(fit["stepsize"]) == "theory":
        said += ["eta is made from beta(b):", "this checks the code"]
    say(panel, said, "top")
