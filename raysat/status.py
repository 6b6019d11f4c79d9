"""`python -m raysat.status RESULTS/<sweep>`: how a sweep stands, from its storage alone, from any machine.

The cells that have ended are counted from their rows. What runs is what the driver recorded last, in `status.json`,
every `raysat.driver.recorder.HEARTBEAT` seconds; a driver that was killed is known by its silence.
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
"""Seconds after which a driver that has not been heard of may be dead: six missed records."""

WATCHED = 25.0
"""Seconds in which a driver that lives is heard of again: more than two records."""


def lines(statuses: Mapping[str, int], heard: Mapping | None, now: datetime) -> Iterator[str]:
    """Yield what is known of a sweep.

    Args:
        statuses: How many cells have each status, from their rows.
        heard: What the driver recorded last, if anything.
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
    """Who else runs this sweep, as a sentence that ends in the remedy; empty where nobody does.

    A fresh record may be of a driver that has just been killed, so that it is watched whether a new one comes. No watch
    is needed where this machine has no such process.

    Args:
        store: The sweep's results folder.
        sleep: Waits for some seconds.
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
    except PermissionError:  # another user's
        return False
    return heard["pid"] == os.getpid()


def _silence(heard: Mapping, now: datetime) -> float:
    return (now - datetime.fromisoformat(heard["at"])).total_seconds()


def _name(heard: Mapping) -> str:
    return f"process {heard['pid']} on {heard['hostname']}"


@command
def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 0, or 2 where there is no sweep."""
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
