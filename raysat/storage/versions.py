"""What earlier versions of raysat have stored, brought up to the present schema as it is read: a step for each version.

A change of the schema is a function of its own, and a line in `STEPS`; what was stored before is then read for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import pyarrow as pa

from raysat.errors import InputError

KEY = b"raysat_schema"
"""Under which a part-file's metadata has its schema version; `sweep.json` has it as `schema`."""

FIRST = 1
"""The schema version of raysat 0.1.0."""


def _as_it_is(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return record


@dataclass(frozen=True)
class Step:
    """The way from one schema version to the next, as pure functions.

    Attributes:
        rows: The rows of a part-file under the next version, from the table's name and the rows.
        record: The content of `sweep.json` under the next version. Default: it is the same.
    """

    rows: Callable[[str, pa.Table], pa.Table]
    record: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _as_it_is


STEPS: tuple[Step, ...] = ()
"""From version 1 to 2, from 2 to 3, and so on."""


def present() -> int:
    """The schema version that this raysat writes."""
    return FIRST + len(STEPS)


def is_read(version: object) -> TypeGuard[int]:
    """Return whether this raysat reads what was stored under a schema version."""
    return isinstance(version, int) and FIRST <= version <= present()


def version_of(part: pa.Table) -> int:
    """The schema version of a part-file's rows; of a file that says none, the present one.

    Raises:
        ValueError: It says something that is no version.
    """
    return int((part.schema.metadata or {}).get(KEY, present()))


def rows_brought_up(table: str, part: pa.Table) -> pa.Table:
    """The rows of a part-file under the present schema.

    Args:
        table: The table.
        part: The rows as they are stored.

    Raises:
        InputError: They are of a later version.
        ValueError: They are of no version.
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
    """The content of `sweep.json` under the present schema; of a version that is not read, as it is stored."""
    if not is_read(version := record.get("schema")):
        return dict(record)
    for step in STEPS[version - FIRST :]:
        record = step.record(record)
    return {**record, "schema": present()}
