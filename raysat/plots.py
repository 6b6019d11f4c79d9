"""One function a figure: each takes tables and returns a matplotlib `Figure`, one panel for each width and stepsize.

Nothing here keeps pyplot state: figures can be made in threads, on machines without a display, and many at a time.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from raysat.analysis import SETTING, Analysis, best_of, comparable, method, number, policy, setting, usable
from raysat.files import Location, write_aside
from raysat.theory import h_interpolated

DPI = 150
SIDE = 3
"""Panels a side of one figure. Default: 3, at which the labels can be read on a printed page."""

MARKERS = "osD^vP*X<>hd"
INK, FIT, STAR = "black", "#0072b2", "#d55e00"  # the last two are Okabe and Ito's, told apart by colour-blind eyes

CAPTIONS = {
    "loss-curves": (
        "Loss L(w_t) over all training samples against iteration t, by batch size b: median over seeds, band from the "
        "smallest to the largest; under a grid, the best stepsize of each b by h. Equal distances from b to 2b are "
        "linear scaling; curves that lie on each other are saturation."
    ),
    "exponents": (
        "Convergence exponent h(b) = log(L(w_0)/L(w_T))/T against batch size b: geometric mean over seeds with 95 % "
        "interval, and the paper's curve (section 5), interpolated between h(1) and h(n). Where h hardly varies, the "
        "two agree whatever the critical batch size is."
    ),
    "steps": (
        "Iterations N(b) to a target loss against batch size b: geometric mean over seeds with 95 % interval, the fit "
        "N_inf (1 + b_N/b), perfect scaling N(1)/b, the fitted critical batch size b_N (band: its interval), and "
        "b_star = gamma/k_op, predicted at initialization. Bold and filled: the target to which b_N belongs."
    ),
}


@dataclass(frozen=True)
class Plate:
    """A figure with what a page needs to show it.

    Attributes:
        kind: What it shows: a key of `CAPTIONS`.
        name: File name without suffix.
        title: What was measured, on which model and data.
        caption: What the symbols mean.
        figure: The figure.
    """

    kind: str
    name: str
    title: str
    caption: str
    figure: Figure


def plates(trials: pd.DataFrame, curves: pd.DataFrame, analysis: Analysis) -> list[Plate]:
    """All figures of a sweep, in the order of a report: each setting in figures of at most 3 x 3 panels."""
    draw = {
        "loss-curves": lambda page: loss_curves(page(comparable(trials)), curves),
        "exponents": lambda page: exponents(page(analysis.points), page(analysis.fits)),
        "steps": lambda page: steps(page(analysis.points), page(analysis.fits)),
    }
    pages = list(_pages(analysis.fits))
    made = []
    for kind, make in draw.items():
        drawn = [(row, make(page)) for row, page in pages]
        drawn = [(row, figure) for row, figure in drawn if figure is not None]
        for k, (row, figure) in enumerate(drawn, 1):
            name = f"{kind}-{k}" if len(drawn) > 1 else kind
            made.append(Plate(kind, name, setting(row), CAPTIONS[kind], figure))
    return made


def save(made: list[Plate], folder: Location) -> None:
    """Write each figure to `folder` as PNG and PDF, and delete those of an earlier call that are gone."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {folder / f"{plate.name}.{suffix}": plate.figure for plate in made for suffix in ("png", "pdf")}
    for plate in made:
        plate.figure.draw_without_rendering()
        plate.figure.set_layout_engine("none")  # laid out once for both files
    for path, figure in files.items():
        write_aside(path, partial(figure.savefig, dpi=DPI, format=path.suffix[1:]))
    for path in {path for kind in CAPTIONS for path in folder.glob(f"{kind}*.p[nd][gf]")} - set(files):
        path.unlink()


def loss_curves(trials: pd.DataFrame, curves: pd.DataFrame) -> Figure | None:
    """L(w_t) against t, log-log, one line a batch size; None where no trial is measured.

    Args:
        trials: Rows of `trials`, of one setting.
        curves: The `curves` table.
    """
    trials = usable(trials).assign(tuning="", score=lambda rows: -rows["h"])
    if trials.empty:
        return None
    figure, axes = _panels(trials, sharey=True)
    sizes = sorted(trials["batch_size"].unique())
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(sizes)))
    looks = {b: look for b, *look in zip(sizes, shades, cycle(MARKERS), strict=False)}
    ends = {key: [] for key in axes}
    for key, panel in axes.items():
        chosen = best_of(_panel(trials, key), "score")
        paths = chosen[["cell_id", "batch_size"]].merge(curves, on="cell_id")
        paths = paths[paths["iteration"] > 0]
        for b, path in paths.groupby("batch_size"):
            losses = path.groupby("iteration")["train_loss"].agg(["median", "min", "max", "count"])
            losses = losses[losses["count"] == losses["count"].max()]
            shade, marker = looks[b]
            panel.fill_between(losses.index, losses["min"], losses["max"], color=shade, alpha=0.2, linewidth=0)
            panel.plot(
                losses.index, losses["median"], color=shade, marker=marker, markersize=3, markevery=3, linewidth=1
            )
            ends[key].append((losses.index[-1], losses["median"].iloc[-1], f"b = {b}", shade, marker))
        panel.set(xscale="log", yscale="log")
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for key, panel in axes.items():
        _log_ticks(panel)
        _label_ends(panel, ends[key])
    unit = {"mse": "½ mean squared residual", "cross_entropy": "mean cross-entropy, nats"}[trials["loss"].iloc[0]]
    _finish(figure, axes, "iteration t", f"loss L ({unit})")
    return figure


def exponents(points: pd.DataFrame, fits: pd.DataFrame) -> Figure | None:
    """h(b) with intervals against the interpolated h, and the range of h in words; None where there is no h.

    Args:
        points: `Analysis.points`, of one setting.
        fits: `Analysis.fits`, of one setting.
    """
    points, fits = points[points["quantity"] == "h"], fits[fits["quantity"] == "b_h"]
    if points["value"].isna().all():
        return None
    figure, axes = _panels(points)
    for key, panel in axes.items():
        rows, fit = _panel(points, key), _panel(fits, key).iloc[0]
        interpolated = rows["h_interp"].notna().any()
        if interpolated:
            b = np.geomspace(1, rows["batch_size"].max(), 200)
            one, full = rows["value"].iloc[0], rows["value"].iloc[-1]
            panel.plot(b, [h_interpolated(size, one, full) for size in b], color=FIT, linestyle="--", linewidth=1.5)
        _error_bars(panel, rows, "o")
        panel.set(ylim=(0, 1.25 * np.nanmax([rows["value"], rows["high"]])))
        _batch_axis(panel, points["batch_size"])
        said = [] if math.isnan(fit["range"]) else [f"h varies by a factor of {number(fit['range'])}"]
        said += [] if math.isnan(fit["value"]) else [f"b_h = {number(fit['value'])}"]
        stands_in = rows["h_interp_n"].iloc[0]
        if interpolated and stands_in < rows["n"].iloc[0]:
            said.append(f"h({stands_in}) stands in for h(n)")
        if not interpolated:
            said.append("no interpolation: h(1) or h(n) is missing")
        _say(panel, said, "bottom")
    _finish(figure, axes, "batch size b (samples)", "exponent h (1/iterations)")
    _legend(
        figure,
        ("measured h, 95 % interval", {"marker": "o", "color": INK, "linestyle": ""}),
        ("interpolated, h(1) to h(n)", {"color": FIT, "linestyle": "--"}),
    )
    return figure


def steps(points: pd.DataFrame, fits: pd.DataFrame) -> Figure | None:
    """N(b) and its fits on log-log axes, with perfect scaling, b_N and b_star; None where no target is reached.

    Args:
        points: `Analysis.points`, of one setting.
        fits: `Analysis.fits`, of one setting.
    """
    points, fits = points[points["quantity"] == "N"], fits[fits["quantity"] == "b_N"]
    if points["value"].isna().all():
        return None
    figure, axes = _panels(points)
    for key, panel in axes.items():
        reached = _panel(points, key).dropna(subset="value")
        if len(reached):
            panel.set(yscale="log", ylim=(reached["value"].min() / 1.6, reached["value"].max() * 3))
        _batch_axis(panel, points["batch_size"])
        _log_ticks(panel)
        ends = []
        by_rank = _panel(fits, key).sort_values(["headline", "target"], ascending=[False, True])
        for fit, marker in zip(by_rank.to_dict("records"), cycle(MARKERS), strict=False):
            rows = reached[reached["target"] == fit["target"]]
            if len(rows):
                _one_target(panel, rows, fit, marker)
                x, y = rows.iloc[-1][["batch_size", "value"]]
                ends.append((x, y, f"L ≤ {fit['target']:g}", INK, marker, fit["headline"]))
            if fit["headline"]:
                _mark_critical(panel, fit)
        _label_ends(panel, ends)
    _finish(figure, axes, "batch size b (samples)", "iterations N to the target loss")
    _legend(
        figure,
        ("measured N, 95 % interval", {"marker": "o", "color": INK, "linestyle": ""}),
        ("fit N_inf (1 + b_N/b)", {"color": FIT}),
        ("perfect scaling N(1)/b", {"color": "0.45", "linestyle": ":"}),
        ("b_N, fitted", {"color": FIT, "linestyle": "-."}),
        ("b_star, predicted", {"color": STAR, "linestyle": "--"}),
    )
    return figure


def _one_target(panel: Axes, rows: pd.DataFrame, fit: dict, marker: str) -> None:
    main = fit["headline"]
    b = np.geomspace(rows["batch_size"].min(), rows["batch_size"].max(), 200)
    if not math.isnan(fit["value"]):
        panel.plot(b, fit["asymptote"] * (1 + fit["value"] / b), color=FIT, linewidth=1.5 if main else 0.8)
    if main:
        first = rows.iloc[0]
        panel.plot(b, first["value"] * first["batch_size"] / b, color="0.45", linestyle=":", linewidth=1.5)
    _error_bars(panel, rows, marker, filled=main)


def _mark_critical(panel: Axes, fit: dict) -> None:
    """Vertical lines at b_N and b_star of the headline fit, named at opposite ends of the panel."""
    low, high = panel.get_xlim()
    if not math.isnan(fit["value"]):
        panel.axvline(fit["value"], color=FIT, linestyle="-.", linewidth=1)
        panel.axvspan(max(fit["low"], low), min(fit["high"], high), color=FIT, alpha=0.15, linewidth=0)
    panel.axvline(fit["b_star"], color=STAR, linestyle="--", linewidth=1)
    panel.set_xlim(low, high)
    said = [f"b_N = {number(fit['value'])}"] if not math.isnan(fit["value"]) else ["no b_N: see the table"]
    said.append(f"b_star = {number(fit['b_star'])}")
    if policy(fit["stepsize"]) == "theory":
        said += ["eta is made from beta(b):", "this checks the code"]
    _say(panel, said, "top")


def _error_bars(panel: Axes, rows: pd.DataFrame, marker: str, *, filled: bool = True) -> None:
    value, low, high = (rows[name].to_numpy(dtype=float) for name in ("value", "low", "high"))
    errors = np.nan_to_num([np.maximum(value - low, 0), np.maximum(high - value, 0)])
    panel.errorbar(
        rows["batch_size"],
        value,
        yerr=errors,
        fmt=marker,
        color=INK,
        markersize=5,
        markerfacecolor=INK if filled else "white",
        capsize=2,
        linewidth=1,
        zorder=3,
    )


def _matching(table: pd.DataFrame, row: dict) -> pd.DataFrame:
    """The rows of a table that agree with `row`, null with null."""
    for name, value in row.items():
        table = table[table[name].isna() if pd.isna(value) else table[name] == value]
    return table


def _pages(fits: pd.DataFrame) -> Iterator[tuple[dict, Callable[[pd.DataFrame], pd.DataFrame]]]:
    """For each figure its setting, and a function that cuts a table down to the figure's widths and stepsizes."""
    for row in fits[list(SETTING)].drop_duplicates().to_dict("records"):
        of_setting = _matching(fits, row)
        widths = sorted(of_setting["width"].unique().tolist())
        for k in range(0, len(widths), SIDE):
            for labels in _columns(list(dict.fromkeys(of_setting["stepsize"]))):
                yield row, partial(_cut, row=row, widths=widths[k : k + SIDE], labels=labels)


def _cut(table: pd.DataFrame, row: dict, widths: list[int], labels: list[str]) -> pd.DataFrame:
    table = _matching(table, row)
    return table[table["width"].isin(widths) & table["stepsize"].isin(labels)]


def _columns(labels: list[str]) -> Iterator[list[str]]:
    """The stepsizes of each figure; a grid takes two columns of panels, one a reading."""
    page, room = [], SIDE
    for label in labels:
        needs = 2 if policy(label).startswith("grid") else 1
        if page and needs > room:
            yield page
            page, room = [], SIDE
        page, room = [*page, label], room - needs
    if page:
        yield page


def _panels(table: pd.DataFrame, *, sharey: bool = False) -> tuple[Figure, dict[tuple, Axes]]:
    """A figure with a row for each width and a column for each stepsize; panels without data are left out."""
    keys = list(table[["width", "stepsize", "tuning"]].drop_duplicates().itertuples(index=False, name=None))
    widths = sorted({key[0] for key in keys})
    columns = sorted({key[1:] for key in keys})
    figure = Figure(figsize=(1.2 + 3.6 * len(columns), 1.4 + 2.8 * len(widths)), layout="constrained")
    grid = figure.subplots(len(widths), len(columns), squeeze=False, sharex=True, sharey=sharey)
    axes = {}
    for i, width in enumerate(widths):
        for j, column in enumerate(columns):
            panel = grid[i, j]
            if (width, *column) not in keys:
                panel.remove()
                continue
            label = method({"stepsize": column[0], "tuning": column[1]})
            panel.set_title(f"width {width}, {label}" if width else label, fontsize=10)
            panel.grid(visible=True, which="major", color="0.9", linewidth=0.6)
            axes[width, *column] = panel
    title = setting(table.iloc[0].to_dict())
    figure.suptitle("\n".join(_wrapped(title, 40 * len(columns))), fontsize=11)
    return figure, axes


def _panel(table: pd.DataFrame, key: tuple) -> pd.DataFrame:
    width, stepsize, tuning = key
    return table[(table["width"] == width) & (table["stepsize"] == stepsize) & (table["tuning"] == tuning)]


def _batch_axis(panel: Axes, sizes: pd.Series) -> None:
    """A log2 axis with the batch sizes that were run as its ticks, thinned to ten, the ends kept."""
    sizes = np.unique(sizes)
    panel.set_xscale("log", base=2)
    panel.set_xlim(sizes[0] / 1.5, sizes[-1] * 1.5)
    panel.xaxis.set_major_locator(
        FixedLocator(sizes[np.linspace(0, len(sizes) - 1, min(10, len(sizes))).round().astype(int)])
    )
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _log_ticks(panel: Axes) -> None:
    """Plain numbers on the vertical log axis: at 1, 2 and 5 of each decade, or where there are many decades, at 1."""
    low, high = panel.get_ylim()
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 500 * low else (1.0,)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_locator(NullLocator())


def _label_ends(panel: Axes, ends: list[tuple]) -> None:
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


def _say(panel: Axes, lines: list[str], end: Literal["top", "bottom"]) -> None:
    """A few words in a corner that the curves leave free: h rises with b, N falls."""
    y = 0.96 if end == "top" else 0.04
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2}
    words = "\n".join(lines)
    panel.text(0.97, y, words, transform=panel.transAxes, fontsize=8, va=end, ha="right", bbox=box, zorder=4)


def _finish(figure: Figure, axes: dict[tuple, Axes], x: str, y: str) -> None:
    """Axis names, on the outer panels only."""
    for panel in axes.values():
        place = panel.get_subplotspec()
        panel.tick_params(labelsize=7, labelbottom=True)
        panel.set_xlabel(x if place.is_last_row() else "", fontsize=9)
        panel.set_ylabel(y if place.is_first_col() else "", fontsize=9)


def _legend(figure: Figure, *entries: tuple[str, dict]) -> None:
    handles = [Line2D([], [], label=label, **look) for label, look in entries]
    columns = min(len(handles), max(1, int(figure.get_figwidth() / 2.2)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 50))
