"""Static figures: functions from tables to a matplotlib `Figure` with one panel for each width and stepsize.

`views` describes what a panel shows and `panels` draws it; this module makes the figures of a whole sweep and writes
them. Nothing uses pyplot's global state, so that figures can be made in threads, without a display, and many at a time.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raysat.analysis import SETTING, Analysis, comparable, key_of, policy, setting, short_settings
from raysat.plots.attempts import Attempt, plainly
from raysat.plots.drawing import draw
from raysat.plots.figures import costs, exponents, loss_curves, steps
from raysat.storage.files import Location, write_aside

__all__ = ["CAPTIONS", "StaticFigure", "costs", "exponents", "loss_curves", "render_figures", "save", "steps"]

SIDE = 3
"""Largest number of panels along a side of a figure. Default: 3, at which labels are legible on a printed page."""

CAPTIONS = {
    "steps": (
        "Iterations N(b) to a target loss against batch size b: geometric mean over seeds with 95 % interval, the fit "
        "N_inf (1 + (b_N/b)^q)^(1/q), perfect scaling N(1)/b, and, with their intervals as bands, the fitted critical "
        "batch size b_N and b_star = gamma/k_op, predicted at initialization. Bold and filled: the target of b_N."
    ),
    "costs": (
        "What the deepest target costs against batch size b, over the least that it costs at any b: samples b N(b), "
        "seconds in SGD steps, and device-hours (of a GPU, or a core where there is none); geometric means over seeds "
        "with 95 % intervals. Where the samples cross the dotted line 20 % of them are wasted: b_20."
    ),
    "exponents": (
        "Convergence exponent h(b) = log(L(w_0)/L(w_T))/T against batch size b: geometric mean over seeds with 95 % "
        "interval, and the paper's curve (section 5), interpolated between h(1) and h(n). Where h hardly varies, the "
        "two agree whatever the critical batch size is."
    ),
    "loss-curves": (
        "Loss L(w_t) over all training samples against iteration t, by batch size b: median over seeds, band from the "
        "smallest to the largest; under a grid, the best stepsize of each b by h. Equal distances from b to 2b are "
        "linear scaling; curves that lie on each other are saturation."
    ),
}
"""The captions of the figures, by kind."""


@dataclass(frozen=True)
class StaticFigure:
    """A figure, and the texts with which a page shows it.

    Attributes:
        kind: Its kind: a key of `CAPTIONS`.
        name: File name without suffix.
        title: The setting in which it was measured.
        caption: The meaning of the symbols.
        figure: The figure.
    """

    kind: str
    name: str
    title: str
    caption: str
    figure: Figure


def render_figures(
    trials: pd.DataFrame,
    curves: pd.DataFrame,
    analysis: Analysis,
    attempt: Attempt = plainly,
    *,
    kinds: Collection[str] = tuple(CAPTIONS),
    ax: Axes | None = None,
    target: float | None = None,
    title: str | None = None,
) -> list[StaticFigure]:
    """Make all figures of a sweep, in the order of the report, each setting in figures of at most 3 x 3 panels.

    Args:
        trials: The `trials` table.
        curves: The `curves` table.
        analysis: The analysis of both.
        attempt: Calls the function that makes each figure. Default: errors are raised.
        kinds: The kinds of figures to make. Default: all.
        ax: Axes on which to draw only the reading with the best evidence in the first setting. Default: figures are
            made.
        target: A loss to mark in the loss curves.
        title: The title. Default: data set, model, and the columns in which settings differ.
    """
    draw = {
        "steps": lambda page, title: steps(page(analysis.points), page(analysis.fits), ax, title),
        "costs": lambda page, title: costs(page(analysis.costs), ax, title),
        "exponents": lambda page, title: exponents(page(analysis.points), page(analysis.fits), ax, title),
        "loss-curves": lambda page, title: loss_curves(page(comparable(trials)), curves, ax, target, title),
    }
    names = short_settings(analysis.fits)
    pages = list(_pages(analysis.fits))
    if ax is not None:  # the whole setting, of which `panels_of` draws the reading with the best evidence
        pages = [(row, partial(_matching, row=row)) for row, _ in pages[:1]]
    made = []
    for kind in (kind for kind in draw if kind in kinds):
        drawn = []
        for row, page in pages:
            said = names[key_of(row, SETTING)] if title is None and ax is None else title
            drawn.append((row, attempt(f"Figure {kind}", partial(draw[kind], page, said))))
        # None: the attempt failed, or there is nothing to draw
        drawn = [(row, figure) for row, figure in drawn if figure is not None]
        for k, (row, figure) in enumerate(drawn, 1):
            name = f"{kind}-{k}" if len(drawn) > 1 else kind
            made.append(StaticFigure(kind, name, setting(row), CAPTIONS[kind], figure))
    return made


def save(made: list[StaticFigure], folder: Location, attempt: Attempt = plainly) -> None:
    """Write each figure to `folder` as PNG and PDF, and delete figures of earlier calls that are not among them.

    Args:
        made: The figures.
        folder: The folder, created if missing.
        attempt: Calls the function that draws each figure. Default: errors are raised.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # drawn to a local folder first: `folder` may be an address, and a figure may fail halfway
    with TemporaryDirectory(prefix="raysat-") as drawn:
        draw({one.name: one.figure for one in made}, Path(drawn), attempt)
        files = {folder / file.name: file for file in Path(drawn).iterdir()}
        for path, file in files.items():
            write_aside(path, partial(shutil.copyfile, file))
    own = re.compile(rf"({'|'.join(map(re.escape, CAPTIONS))})(-\d+)?\.(png|pdf)")  # other files are a user's
    for path in {path for path in folder.iterdir() if own.fullmatch(path.name)} - set(files):
        path.unlink()


def _matching(table: pd.DataFrame, row: dict) -> pd.DataFrame:
    """Select the rows of a table that agree with `row`; missing values agree with each other."""
    for name, value in row.items():
        table = table[table[name].isna() if pd.isna(value) else table[name] == value]
    return table


def _pages(fits: pd.DataFrame) -> Iterator[tuple[dict, Callable[[pd.DataFrame], pd.DataFrame]]]:
    """Yield, for each figure, its setting and a function that selects the rows of its widths and stepsizes."""
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
    """Yield the stepsizes of each figure; a grid needs two columns of panels, one for each reading."""
    page, room = [], SIDE
    for label in labels:
        needs = 2 if policy(label).startswith("grid") else 1
        if page and needs > room:
            yield page
            page, room = [], SIDE
        page, room = [*page, label], room - needs
    if page:
        yield page
