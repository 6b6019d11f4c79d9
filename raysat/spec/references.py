"""Import paths, by which a sweep names the user's own functions."""

from __future__ import annotations

import re

from raysat.errors import InputError
from raysat.text import shown

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_reference(name: str) -> bool:
    """Return whether `name` is an import path, `module:function`, rather than a built-in name."""
    return _REFERENCE.fullmatch(name) is not None


def import_path(name: str, value: object) -> str:
    """Return the value of a field if it is an import path.

    Raises:
        InputError: It is something else, such as the function itself.
    """
    if not (isinstance(value, str) and is_reference(value)):
        raise InputError(
            f"{name}={shown(value)}: give the import path of a function, 'module:function', by which every process "
            "finds it."
        )
    return value
