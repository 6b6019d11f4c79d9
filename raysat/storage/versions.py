"""Conversion of files of earlier versions of raysat to the present schema, as they are read: one step for each version.

To change the schema, add a function and an entry in `STEPS`; everything stored before can then be read for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import pyarrow as pa

from raysat.errors import InputError

KEY = b"raysat_schema"
"""The key of the schema version in a part-file's metadata; in `sweep.json` it is `schema`."""

FIRST = 1
"""The schema version of raysat 0.1.0."""


def _as_it_is(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return record


@dataclass(frozen=True)
class Step:
    """The conversion from one schema version to the next, as pure functions.

    Attributes:
        rows: Converts the rows of a part-file, given the table's name and the rows.
        record: Converts the content of `sweep.json`. Default: it stays as it is.
    """

    rows: Callable[[str, pa.Table], pa.Table]
    record: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _as_it_is


STEPS: tuple[Step, ...] = ()
"""From version 1 to 2, from 2 to 3, and so on."""


def present() -> int:
    """The schema version that this raysat writes."""
    return FIRST + len(STEPS)


def is_read(version: object) -> TypeGuard[int]:
    """Return whether this version of raysat can read a schema version."""
    return isinstance(version, int) and FIRST <= version <= present()


def version_of(part: pa.Table) -> int:
    """The schema version of a part-file's rows; the present one if the file has none.

    Raises:
        ValueError: It has something that is not a version.
    """
    return int((part.schema.metadata or {}).get(KEY, present()))


def rows_brought_up(table: str, part: pa.Table) -> pa.Table:
    """Convert the rows of a part-file to the present schema.

    Args:
        table: The table.
        part: The rows as they are stored.

    Raises:
        InputError: They are of a later version.
        ValueError: Their version does not exist.
    """
    version = version_of(part)
    if version > present():
        raise InputError(f"has schema version {version}, this raysat reads up to {present()}: use a newer raysat.")
    if not is_read(version):
        raise ValueError(f"it has schema version {version}, which no raysat has written")
    for step in STEPS[version - FIRST :]:
        part = step.rows(table, part)
    return part.replace_schema_metadata({**(part.schema.metadata or {}), KEY: str(present()).encode()})


def record_brought_up(record: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the content of `sweep.json` to the present schema; a version that cannot be read stays as it is."""
    if not is_read(version := record.get("schema")):
        return dict(record)
    for step in STEPS[version - FIRST :]:
        record = step.record(record)
    return {**record, "schema": present()}
