"""Views of `raysat.plots.views` as JSON, which `assets/` draws.

Null is not drawn, and an infinite end of an interval is drawn at the frame. Fields at their defaults are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from raysat.plots.description import Axis, Mark, Numbers, Series, View

Json = dict[str, Any]

DIGITS = 5
"""Significant digits of the numbers in a page. Default: 5, finer than a pixel."""

INFINITE = "Infinity"
"""The text that represents infinity, which JSON does not have."""

DASHES = {"dashed": "6 4", "dotted": "2 4", "dashdot": "8 3 2 3"}
"""The dashes of lines in SVG's notation."""


def numbers(values: Numbers) -> list[float | str | None]:
    """Return values for JSON: integers as they are, other numbers rounded, infinity as `INFINITE`, else None."""
    if (known := np.asarray(values)).dtype.kind in "iu":
        return known.tolist()
    return [
        INFINITE if value == math.inf else float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
        for value in map(float, values)
    ]


def as_json(view: View) -> Json:
    """Return a view for JSON, without `at`, its place among the views of a figure."""
    made: Json = {"series": [_series(one) for one in view.series], "marks": [mark_json(one) for one in view.marks]}
    made |= {"notes": list(view.notes), "summary": view.summary, "ticks": view.ticks}
    return made | ({"of": view.of} if view.of else {}) | ({"y": axis_json(view.y)} if view.y else {})


def axis_json(axis: Axis) -> Json:
    """Return an axis for JSON."""
    return ({"key": axis.key} if axis.key else {}) | {"label": axis.label, "short": axis.short, "log": axis.log}


def mark_json(mark: Mark) -> Json:
    """Return a mark for JSON: a value on the horizontal axis, and the ends of its interval."""
    places = dict(zip(("at", "low", "high"), numbers([mark.at, mark.low, mark.high]), strict=True))
    return {"name": mark.name, "tone": mark.tone, "dash": DASHES[mark.dash], **places}


def _series(one: Series) -> Json:
    made: Json = {"name": one.name, "x": _by_key(one.x), "y": numbers(one.y)}
    made |= {"tone": one.tone} if one.shade is None else {"shade": one.shade}
    made |= {end: numbers(values) for end in ("low", "high") if (values := getattr(one, end)) is not None}
    plain = ("mark", "line", "hollow", "spread", "clip")
    # `getattr(Series, ...)` is the default of a field
    made |= {name: value for name in plain if (value := getattr(one, name)) != getattr(Series, name)}
    made |= {"interactive": False} if one.mark is None else {}
    made |= {"dash": DASHES[one.dash]} if one.dash != "solid" else {}
    made |= {"fit": {"x": _by_key(one.fit[0]), "y": numbers(one.fit[1])}} if one.fit else {}
    return made | ({"extra": _by_key(one.extra)} if one.extra else {})


def _by_key(values: Mapping[str, Numbers]) -> Json:
    return {key: numbers(of) for key, of in values.items()}
