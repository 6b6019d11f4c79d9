"""What is said of a field of a `Sweep` beside its name and its default: what it concerns, and what it may be.

A setting that changes results is a field of a `Cell` or of an `Initialization` too, under the same name: the sweep
hands it on.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from raysat.spec.checks import Check

AXIS = "axis"
"""Of a field along which a results folder may grow."""

SHARED = "shared"
"""Of a field that all cells of a results folder have in common."""

EXECUTION = "execution"
"""Of a field that changes no cell's result, rounding apart."""

_KEY = "setting"


@dataclass(frozen=True)
class Setting:
    """What is said of a field.

    Attributes:
        kind: `AXIS`, `SHARED` or `EXECUTION`.
        check: What it may be.
    """

    kind: str
    check: Check


def setting(kind: str, check: Check) -> dict[str, Setting]:
    """A field's metadata, for `dataclasses.field`."""
    return {_KEY: Setting(kind, check)}


@cache
def named(sweep: type, kind: str) -> tuple[str, ...]:
    """The names of the fields of a kind, in their order, of a class of sweeps."""
    return tuple(field.name for field in fields(sweep) if field.metadata[_KEY].kind == kind)


def checked(sweep: Any) -> dict[str, Any]:
    """The values of a sweep's fields as it keeps them, by name.

    Raises:
        InputError: One of them cannot be.
    """
    return {field.name: field.metadata[_KEY].check(field.name, getattr(sweep, field.name)) for field in fields(sweep)}
