"""What a figure shows, as plain data: series, marks and words, and nothing about pixels.

`raysat.plots.views` makes a `View` of the tables of an analysis; `raysat.plots.panels` draws it with matplotlib, and
`raysat.report.series` writes it as JSON, which the page draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from raysat.analysis import number

Dash = Literal["solid", "dashed", "dotted", "dashdot"]

Numbers = Sequence[float] | np.ndarray | pd.Series
"""One value per point; nan is not drawn."""

PALETTE = ("blue", "orange", "green", "purple", "ink")
"""Tones of series without an order; `soft`, a grey, is for what is there to compare with."""

SMOOTH = 48
"""Points of a curve that is known at every b. Default: 48, at which no corner is seen on either kind of axis."""


@dataclass(frozen=True)
class Axis:
    """An axis: its key in `Series.x`, its name, what stands before a value of it, and whether it is logarithmic."""

    label: str
    short: str
    log: bool = True
    key: str = ""


@dataclass(frozen=True)
class Series:
    """Points, or a line, with a name in the legend.

    Attributes:
        name: Its name on the page, where a view has a legend of its own.
        x: Positions, by the key of a horizontal axis.
        y: Values.
        kind: Its name in a legend that several panels share; none if empty.
        end: Its name at its right end in a static panel.
        tone: Its colour: one of `PALETTE`, or `soft`.
        shade: Its place, 0 to 1, in an ordered family of series, in place of the tone.
        mark: Which marker its points have; None for a curve, of whose points a reader cannot ask the values.
        dash: The dashes of its line.
        line: Whether a line joins its points.
        hollow: Whether its markers are hollow.
        low: Lower ends of intervals.
        high: Upper ends, infinite if an interval is open.
        spread: How intervals are drawn.
        fit: A curve through the points: its x, and its y.
        extra: What else is known of each point, by column.
        clip: Whether it is cut at the frame; otherwise the axes reach around it.
    """

    name: str
    x: Mapping[str, Numbers]
    y: Numbers
    kind: str = ""
    end: str = ""
    tone: str = "ink"
    shade: float | None = None
    mark: int | None = None
    dash: Dash = "solid"
    line: bool = False
    hollow: bool = False
    low: Numbers | None = None
    high: Numbers | None = None
    spread: Literal["bars", "band"] | None = None
    fit: tuple[Mapping[str, Numbers], Numbers] | None = None
    extra: Mapping[str, Numbers] = field(default_factory=dict)
    clip: bool = False


@dataclass(frozen=True)
class Mark:
    """A value on the horizontal axis, with its interval.

    Attributes:
        name: Its name on the page.
        tone: Its colour.
        dash: The dashes of its line.
        at: The value.
        low: The lower end of its interval; nan for none.
        high: The upper end.
        kind: As that of a `Series`.
    """

    name: str
    tone: str
    dash: Dash
    at: float
    low: float
    high: float
    kind: str = ""


@dataclass(frozen=True)
class View:
    """One panel of a figure.

    Attributes:
        series: What is drawn.
        marks: Values on the horizontal axis.
        notes: Sentences below the figure on the page.
        words: A few words inside a static panel.
        summary: What the figure shows, for those who do not see it.
        ticks: Ticks of horizontal axes, by key; round numbers if absent.
        of: Which of the figure's quantities this is.
        y: The vertical axis, if it is not the figure's.
    """

    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    notes: Sequence[str] = ()
    words: Sequence[str] = ()
    summary: str = ""
    ticks: Mapping[str, Sequence[float]] = field(default_factory=dict)
    of: str = ""
    y: Axis | None = None

    @property
    def empty(self) -> bool:
        """Whether no point has a value."""
        return not any(np.isfinite(np.asarray(one.y, float)).any() for one in self.series if one.mark is not None)


def measured(rows: pd.DataFrame, name: str, extra: Sequence[str] = (), **look: Any) -> Series:
    """Points by batch size with intervals, and what else a reader may want to know of each.

    Args:
        rows: Rows of `Analysis.points` or `Analysis.costs`.
        name: The name of the series.
        extra: Columns that are shown beside seeds and stepsizes.
        look: Fields of `Series`.
    """
    columns = (*extra, "eta", "eta_beta", "eta_k_op")
    known = {column: rows[column] for column in columns if column in rows and rows[column].notna().any()}
    if rows["low"].notna().any():
        look |= {"low": rows["low"], "high": rows["high"], "spread": "bars"}
    return Series(name, {"b": rows["batch_size"]}, rows["value"], extra={"seeds": rows["seeds"], **known}, **look)


def dense(sizes: Numbers) -> Float[np.ndarray, " b"]:
    """Batch sizes from the smallest to the largest, at which a curve is drawn."""
    return np.geomspace(min(sizes), max(sizes), SMOOTH)


def ends_of(rows: pd.DataFrame, quantity: str, unit: str) -> str:
    """Return what a figure shows, for those who do not see it: the values at the ends."""
    rows = rows.dropna(subset="value")
    if rows.empty:
        return f"{quantity} has no value."
    ends = (f"{number(row['value'])} at b = {row['batch_size']}" for row in (rows.iloc[0], rows.iloc[-1]))
    return f"{quantity} goes from {' to '.join(ends)}, {unit}."


def sentence(text: str) -> str:
    """A remark with a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + "."
