"""Arguments of an optimizer or a schedule: plain values by name, of which cell ids and labels are made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from raysat.errors import InputError, plain
from raysat.text import shown

Option = bool | int | float | str | None | tuple[float, ...]
Options = tuple[tuple[str, Option], ...]

_EXAMPLES = {"options": '{"weight_decay": 0.1}', "schedule_options": '{"step_size": 100}'}


def as_options(field: str, value: Any) -> Options:
    """Return a dictionary, or pairs, as sorted pairs of plain values.

    Raises:
        InputError: A name is no argument's, or a value has no identity.
    """
    pairs = value.items() if isinstance(value, Mapping) else value
    try:
        made = [(name, _as_option(one)) for name, one in pairs]
    except (TypeError, ValueError):
        raise InputError(f"{field}={shown(value)}: give a dictionary, such as {_EXAMPLES[field]}.") from None
    for name, one in made:
        if not isinstance(name, str) or not name.isidentifier():
            raise InputError(f"{field} has {shown(name)}: give names of arguments.")
        if name in ("lr", "params"):
            raise InputError(f"{field} has {name}: the sweep's stepsizes are the learning rates; leave it out.")
        if not all(map(_is_plain, one if isinstance(one, tuple) else (one,))):
            raise InputError(f"{field} has {name}={shown(one)}: give a number, a bool, a text or a list of numbers.")
    return tuple(sorted(dict(made).items()))


def worded(options: Options) -> str:
    """Return options as the end of a label: `betas=(0.9, 0.95) weight_decay=0.1`."""
    return " ".join(f"{name}={value!r}" for name, value in options)


def _as_option(value: Any) -> Any:
    several = isinstance(value, Iterable) and not isinstance(value, str | Mapping)
    return tuple(map(plain, value)) if several else plain(value)


def _is_plain(value: object) -> bool:
    """Return whether an option is a value that has an identity: nan equals nothing, not even itself."""
    return isinstance(value, bool | int | str | None) or (isinstance(value, float) and math.isfinite(value))
