"""What raysat touches of Ray that is not public, in one place; nothing of it is needed for a sweep to be right.

Each part is a fast path, or sees sooner what Ray itself says later. Where Ray has changed under it, it switches itself
off with a line in the log, and `RAYSAT_PLAIN_RAY=1` in the environment switches all of them off. What they are worth
with Ray 2.60.0 on two cores:

- `quick_start`: a cluster of this machine is there 1.5 s earlier.
- `forget_ended`: the driver keeps 60 KB less for each cell, and does not look through all that have ended at each step.
- `processes`: a Ray that has died is noticed at once, where its core ends the driver after 14 to 60 s without a word.
- `kill_processes`: the end of a Ray that has died is not waited for.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

SWITCH = "RAYSAT_PLAIN_RAY"

NODE_SECONDS = 30.0
"""How long a new cluster may take to have its node. Default: 30, as Ray's `raylet_start_wait_time_s`."""

CHANGED = (AttributeError, ImportError, KeyError, IndexError, TypeError, ValueError)
"""What Python raises where a part is not what it was."""

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_off: set[str] = set()
"""The fast paths that have switched themselves off."""


def is_on(name: str) -> bool:
    """Return whether a fast path is taken."""
    return os.environ.get(SWITCH, "") in ("", "0") and name not in _off


def switch_off(name: str, error: Exception) -> None:
    """Take a fast path no more in this process."""
    _off.add(name)
    log.warning("Ray is not as raysat knows it (%s: %s): %s is off.", type(error).__name__, error, name)


def fast_path(otherwise: Any) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Have a function return something else where it is off, or as it finds Ray changed."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            if not is_on(function.__name__):
                return otherwise
            try:
                return function(*args, **kwargs)
            except CHANGED as error:
                switch_off(function.__name__, error)
                return otherwise

        return guarded

    return decorate


@contextmanager
def quick_start() -> Iterator[None]:
    """Patch the start of Ray on one machine: skip the autoscaler, the dashboard's server and the log monitor.

    Ray polls for the new node at once and then each second, where half of that is enough; here it looks when the node
    is there.
    """
    with ExitStack() as stack:
        if is_on("quick_start"):
            try:
                _patch(stack)
            except CHANGED as error:
                stack.close()  # what is patched so far
                switch_off("quick_start", error)
        yield


def _patch(stack: ExitStack) -> None:
    from ray._private import services
    from ray._private.node import Node

    found = services.get_node

    def get_node(gcs_address: str, node_id: str) -> dict:
        _await_node(gcs_address)
        return found(gcs_address, node_id)

    for name in ("start_monitor", "start_api_server", "start_log_monitor"):
        _replace(stack, Node, name, _nothing)
    _replace(stack, services, "get_node", get_node)


def _nothing(*_: object, **__: object) -> None:
    pass


def _replace(stack: ExitStack, owner: object, name: str, value: object) -> None:
    """Set an attribute that is there, until the stack closes."""
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


@fast_path(otherwise=None)
def _await_node(gcs_address: str) -> None:
    """Return when the cluster has a node, or so late that there is something wrong, of which Ray is to speak."""
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]  # compiled, its stub has no such

    client, begun = GcsClient(address=gcs_address), time.monotonic()
    while not client.get_all_node_info() and time.monotonic() - begun < NODE_SECONDS:
        time.sleep(0.01)


@fast_path(otherwise=({}, ""))
def processes() -> tuple[dict[str, int], str]:
    """The ids of the Ray processes that this driver has started, by name; else the address of the cluster's GCS."""
    from ray._private import worker

    started = getattr(worker._global_node, "all_processes", {})  # empty where somebody else has started them
    named = {"raylet": "raylet", "GCS": "gcs_server"}
    ids = {name: started[kind][0].process.pid for name, kind in named.items() if started.get(kind)}
    return ids, "" if ids else getattr(worker._global_node, "gcs_address", "")


@fast_path(otherwise=None)
def kill_processes() -> None:
    """End what is left of a Ray that has died."""
    from ray._private import worker

    node: Any = worker._global_node
    node.kill_all_processes(check_alive=False)


@fast_path(otherwise=None)
def forget_ended(controller: Any) -> None:
    """Take the trials that have ended out of what Tune's controller keeps of each, and looks through at each step.

    It keeps them for the experiment's end, where nobody asks for them; and the first task of each process that was
    asked for and, as another one became free, not started.
    """
    manager = controller._actor_manager
    waiting, pending = manager._pending_actors_to_enqueued_actor_tasks, manager._pending_actors_to_attrs
    keeps = controller._stopped_trials, controller._trials_to_cache, controller._trials, controller._trial_metadata
    stopped, cached, trials, metadata = keeps  # all of them are there before one is changed
    for trial in stopped - set(controller._trial_to_actor):  # one that failed may be tried again
        stopped.remove(trial)
        cached.discard(trial)
        trials.remove(trial)
        metadata.pop(trial.trial_id, None)
    for actor in set(waiting) - set(pending):
        del waiting[actor]
