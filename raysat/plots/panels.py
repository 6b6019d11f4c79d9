"""What the figures have in common: a grid of panels, one for each width and stepsize, with axes, labels and legends."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from raysat.analysis import by_evidence, method, short_settings
from raysat.text import printable

KEY = ("width", "stepsize", "tuning")
"""The columns that name a panel of a setting."""

MARKERS = "osD^vP*X<>hd"
INK, FIT, STAR, SOFT = "black", "#0072b2", "#d55e00", "0.45"
"""Colours. Those of the fit and of b_star are Okabe and Ito's; tests/plots/test_plots.py says how far apart all four
are to colour-blind eyes."""


@dataclass(frozen=True)
class Panels:
    """Where a figure is drawn.

    Attributes:
        figure: The figure.
        axes: Its panels, by width, stepsize and tuning.
        own: Whether the figure is made for them; otherwise there is one panel, on a user's axes.
    """

    figure: Figure
    axes: dict[tuple, Axes]
    own: bool = True


def panels_of(table: pd.DataFrame, ax: Axes | None, title: str | None, *, sharey: bool = False) -> Panels:
    """A figure with a row for each width and a column for each stepsize; panels without data are left out.

    Args:
        table: What is drawn.
        ax: Axes on which the reading of the best evidence is drawn instead.
        title: Of the figure. Default: data set and model. Of `ax`, by default, width and stepsizes.
        sharey: Whether the panels have one vertical axis.
    """
    if ax is not None:
        first = by_evidence(table).iloc[0]
        ax.set_title(printable(_name(*first[list(KEY)]) if title is None else title), parse_math=False)
        return Panels(cast(Figure, ax.figure), {tuple(first[list(KEY)]): ax}, own=False)
    keys = list(table[list(KEY)].drop_duplicates().itertuples(index=False, name=None))
    widths = sorted({key[0] for key in keys})
    columns = sorted({key[1:] for key in keys})
    figure = Figure(figsize=(1.2 + 3.6 * len(columns), 1.4 + 2.8 * len(widths)), layout="constrained")
    title = next(iter(short_settings(table).values())) if title is None else title
    grid = figure.subplots(len(widths), len(columns), squeeze=False, sharex=True, sharey=sharey)
    axes = {}
    for i, width in enumerate(widths):
        for j, column in enumerate(columns):
            panel = grid[i, j]
            if (width, *column) not in keys:
                panel.remove()
                continue
            panel.set_title(printable(_name(width, *column)), fontsize=10, y=1, parse_math=False)
            panel.grid(visible=True, which="major", color="0.9", linewidth=0.6)
            axes[width, *column] = panel
    figure.suptitle("\n".join(_wrapped(printable(title), 40 * len(columns))), fontsize=11, parse_math=False)
    return Panels(figure, axes)


def _name(width: int, stepsize: str, tuning: str) -> str:
    """Return what a panel shows: `width 256, grid (free)`."""
    label = method({"stepsize": stepsize, "tuning": tuning})
    return f"width {width}, {label}" if width else label


def panel_of(table: pd.DataFrame, key: tuple) -> pd.DataFrame:
    """The rows of a panel, by its key in `panels_of`."""
    width, stepsize, tuning = key
    return table[(table["width"] == width) & (table["stepsize"] == stepsize) & (table["tuning"] == tuning)]


def batch_axis(panel: Axes, sizes: pd.Series) -> None:
    """A log2 axis with the batch sizes that were run as its ticks, thinned to ten, the ends kept."""
    ran = np.unique(sizes)
    ticks = ran[np.linspace(0, len(ran) - 1, min(10, len(ran))).round().astype(int)]
    panel.set_xscale("log", base=2)
    panel.set_xlim(ran[0] / 1.5, ran[-1] * 1.5)
    panel.xaxis.set_major_locator(FixedLocator(ticks.tolist()))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def log_ticks(panel: Axes) -> None:
    """Plain numbers on the vertical log axis: at 1, 2 and 5 of each decade, or where there are many decades, at 1."""
    low, high = panel.get_ylim()
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 500 * low else (1.0,)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_locator(NullLocator())


def label_ends(panel: Axes, ends: list[tuple]) -> None:
    """Name lines beside the right edge, each at the height of its end, or as near as leaves the names apart.

    Args:
        panel: The panel, its limits final.
        ends: Of each line: x, y, name, color, marker, and where one of them is the main one, whether it is. Lines that
            end at the same height are named in this order from top to bottom.
    """
    if not ends:
        return
    to_axes = panel.transAxes.inverted()
    at = np.array([to_axes.transform(panel.transData.transform(end[:2])) for end in ends])
    apart = min(0.075, 1 / len(ends))
    rising = np.argsort(at[:, 1], kind="stable")
    crowd = np.concatenate([[0], np.cumsum(np.diff(at[rising, 1]) > apart / 2)])  # ends that are near each other
    order = rising[np.lexsort((-rising, crowd))]  # from bottom to top
    heights = at[order, 1]
    for k in range(1, len(heights)):
        heights[k] = max(heights[k], heights[k - 1] + apart)
    heights -= max(0.0, heights[-1] - 1)
    for k in range(len(heights) - 2, -1, -1):
        heights[k] = min(heights[k], heights[k + 1] - apart)
    inside = {"transform": panel.transAxes, "clip_on": False}
    for height, k in zip(heights, order, strict=True):
        _, _, name, color, marker, *main = ends[k]
        fill = color if main in ([], [True]) else "white"
        panel.plot([at[k, 0], 1.07], [at[k, 1], height], color=color, linewidth=0.5, **inside)
        panel.plot([1.07], [height], color=color, marker=marker, markersize=4, markerfacecolor=fill, **inside)
        weight = "bold" if main == [True] else "normal"
        panel.text(1.1, height, name, transform=panel.transAxes, fontsize=7, va="center", fontweight=weight)


def say(panel: Axes, lines: list[str], end: Literal["top", "bottom"]) -> None:
    """A few words in a corner that the curves leave free: h rises with b, N falls."""
    y = 0.96 if end == "top" else 0.04
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2}
    words = "\n".join(lines)
    panel.text(0.97, y, words, transform=panel.transAxes, fontsize=8, va=end, ha="right", bbox=box, zorder=4)


def finish(panels: Panels, x: str, y: str) -> None:
    """Axis names, on the outer panels only."""
    for panel in panels.axes.values():
        place = panel.get_subplotspec() if panels.own else None
        if panels.own:
            panel.tick_params(labelsize=7, labelbottom=True)
        panel.set_xlabel(x if place is None or place.is_last_row() else "", fontsize=9)
        panel.set_ylabel(printable(y) if place is None or place.is_first_col() else "", fontsize=9, parse_math=False)


def legend(panels: Panels, *entries: tuple[str, dict]) -> None:
    """Names and looks of what is drawn, below the panels; on a user's axes inside of them."""
    handles = [Line2D([], [], label=label, **look) for label, look in entries]
    if not panels.own:
        for panel in panels.axes.values():
            panel.legend(handles=handles, loc="best", fontsize=8, frameon=False)
        return
    columns = min(len(handles), max(1, int(panels.figure.get_figwidth() / 2.2)))
    panels.figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 50))


def error_bars(panel: Axes, rows: pd.DataFrame, marker: str, *, filled: bool = True, color: str = INK) -> None:
    """Values with their intervals, where they have any."""
    value, low, high = (rows[name].to_numpy(dtype=float) for name in ("value", "low", "high"))
    errors = np.nan_to_num([np.maximum(value - low, 0), np.maximum(high - value, 0)])
    panel.errorbar(
        rows["batch_size"],
        value,
        yerr=errors,
        fmt=marker,
        color=color,
        markersize=5,
        markerfacecolor=color if filled else "white",
        capsize=2,
        linewidth=1,
        zorder=3,
    )
