"""Reading the driver's record of what runs (`status.json`): complete, and of the types that readers need."""

from __future__ import annotations

from datetime import datetime
from typing import Any

_REAL = int | float
_OF_DRIVER = {
    **{"hostname": (str, "?"), "pid": (int, 0), "stage": (str, "trials"), "cluster": (str, ""), "grows": (bool, False)},
    **{"total": (int, 0), "ended": (int, 0), "failed": (int, 0), "diverged": (int, 0)},
    **{"seconds_left": (_REAL | None, None), "running": (list, ()), "done": (list, ())},
}
_OF_JOB = {
    **{"name": (str, "?"), "seconds": (_REAL, 0.0), "iteration": (int | None, None), "iterations": (int, 0)},
    **{"loss": (_REAL | None, None), "unit": (str, "iteration")},
}
"""The type of each field, and its default if it is missing, as in the record of another version of raysat."""


def heard(status: object) -> dict | None:
    """The record with all its fields; None if it is not a record, or a field is of another type.

    Args:
        status: The content of the file.
    """
    if not isinstance(status, dict) or not _is_time(status.get("at")):
        return None
    record = _fields(status, _OF_DRIVER)
    if record is None or not all(isinstance(line, str) for line in record["done"]):
        return None
    running = [_fields(job, _OF_JOB) for job in record["running"]]
    return None if None in running else {**record, "at": status["at"], "running": running}


def _fields(record: object, types: dict) -> dict | None:
    if not isinstance(record, dict):
        return None
    found = {name: record.get(name, default) for name, (_, default) in types.items()}
    wrong = any(name in record and not isinstance(found[name], kind) for name, (kind, _) in types.items())
    return None if wrong else found


def _is_time(text: Any) -> bool:
    """Return whether a text is a time that can be compared with the present one: it has a time zone."""
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except (TypeError, ValueError):
        return False
