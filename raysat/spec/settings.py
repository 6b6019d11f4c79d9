"""Metadata of the fields of a `Sweep`: the kind of each, and the check of its value.

A setting that changes results is also a field of `Cell` or `Initialization`, under the same name: the sweep copies it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from raysat.spec.checks import Check

AXIS = "axis"
"""Kind of a field along which a results folder may grow."""

SHARED = "shared"
"""Kind of a field that all cells of a results folder have in common."""

EXECUTION = "execution"
"""Kind of a field that changes no cell's result except by rounding."""

_KEY = "setting"


@dataclass(frozen=True)
class Setting:
    """The metadata of a field.

    Attributes:
        kind: `AXIS`, `SHARED` or `EXECUTION`.
        check: Checks and converts its value.
    """

    kind: str
    check: Check


def setting(kind: str, check: Check) -> dict[str, Setting]:
    """A field's metadata, for `dataclasses.field`."""
    return {_KEY: Setting(kind, check)}


@cache
def named(sweep: type, kind: str) -> tuple[str, ...]:
    """The names of the fields of one kind, in the order of the class."""
    return tuple(field.name for field in fields(sweep) if field.metadata[_KEY].kind == kind)


def checked(sweep: Any) -> dict[str, Any]:
    """The checked and converted values of a sweep's fields, by name.

    Raises:
        InputError: One of them is not allowed.
    """
    return {field.name: field.metadata[_KEY].check(field.name, getattr(sweep, field.name)) for field in fields(sweep)}
