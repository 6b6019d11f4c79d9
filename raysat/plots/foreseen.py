"""The figure of a forecast: N(b) from the initialization alone, with b_N and b_star."""

from __future__ import annotations

import math
import textwrap
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raysat.plots.panels import FIT, INK, SOFT, STAR, Panels, batch_axis, finish, legend, log_ticks, say
from raysat.saturation.fits import law
from raysat.saturation.forecast import Forecast
from raysat.text import number, printable

CAPTION = (
    "Iterations N(b) to the target loss against batch size b, forecast from the network at initialization, each b with "
    "its best stable stepsize: of a typical run and of the mean loss. The law N_inf (1 + (b_N/b)^q)^(1/q) fitted to "
    "the typical run, perfect scaling N(1)/b, the forecast critical batch size b_N, where perfect scaling meets the "
    "plateau (thin: of the mean loss), and b_star = gamma/k_op."
)


def foreseen_steps(made: Forecast, title: str = "", ax: Axes | None = None) -> Figure:
    """N(b) of a typical run and of the mean loss, on log-log axes.

    Args:
        made: The forecast.
        title: Of the panel. Default: none.
        ax: Where to draw. Default: a figure of its own, with a legend.

    Returns:
        The figure.
    """
    if ax is None:
        figure = Figure(figsize=(5.6, 4.4), layout="constrained")
        panel = figure.subplots()
    else:
        panel, figure = ax, cast(Figure, ax.figure)
    panels = Panels(figure, {(): panel}, own=ax is None)
    panel.set_title("\n".join(textwrap.wrap(printable(title), 70)), fontsize=10, parse_math=False)
    panel.grid(visible=True, which="major", color="0.9", linewidth=0.6)
    rows = made.by_batch
    known = rows[["N", "N_mean"]].to_numpy()
    known = known[np.isfinite(known) & (known > 0)]
    if known.size:
        panel.set(yscale="log", ylim=(known.min() / 1.6, known.max() * 3))
        log_ticks(panel)
    batch_axis(panel, rows["batch_size"])
    b = np.geomspace(rows["batch_size"].min(), rows["batch_size"].max(), 200)
    fit, first = made.typical, rows.iloc[0]
    if not math.isnan(made.mean.value):
        panel.axvline(made.mean.value, color=FIT, linestyle="-.", linewidth=0.5)
    if not math.isnan(fit.value):
        panel.plot(b, law(b, fit.asymptote, fit.value, fit.q), color=FIT, linewidth=1.5)
        panel.axvline(fit.value, color=FIT, linestyle="-.", linewidth=1)
    panel.plot(b, first["N"] * first["batch_size"] / b, color=SOFT, linestyle=":", linewidth=1.5)
    panel.plot(rows["batch_size"], rows["N_mean"], "s", color=INK, markersize=5, markerfacecolor="white", zorder=3)
    panel.plot(rows["batch_size"], rows["N"], "o", color=INK, markersize=5, zorder=4)
    low, high = panel.get_xlim()
    panel.axvline(made.b_star, color=STAR, linestyle="--", linewidth=1)
    panel.set_xlim(low, high)
    b_N = [f"b_N = {number(fit.value)}", f"(mean loss {number(made.mean.value)})"]
    said = ["no b_N: see the remarks"] if math.isnan(fit.value) else b_N
    say(panel, [f"L ≤ {number(made.target)}", *said, f"b_star = {number(made.b_star)}"], "top")
    finish(panels, "batch size b (samples)", "iterations N to the target loss")
    legend(
        panels,
        ("forecast N, typical run", {"marker": "o", "color": INK, "linestyle": ""}),
        ("forecast N, mean loss", {"marker": "s", "color": INK, "linestyle": "", "markerfacecolor": "white"}),
        ("fit N_inf (1 + (b_N/b)^q)^(1/q)", {"color": FIT}),
        ("perfect scaling N(1)/b", {"color": SOFT, "linestyle": ":"}),
        ("b_N", {"color": FIT, "linestyle": "-."}),
        ("b_star", {"color": STAR, "linestyle": "--"}),
    )
    return figure
