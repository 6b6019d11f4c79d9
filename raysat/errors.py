"""Checks of user input: each error is one sentence that names the field and ends in the remedy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import TypeGuard

import numpy as np

from raysat.text import shown

LARGEST = 2**63 - 1
"""The largest whole number that a column of a table can hold."""


class InputError(ValueError):
    """Something a user wrote cannot be run. The message is one sentence that ends in the remedy."""


class NoStatistics(InputError):
    """A network has no NTK statistics. The message gives the reason, the module if it is known, and the remedy."""


def listed(name: str, value: object, single: tuple[type, ...] = (str,)) -> list:
    """Return a list of the value's entries; a value of a `single` type is refused although it may be iterable."""
    if isinstance(value, single) or not isinstance(value, Iterable) or getattr(value, "shape", None) == ():
        raise InputError(f"{name}={shown(value)}: give a list.")
    return list(value)


def whole(name: str, value: object, least: int) -> int:
    """Return a whole number of at least `least`, also one of NumPy's, as Python's int: cell ids are made of it."""
    if not is_whole(value) or value < least:
        raise InputError(f"{name} has {shown(value)}: give whole numbers of at least {least}.")
    if value > LARGEST:
        raise InputError(f"{name} has {shown(value)}: give whole numbers below 2^63.")
    return int(value)


def plain(value: object) -> object:
    """Return the value, a NumPy number as the same Python number, because cell ids are made of its text."""
    return value.item() if isinstance(value, np.generic) else value


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether the value is a whole number, Python's or NumPy's; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def boolean(name: str, value: object) -> bool:
    """Return the value if it is True or False."""
    if not isinstance(value, bool):
        raise InputError(f"{name}={shown(value)}: give True or False.")
    return value


def positive(name: str, value: object) -> float:
    """Return a positive and finite number, Python's or NumPy's, as Python's float."""
    if not _is_float(value) or not 0 < value < math.inf:
        raise InputError(f"{name} has {shown(value)}: give positive, finite numbers.")
    return float(value)


def _is_float(value: object) -> TypeGuard[float]:
    """Return whether the value is a real number, not a bool, and not a whole number too large for a column."""
    return isinstance(value, Real) and not isinstance(value, bool) and not (is_whole(value) and value > LARGEST)


def among(name: str, value: object, names: Iterable[str]) -> str:
    """Return the value if it is one of some names."""
    if not isinstance(value, str) or value not in list(names):
        raise InputError(f"{name}={shown(value)}: use one of {', '.join(names)}.")
    return value
