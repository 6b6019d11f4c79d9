"""The processes of a sweep under Ray, found by whose children they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def of(victim: str, driver: int) -> list[int]:
    """The ids of processes.

    Args:
        victim: `self`, `driver`, or the name of one of Ray's programs, such as `raylet`.
        driver: The driver's process.
    """
    if victim == "self":
        return [os.getpid()]
    if victim == "driver":
        return [driver]
    return [process for process in descendants(driver) if program(process) == victim]


def descendants(ancestor: int) -> Iterator[int]:
    """The processes that one has started, and theirs."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    found = [ancestor]
    for process in found:
        children = [child for child, parent in parents.items() if parent == process]
        found += children
        yield from children


def program(process: int) -> str:
    """The name of a process's program; empty where it has ended."""
    try:
        return os.path.basename(Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[0].decode())
    except OSError:
        return ""
