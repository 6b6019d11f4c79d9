"""The static figures: each function takes tables of one setting and returns a figure; None if there is nothing to draw.

All take `ax`, axes on which to draw the reading with the best evidence (default: a figure with a panel for each width
and stepsize), and `title` (default: a short description). `raysat.plots.views` describes what a panel shows.
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
    """Draw L(w_t) against t, log-log, with a line for each batch size and one at the loss `target`, if given."""
    trials = usable(trials).assign(tuning="", score=by_h)  # without readings: a grid has one panel, as others do
    # log axes have no place for w_0, nor for a loss that vanishes or diverges
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
    """Draw h(b) with its intervals, and the interpolated h, from `Analysis.points` and `Analysis.fits`."""
    points = points[points["quantity"] == "h"]
    return _grid(
        "exponents", points, lambda rows, key: views.exponents(rows, panel_of(fits, key)), ax, title, corner="bottom"
    )


def steps(points: pd.DataFrame, fits: pd.DataFrame, ax: Axes | None = None, title: str | None = None) -> Figure | None:
    """Draw N(b) and its fits, with perfect scaling, b_N and b_star, from `Analysis.points` and `Analysis.fits`."""
    points = points[points["quantity"] == "N"]
    return _grid("steps", points, lambda rows, key: views.steps(rows, panel_of(fits, key)), ax, title)


def costs(rows: pd.DataFrame, ax: Axes | None = None, title: str | None = None) -> Figure | None:
    """Draw each cost of the headline target over its minimum, against b, from `Analysis.costs`."""
    headline = rows[rows["headline"].astype(bool)]
    return _grid("costs", headline, lambda rows, _: views.costs_over_least(rows), ax, title)


def forecast(made: Forecast, title: str = "") -> Figure:
    """Draw the forecast N(b) of a typical run and of the mean loss."""
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
    """Draw a figure with a panel for each width, stepsize and tuning; `view` takes the panel's rows and its key."""
    # trials have no column `value`: they are something to draw whenever there are any
    if table.get("value", table["batch_size"]).isna().all():
        return None
    # losses share their vertical axis, so that panels can be compared
    panels = panels_of(table, ax, title, sharey=name == "loss-curves")
    return drawn(panels, {key: view(panel_of(table, key), key) for key in panels.axes}, name, corner)
