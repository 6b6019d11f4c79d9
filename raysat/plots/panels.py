"""Views drawn by matplotlib: a grid of panels, one for each width and stepsize, with axes, labels and legends."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from raysat.analysis import by_evidence, method, short_settings
from raysat.plots.description import Axis, Mark, Numbers, Series, View
from raysat.plots.views import AXES
from raysat.text import printable

KEY = ("width", "stepsize", "tuning")
"""The columns that identify a panel of a setting."""

MARKERS = "os^Dv<>P*Xhd"
INK, FIT, STAR, SOFT = "black", "#0072b2", "#d55e00", "0.45"
"""Colors. Those of the fit and of b_star are Okabe and Ito's; tests/plots/test_plots.py checks that color-blind readers
can distinguish all four."""

COLORS = {"ink": INK, "blue": FIT, "orange": STAR, "green": "#009e73", "soft": SOFT}
"""The color of each tone of a view."""

LAW = "fit N_inf (1 + (b_N/b)^q)^(1/q)"
"""The name of a fit in legends."""

SMALLEST = 1e-250
"""The smallest value on a log axis: below it matplotlib's margin would underflow to 0, which has no logarithm."""

MANY = 12
"""Points above which a line has a marker only at every third."""


@dataclass(frozen=True)
class Panels:
    """A figure and its panels.

    Attributes:
        figure: The figure.
        axes: Its panels, by width, stepsize and tuning.
        own: Whether the figure was made for them; otherwise there is one panel, on a user's axes.
        sharey: Whether the panels share one vertical axis.
    """

    figure: Figure
    axes: dict[tuple, Axes]
    own: bool = True
    sharey: bool = False


def panels_of(table: pd.DataFrame, ax: Axes | None, title: str | None, *, sharey: bool = False) -> Panels:
    """Make a figure with a row for each width and a column for each stepsize; panels without data are left out.

    Args:
        table: The rows to draw.
        ax: Axes on which to draw only the reading with the best evidence. Default: a figure is made.
        title: The title. Default: data set and model for a figure, width and stepsizes for `ax`.
        sharey: Whether the panels share one vertical axis.
    """
    if ax is not None:
        first = by_evidence(table).iloc[0]
        ax.set_title(printable(_name(*first[list(KEY)]) if title is None else title), parse_math=False)
        return Panels(cast(Figure, ax.figure), {tuple(first[list(KEY)]): ax}, own=False)
    keys = list(table[list(KEY)].drop_duplicates().itertuples(index=False, name=None))
    widths = sorted({key[0] for key in keys})
    columns = sorted({key[1:] for key in keys})
    # inches: 3.6 x 2.8 for each panel, the rest for names, title and legend
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
            heading(panel, _name(width, *column))
            axes[width, *column] = panel
    lines = textwrap.wrap(printable(title), max(40 * len(columns), 50))
    figure.suptitle("\n".join(lines), fontsize=11, parse_math=False)
    return Panels(figure, axes, sharey=sharey)


def _name(width: int, stepsize: str, tuning: str) -> str:
    """Return the title of a panel: `width 256, grid (free)`."""
    label = method({"stepsize": stepsize, "tuning": tuning})
    return f"width {width}, {label}" if width else label


def panel_of(table: pd.DataFrame, key: tuple) -> pd.DataFrame:
    """Select the rows of a panel by its key in `panels_of`."""
    width, stepsize, tuning = key
    return table[(table["width"] == width) & (table["stepsize"] == stepsize) & (table["tuning"] == tuning)]


def heading(panel: Axes, title: str, width: int = 200) -> None:
    """Set the title of a panel, and its grid lines."""
    # parse_math: names of a user may contain `$`
    panel.set_title("\n".join(textwrap.wrap(printable(title), width)), fontsize=10, y=1, parse_math=False)
    panel.grid(visible=True, which="major", color="0.9", linewidth=0.6)


def drawn(
    panels: Panels, views: Mapping[tuple, View], name: str, corner: Literal["top", "bottom"] = "top"
) -> Figure | None:
    """Draw each view of a figure in its panel, against the first of the figure's horizontal axes.

    Args:
        panels: The panels.
        views: The views, by key of the panel.
        name: The figure: a key of `AXES`.
        corner: The end of the right edge at which the words of a view are: h rises with b, N falls.

    Returns:
        The figure; None if no view has a value.
    """
    if all(view.empty for view in views.values()):
        return None
    (x, *_), y = AXES[name]
    y = next((view.y for view in views.values() if view.y), y)
    sizes = sorted({size for view in views.values() for size in view.ticks.get(x.key, ())})
    ends = {}
    for key, panel in panels.axes.items():
        _set_axes(panel, y, views.values() if panels.sharey else [views[key]], sizes)
        ends[key] = _draw_series(panel, views[key].series, x, y)
    # The series of all panels set the limits, since panels share them; a mark far from them must not change these.
    within = {key: panel.get_xlim() for key, panel in panels.axes.items()}
    for key, panel in panels.axes.items():
        for mark in views[key].marks:
            _draw_mark(panel, mark, within[key])
        panel.set_xlim(within[key])
    # Labels are placed by the height of their ends on the page, once no shared axis changes any more.
    for key, panel in panels.axes.items():
        label_ends(panel, ends[key])
        if views[key].words:
            say(panel, views[key].words, corner)
    finish(panels, x.label, y.label)
    legend(panels, _entries(views.values()))
    return panels.figure


def _set_axes(panel: Axes, y: Axis, views: Iterable[View], sizes: Sequence[float]) -> None:
    """Set scales, limits and ticks: the vertical axis contains values, and intervals up to a factor 3 beyond them."""
    panel.set(xscale="log", yscale="log" if y.log else "linear")
    if sizes:
        batch_axis(panel, sizes)
    else:
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    # A series that is clipped, such as perfect scaling, does not count: it may fall far below all values.
    bound = [one for view in views for one in view.series if not one.clip]
    values, ends = (
        np.concatenate([np.asarray(of, float) for of in several if of is not None] or [[]])
        for several in ([one.y for one in bound], [end for one in bound for end in (one.low, one.high)])
    )
    values, ends = (of[np.isfinite(of) & ((of > SMALLEST) | (not y.log))] for of in (values, ends))
    if not values.size:
        return
    low, high = values.min(), values.max()
    if ends.size:
        low, high = min(low, max(ends.min(), low / 3)), max(high, min(ends.max(), 3 * high))
    if y.log:
        # A range of at least 0.3, a factor of 2, lets values that hardly differ look alike. Each line of words takes 11
        # percent of it, above the values. Powers of 10 are kept within float64.
        words = max(len(view.words) for view in views)
        bottom, top = np.log10([low, high])
        span = max(top - bottom, 0.3)
        panel.set_ylim(10 ** max(bottom - 0.05 * span, -300), 10 ** min(top + (0.05 + 0.11 * words) * span, 300))
        log_ticks(panel)
    elif high > 0:
        panel.set_ylim(min(0, low), 1.25 * high)


def _draw_series(panel: Axes, series: Sequence[Series], x: Axis, y: Axis) -> list[tuple]:
    """Draw series, and return the labelled right ends in the form that `label_ends` takes."""
    named = []
    for one in series:
        color, marker = _color(one), MARKERS[one.mark % len(MARKERS)] if one.mark is not None else ""
        at, value = np.asarray(one.x[x.key], float), np.asarray(one.y, float)
        low, high = (value if of is None else np.asarray(of, float) for of in (one.low, one.high))
        known = (at > 0) & np.isfinite(value) & ((value > SMALLEST) | (not y.log))
        if not known.any():
            continue
        at, value, low, high = at[known], value[known], low[known], high[known]
        if one.spread == "band":
            panel.fill_between(at, low, high, color=color, alpha=0.2, linewidth=0)
        if one.fit:
            panel.plot(one.fit[0][x.key], one.fit[1], color=color, linewidth=0.8 if one.hollow else 1.5)
        some = one.line and marker and one.spread != "bars" and len(at) > MANY
        if one.line:
            look = {"marker": marker, "markersize": 3, "markevery": 3} if some else {}
            panel.plot(at, value, color=color, linestyle=one.dash, linewidth=1 if marker else 1.5, **look)
        if marker and not some:
            # Rounding may leave an end on the wrong side of its value. By `nan_to_num` an absent end has no bar, and an
            # infinite one a bar to the frame.
            ends = [value - low, high - value] if one.spread == "bars" else [0 * value, 0 * value]
            errors = np.nan_to_num(np.maximum(ends, 0))
            panel.errorbar(at, value, yerr=errors, markersize=5, capsize=2, linewidth=1, zorder=3, **_look(one))
        # hollow series are those of other targets: among them the label of the headline is bold
        main = [not one.hollow] * any(other.hollow for other in series)
        named += [(at[-1], value[-1], one.end, color, marker, *main)] * bool(one.end)
    return named


def _draw_mark(panel: Axes, mark: Mark, within: tuple[float, float]) -> None:
    low, high = np.clip((mark.low, mark.high), *within)  # an open interval ends at the frame
    if low < high:
        panel.axvspan(low, high, color=COLORS[mark.tone], alpha=0.15, linewidth=0)
    if mark.at > 0:
        panel.axvline(mark.at, color=COLORS[mark.tone], linestyle=mark.dash, linewidth=1)


def _color(one: Series) -> Any:
    # 0.9: the yellow end of viridis is too pale on white
    return COLORS[one.tone] if one.shade is None else colormaps["viridis"](0.9 * one.shade)


def _look(one: Series) -> dict[str, Any]:
    color = _color(one)
    marker = {} if one.mark is None else {"marker": MARKERS[one.mark % len(MARKERS)]}
    return {"color": color, "linestyle": "", "markerfacecolor": "white" if one.hollow else color, **marker}


def _entries(views: Iterable[View]) -> dict[str, dict[str, Any]]:
    """Collect the names and looks of the series in several views, their fits and their marks, for one legend."""
    views, found = list(views), {}
    for one in (one for view in views for one in view.series if one.kind):
        found.setdefault(one.kind, _look(one) | ({"linestyle": one.dash} if one.line else {}))
        if one.fit:
            found.setdefault(LAW, {"color": _color(one)})
    for mark in (mark for view in views for mark in view.marks):
        found.setdefault(mark.kind, {"color": COLORS[mark.tone], "linestyle": mark.dash})
    return found


def batch_axis(panel: Axes, sizes: Numbers) -> None:
    """Set a log2 axis whose ticks are the batch sizes that were run, at most ten of them, with both ends."""
    ran = np.unique(sizes)
    ticks = ran[np.linspace(0, len(ran) - 1, min(10, len(ran))).round().astype(int)]
    panel.set_xscale("log", base=2)
    panel.set_xlim(ran[0] / 1.5, ran[-1] * 1.5)
    panel.xaxis.set_major_locator(FixedLocator(ticks.tolist()))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def log_ticks(panel: Axes) -> None:
    """Set plain numbers as ticks of the vertical log axis: 1, 2, 5 in each decade, or only 1 above a factor of 500."""
    low, high = panel.get_ylim()
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 500 * low else (1.0,)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_locator(NullLocator())


def label_ends(panel: Axes, ends: list[tuple]) -> None:
    """Label lines at the right edge, each label at the height of its line's end, or as near as it fits.

    Args:
        panel: The panel, with its final limits.
        ends: For each line: x, y, label, color, marker and, if one line is the main one, whether this is it. Lines that
            end at the same height are labelled in this order from top to bottom.
    """
    if not ends:
        return
    to_axes = panel.transAxes.inverted()
    at = np.array([to_axes.transform(panel.transData.transform(end[:2])) for end in ends])
    apart = min(0.075, 1 / len(ends))  # the height of a label, as a fraction of the panel's, or less if they are many
    rising = np.argsort(at[:, 1], kind="stable")
    crowd = np.concatenate([[0], np.cumsum(np.diff(at[rising, 1]) > apart / 2)])  # ends that are near each other
    order = rising[np.lexsort((-rising, crowd))]  # from bottom to top
    heights = at[order, 1]
    for k in range(1, len(heights)):  # upwards: each at least `apart` above the one below
        heights[k] = max(heights[k], heights[k - 1] + apart)
    heights[-1] = min(heights[-1], 1.0)  # the topmost stays within the panel
    for k in range(len(heights) - 2, -1, -1):
        heights[k] = min(heights[k], heights[k + 1] - apart)
    # a thin line leads from the end to the label, 7 % of the panel's width beyond the frame
    inside = {"transform": panel.transAxes, "clip_on": False}
    for height, k in zip(heights, order, strict=True):
        _, _, name, color, marker, *main = ends[k]
        fill = color if main in ([], [True]) else "white"
        panel.plot([at[k, 0], 1.07], [at[k, 1], height], color=color, linewidth=0.5, **inside)
        panel.plot([1.07], [height], color=color, marker=marker, markersize=4, markerfacecolor=fill, **inside)
        weight = "bold" if main == [True] else "normal"
        panel.text(1.1, height, name, transform=panel.transAxes, fontsize=7, va="center", fontweight=weight)


def say(panel: Axes, lines: Sequence[str], end: Literal["top", "bottom"]) -> None:
    """Write lines of text in the right corner that the curves leave free: h rises with b, N falls."""
    y = 0.96 if end == "top" else 0.04
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2}
    words = "\n".join(lines)
    panel.text(0.97, y, words, transform=panel.transAxes, fontsize=8, va=end, ha="right", bbox=box, zorder=4)


def finish(panels: Panels, x: str, y: str) -> None:
    """Set the names of the axes, on the outer panels only."""
    for panel in panels.axes.values():
        place = panel.get_subplotspec() if panels.own else None
        if panels.own:  # tick labels on every panel: the one below, which would have them, may be left out
            panel.tick_params(labelsize=7, labelbottom=True)
        panel.set_xlabel(x if place is None or place.is_last_row() else "", fontsize=9)
        panel.set_ylabel(printable(y) if place is None or place.is_first_col() else "", fontsize=9, parse_math=False)


def legend(panels: Panels, entries: Mapping[str, dict[str, Any]]) -> None:
    """Draw a legend below the panels; on a user's axes, inside them."""
    handles = [Line2D([], [], label=label, **look) for label, look in entries.items()]
    if not handles:
        return
    if not panels.own:
        for panel in panels.axes.values():
            panel.legend(handles=handles, loc="best", fontsize=8, frameon=False)
        return
    # 2.2 inches hold most names at this font size
    columns = min(len(handles), max(1, int(panels.figure.get_figwidth() / 2.2)))
    panels.figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
