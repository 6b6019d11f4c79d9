"""Import paths, by which a sweep names the user's own functions."""

from __future__ import annotations

import re

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_reference(name: str) -> bool:
    """Return whether `name` is an import path, `module:function`, rather than a built-in name."""
    return _REFERENCE.fullmatch(name) is not None
