"""The words in which figures are written for a page: numbers, points with intervals, values on an axis, sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from raysat.analysis import number

Json = dict[str, Any]

DIGITS = 5
"""Significant digits of the numbers in a page."""

SMOOTH = 48
"""Points of a curve that is known at every b. Default: 48, at which no corner is seen on either kind of axis."""

PALETTE = ("blue", "orange", "green", "purple", "ink")
"""Colours of series without an order, named in `assets/page.css`, which says how far apart they are."""

INFINITE = "Infinity"
"""How an infinite number stands in a page, for JSON has none."""


def numbers(values: Iterable[float]) -> list[float | str | None]:
    """The values as JSON has them: a few digits, `INFINITE` for infinity, null for what is no number."""
    return [
        INFINITE if value == math.inf else float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
        for value in map(float, values)
    ]


def measured(rows: pd.DataFrame, name: str, tone: str, mark: int, extra: Sequence[str] = ()) -> Json:
    """Points with intervals, and what else a reader may want to know of each."""
    shown = {"seeds": rows["seeds"].tolist()}
    shown |= {
        column: numbers(rows[column])
        for column in (*extra, "eta", "eta_beta", "eta_k_op")
        if column in rows and rows[column].notna().any()
    }
    values = {end: numbers(rows[end]) for end in ("low", "high")} if rows["low"].notna().any() else {}
    spread = {"spread": "bars"} if values else {}
    about = {"name": name, "tone": tone, "mark": mark, "x": {"b": rows["batch_size"].tolist()}}
    return about | {"y": numbers(rows["value"]), **values, **spread, "extra": shown}


def mark_at(name: str, tone: str, dash: str, values: tuple[float, float, float]) -> Json:
    """A value on the horizontal axis, and the ends of its interval."""
    return {"name": name, "tone": tone, "dash": dash} | dict(zip(("at", "low", "high"), numbers(values), strict=True))


def dense(sizes: pd.Series) -> Float[np.ndarray, " b"]:
    """Batch sizes from the smallest to the largest, at which a curve is drawn."""
    return np.geomspace(sizes.min(), sizes.max(), SMOOTH)


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
