"""The files that a results folder may have: raysat deletes or reads only files with names that it gives itself.

The names also distinguish a results folder that is incomplete, without a `sweep.json`, from a folder of other content.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from raysat.spec.catalogue import SOURCES

_OWN = re.compile(
    r"(sweep|status)\.json/?|batch_schedule\.json|(analysis|ablation|communication)\.parquet|report\.html"
    r"|(trials|curves|ntk)/([^./][^/]*\.parquet)?|checkpoints/([^./][^/]*\.pt|\.probe-[0-9a-f]+)?"
    rf"|figures/([^./][^/]*\.(png|pdf))?|set-aside/.*|data/(({'|'.join(map(re.escape, SOURCES))})/.*)?"
)
"""Paths relative to the folder; those that end in `/` are empty folders."""

_ASIDE = re.compile(r"(?P<folder>(.*/)?)\.(?P<name>.+)\.\d+")
"""A file that is being written, or whose writer was killed (`raysat.storage.files.write_aside`)."""

_SIGNS = re.compile(r"\.?sweep\.json[./\d]*|(trials|curves|ntk)/.*")
"""A results folder has one of these from the start."""


def unfinished(path: str) -> str:
    """The final path of a file written aside; empty for any other file."""
    found = _ASIDE.fullmatch(path)
    return found["folder"] + found["name"] if found else ""


def strangers(paths: Iterable[str]) -> list[str]:
    """The files of a folder that raysat did not make: all of them if nothing shows that it is a results folder.

    Args:
        paths: The result of `raysat.storage.files.walk`.
    """
    paths = sorted(paths)
    if not any(map(_SIGNS.fullmatch, paths)):
        return paths
    return [path for path in paths if not _OWN.fullmatch(unfinished(path) or path)]
