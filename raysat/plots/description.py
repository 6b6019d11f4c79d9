"""The content of a figure as plain data: series, marks and words, independent of how they are drawn.

`raysat.plots.views` makes a `View` from the tables of an analysis; `raysat.plots.panels` draws it with matplotlib, and
`raysat.report.series` writes it as JSON, which the page draws. So both show the same.
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
"""Tones of series without an order. References, such as perfect scaling, are `soft`, a grey."""

SMOOTH = 48
"""Points at which a curve known at every b is drawn. Default: 48, at which it looks smooth on linear and log axes."""


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        label: Its name.
        short: The name before a single value, such as `b` in `b = 16`.
        log: Whether it is logarithmic.
        key: Its key in `Series.x`; empty for a vertical axis.
    """

    label: str
    short: str
    log: bool = True
    key: str = ""


@dataclass(frozen=True)
class Series:
    """Points or a curve, with a name.

    Attributes:
        name: Its name in the legend of its view on the page.
        x: Positions, by the key of a horizontal axis.
        y: Values.
        kind: Its name in the legend that the panels of a static figure share; it has no entry if empty.
        end: The label at its right end in a static panel.
        tone: Its color: one of `PALETTE`, or `soft`.
        shade: Its position, 0 to 1, in an ordered family of series; replaces the tone.
        mark: Index of its marker; None for a curve, whose single points have no values to show on the page.
        dash: The dashes of its line.
        line: Whether a line joins its points.
        hollow: Whether its markers are hollow.
        low: Lower ends of intervals.
        high: Upper ends, infinite if an interval is open.
        spread: The form in which intervals are drawn.
        fit: A curve fitted to the points: its x, and its y.
        extra: Further values of each point, by column, which the page shows.
        clip: Whether it may leave the frame; otherwise the axes contain it.
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
        tone: Its color.
        dash: The dashes of its line.
        at: The value.
        low: The lower end of its interval; nan if absent.
        high: The upper end.
        kind: As in `Series`.
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
        series: The series.
        marks: Values on the horizontal axis.
        notes: Sentences below the figure on the page.
        words: Short lines of text inside a static panel.
        summary: The content in words, for screen readers.
        ticks: Ticks of horizontal axes, by key; round numbers if absent.
        of: The key of its quantity, if the figure has several.
        y: The vertical axis, if it differs from the figure's.
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
        """True if no point has a value."""
        # curves do not count: perfect scaling alone is not worth a panel
        return not any(np.isfinite(np.asarray(one.y, float)).any() for one in self.series if one.mark is not None)


def measured(rows: pd.DataFrame, name: str, extra: Sequence[str] = (), **look: Any) -> Series:
    """Make the series of a measured quantity: points by batch size, with intervals and the columns that a page shows.

    Args:
        rows: Rows of `Analysis.points` or `Analysis.costs`.
        name: The name of the series.
        extra: Columns to show in addition to seeds and stepsizes.
        look: Other fields of `Series`.
    """
    columns = (*extra, "eta", "eta_beta", "eta_k_op")
    known = {column: rows[column] for column in columns if column in rows and rows[column].notna().any()}
    if rows["low"].notna().any():
        look |= {"low": rows["low"], "high": rows["high"], "spread": "bars"}
    return Series(name, {"b": rows["batch_size"]}, rows["value"], extra={"seeds": rows["seeds"], **known}, **look)


def dense(sizes: Numbers) -> Float[np.ndarray, " b"]:
    """Return the batch sizes at which to draw a curve, from the smallest to the largest, evenly spaced in log b."""
    return np.geomspace(min(sizes), max(sizes), SMOOTH)


def ends_of(rows: pd.DataFrame, quantity: str, unit: str) -> str:
    """Describe a figure by its values at both ends, for screen readers."""
    rows = rows.dropna(subset="value")
    if rows.empty:
        return f"{quantity} has no value."
    ends = (f"{number(row['value'])} at b = {row['batch_size']}" for row in (rows.iloc[0], rows.iloc[-1]))
    return f"{quantity} goes from {' to '.join(ends)}, {unit}."


def sentence(text: str) -> str:
    """Return a remark as a sentence, with a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + "."
