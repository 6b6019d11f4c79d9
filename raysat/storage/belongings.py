"""What a results folder may have: only what has a name that raysat gives is ever deleted or taken for its own.

A folder whose making was cut short is told from somebody's thesis by this, where there is no `sweep.json` yet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from raysat.spec.catalogue import SOURCES

_OWN = re.compile(
    r"(sweep|status)\.json/?|(analysis|ablation|communication)\.parquet|report\.html"
    r"|(trials|curves|ntk)/([^./][^/]*\.parquet)?|checkpoints/([^./][^/]*\.pt|\.probe-[0-9a-f]+)?"
    rf"|figures/([^./][^/]*\.(png|pdf))?|set-aside/.*|data/(({'|'.join(map(re.escape, SOURCES))})/.*)?"
)
"""Paths from the folder. Those that end in `/` are folders without content."""

_ASIDE = re.compile(r"(?P<folder>(.*/)?)\.(?P<name>.+)\.\d+")
"""A file that is being written, or was when its process was killed (`raysat.storage.files.write_aside`)."""

_SIGNS = re.compile(r"\.?sweep\.json[./\d]*|(trials|curves|ntk)/.*")
"""One of these is there from the first moment on."""


def unfinished(path: str) -> str:
    """The path that a file written aside is to have; empty for any other file."""
    found = _ASIDE.fullmatch(path)
    return found["folder"] + found["name"] if found else ""


def strangers(paths: Iterable[str]) -> list[str]:
    """Of what a folder has, what raysat did not make: all of it where nothing shows that it is a results folder.

    Args:
        paths: The result of `raysat.storage.files.walk`.
    """
    paths = sorted(paths)
    if not any(map(_SIGNS.fullmatch, paths)):
        return paths
    return [path for path in paths if not _OWN.fullmatch(unfinished(path) or path)]
