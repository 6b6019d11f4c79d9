"""Removal of credentials from all texts that are stored or shown."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

T = TypeVar("T")

_NAMES = r"secret|token|passw|credential|signature|api_?key|access_?key|account_?key|private_?key|connection_string"
_NAMED = re.compile(_NAMES, re.IGNORECASE)
"""Matches the names of variables whose values are secret."""

_SHORTEST = 6
"""Length of the shortest value that is hidden. Default: 6; shorter ones occur in any text."""

_IN_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*://)([^\s/@'\"<>:]*):[^\s'\"<>]*@", re.IGNORECASE)
_IN_QUERY = re.compile(rf"([?&;][\w.-]*(?:{_NAMES}|sig)[\w.-]*=)[^\s&;'\"<>]+", re.IGNORECASE)

HIDDEN = "***"


def hidden(value: T) -> T:
    """Remove credentials from a text, or from the texts in a mapping or list; anything else is returned as it is.

    Hidden are the user and password of an address (`s3://KEY:SECRET@bucket`), the values of its options that are named
    like a secret or a token, and the values of this process's environment variables with such names.

    Example:
        >>> hidden("no such bucket: s3://AKIA1:hush@data/x?region=eu")
        'no such bucket: s3://***@data/x?region=eu'
    """
    return _hidden(value, sorted(set(_secrets()), key=len, reverse=True))


def _hidden(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, HIDDEN)
        return _IN_QUERY.sub(rf"\1{HIDDEN}", _IN_ADDRESS.sub(rf"\1{HIDDEN}@", value))
    if isinstance(value, Mapping):
        return {name: _hidden(one, secrets) for name, one in value.items()}
    return [_hidden(one, secrets) for one in value] if isinstance(value, list | tuple) else value


def _secrets() -> Iterator[str]:
    for name, value in os.environ.items():
        if _NAMED.search(name) and len(value) >= _SHORTEST:
            yield from (value, quote(value, safe=""))
