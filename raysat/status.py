"""`python -m raysat.status RESULTS/<sweep>`: show the state of a sweep, from its storage alone, on any machine.

Ended cells are counted from their rows. Running ones are those that the driver recorded last, in `status.json`, every
`raysat.driver.recorder.HEARTBEAT` seconds; if the records stop, the driver was killed.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from rich.text import Text

from raysat.driver.progress import SHOWN, running_line, summary_line
from raysat.messages.command import command, program
from raysat.messages.terminal import Terminal
from raysat.storage.schema import BEATEN, DIVERGED, FAILED, FINISHED
from raysat.storage.store import Store
from raysat.text import duration

SILENCE = 60.0
"""Seconds without a record after which a driver may be dead: six missed records."""

WATCHED = 25.0
"""Seconds within which a live driver writes another record: more than two intervals."""


def lines(statuses: Mapping[str, int], heard: Mapping | None, now: datetime) -> Iterator[str]:
    """Yield lines on the state of a sweep.

    Args:
        statuses: How many cells have each status, from their rows.
        heard: The last record of the driver, if any.
        now: The time.
    """
    done = sum(statuses.get(status, 0) for status in FINISHED)
    beaten = f" and {statuses.get(BEATEN)} beaten" * bool(statuses.get(BEATEN))
    yield f"Cells: {done} done, of them {statuses.get(DIVERGED, 0)} diverged{beaten}; {statuses.get(FAILED, 0)} failed."
    if heard is None:
        yield "No driver has left word (there is no readable status.json)."
        return
    silent = _silence(heard, now)
    driver = _name(heard)
    if heard["ended"] == heard["total"]:
        yield f"The driver, {driver}, ended its {heard['stage']} {duration(silent)} ago."
        return
    yield f"The driver, {driver}, was last heard of {duration(silent)} ago:"
    yield summary_line(heard)
    oldest = sorted(heard["running"], key=lambda job: -job["seconds"])
    yield from (f"  {running_line(job)}" for job in oldest[:SHOWN])
    if len(oldest) > SHOWN:
        yield f"  and {len(oldest) - SHOWN} more"
    if silent > SILENCE:
        yield "It has fallen silent: where it is gone, the same command again runs only what is missing."


def other_driver(store: Store, sleep: Callable[[float], None] = time.sleep) -> str:
    """Return who else runs this sweep, as a sentence that ends in the remedy; empty if nobody does.

    A recent record may be of a driver that has just been killed, so that this waits for a new one. No wait is needed if
    the driver was a process of this machine that no longer exists.

    Args:
        store: The sweep's results folder.
        sleep: Function that waits for some seconds.
    """
    heard = store.status()
    if heard is None or heard["ended"] == heard["total"] or _gone(heard):
        return ""
    if _silence(heard, datetime.now(UTC)) > SILENCE:
        return ""
    sleep(WATCHED)
    again = store.status()
    if again is None or again["at"] == heard["at"]:
        return ""
    return f"{store.root}: {_name(again)} runs this sweep: wait for its end or stop it, or use another --results."


def _gone(heard: Mapping) -> bool:
    """Return whether the driver was a process of this machine that has ended, or was this very one."""
    if heard["hostname"] != platform.node():
        return False
    try:
        os.kill(heard["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # the process of another user
        return False
    return heard["pid"] == os.getpid()


def _silence(heard: Mapping, now: datetime) -> float:
    return (now - datetime.fromisoformat(heard["at"])).total_seconds()


def _name(heard: Mapping) -> str:
    return f"process {heard['pid']} on {heard['hostname']}"


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Return the exit code: 0, or 2 if there is no sweep."""
    parser = argparse.ArgumentParser(prog=program("raysat.status"), description="Say how a sweep stands.")
    parser.add_argument("root", metavar="RESULTS/NAME", help="the sweep's results folder, or its address")
    options = parser.parse_args(argv)
    store = Store(options.root)
    store.readable()
    statuses = Counter(store.read("trials", ["cell_id", "status"])["status"])
    console = Terminal()
    for line in lines(statuses, store.status(), datetime.now(UTC)):
        console.print(Text(line), soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
