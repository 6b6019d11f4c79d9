"""The static figures: each takes tables of one setting, and is None where there is nothing to draw.

All take `ax`, axes on which the reading of the best evidence is drawn (default: a figure with a panel for each width
and stepsize), and `title` (default: what is shown, in short). What a panel shows is in `raysat.plots.views`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raysat.analysis import best_of, by_h, usable
from raysat.plots import views
from raysat.plots.description import View
from raysat.plots.panels import SMALLEST, SOFT, Panels, drawn, heading, panel_of, panels_of
from raysat.saturation.forecast import Forecast


def loss_curves(
    trials: pd.DataFrame,
    curves: pd.DataFrame,
    ax: Axes | None = None,
    target: float | None = None,
    title: str | None = None,
) -> Figure | None:
    """L(w_t) against t, log-log, one line a batch size, from the tables of a sweep; a loss, `target`, is marked."""
    trials = usable(trials).assign(tuning="", score=by_h)
    shown = (curves["iteration"] > 0) & curves["train_loss"].between(SMALLEST, np.inf, inclusive="neither")
    sizes = trials["batch_size"].unique().tolist()
    figure = _grid(
        "loss-curves",
        trials,
        lambda rows, _: views.loss_curves(best_of(rows, "score"), curves[shown], sizes),
        ax,
        title,
    )
    if figure is not None and target is not None:
        for panel in figure.axes if ax is None else [ax]:
            panel.axhline(target, color=SOFT, linestyle=":", linewidth=1)
    return figure


def exponents(
    points: pd.DataFrame, fits: pd.DataFrame, ax: Axes | None = None, title: str | None = None
) -> Figure | None:
    """h(b) with intervals against the interpolated h, from `Analysis.points` and `fits`."""
    points = points[points["quantity"] == "h"]
    return _grid(
        "exponents", points, lambda rows, key: views.exponents(rows, panel_of(fits, key)), ax, title, corner="bottom"
    )


def steps(points: pd.DataFrame, fits: pd.DataFrame, ax: Axes | None = None, title: str | None = None) -> Figure | None:
    """N(b) and its fits, with perfect scaling, b_N and b_star, from `Analysis.points` and `fits`."""
    points = points[points["quantity"] == "N"]
    return _grid("steps", points, lambda rows, key: views.steps(rows, panel_of(fits, key)), ax, title)


def costs(rows: pd.DataFrame, ax: Axes | None = None, title: str | None = None) -> Figure | None:
    """Return what the headline target costs at each b, over the least that it costs, from `Analysis.costs`."""
    headline = rows[rows["headline"].astype(bool)]
    return _grid("costs", headline, lambda rows, _: views.costs_over_least(rows), ax, title)


def forecast(made: Forecast, title: str = "") -> Figure:
    """N(b) of a typical run and of the mean loss, forecast."""
    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    panel = figure.subplots()
    heading(panel, title, width=70)
    drawn(Panels(figure, {(): panel}), {(): views.forecast(made)}, "steps")
    return figure


def _grid(
    name: str,
    table: pd.DataFrame,
    view: Callable[[pd.DataFrame, tuple], View],
    ax: Axes | None,
    title: str | None,
    corner: Literal["top", "bottom"] = "top",
) -> Figure | None:
    """Draw the view of each panel, which is made of its rows of a table and its key."""
    if table.get("value", table["batch_size"]).isna().all():
        return None
    panels = panels_of(table, ax, title, sharey=name == "loss-curves")
    return drawn(panels, {key: view(panel_of(table, key), key) for key in panels.axes}, name, corner)
