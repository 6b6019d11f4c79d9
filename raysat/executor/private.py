"""All uses of Ray's private interfaces, in one place. No sweep needs them to be correct.

Each is a fast path, or reports earlier what Ray itself reports later. If Ray has changed, a fast path switches itself
off with a line in the log; `RAYSAT_PLAIN_RAY=1` in the environment switches all of them off. Their gains with Ray
2.60.0 on two cores:

- `quick_start`: a cluster on this machine is ready 1.5 s earlier.
- `forget_ended`: the driver keeps 60 KB less for each cell, and does not scan all ended cells at each step.
- `processes`: the death of Ray is noticed at once; otherwise its core silently ends the driver after 14 to 60 s.
- `kill_processes`: a dead Ray is not waited for.
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
"""The errors that Python raises if a private part of Ray has changed."""

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_off: set[str] = set()
"""The fast paths that have switched themselves off."""


def is_on(name: str) -> bool:
    """Return whether a fast path is taken."""
    return os.environ.get(SWITCH, "") in ("", "0") and name not in _off


def switch_off(name: str, error: Exception) -> None:
    """Switch a fast path off for the rest of this process."""
    _off.add(name)
    log.warning("Ray is not as raysat knows it (%s: %s): %s is off.", type(error).__name__, error, name)


def fast_path(otherwise: Any) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function to return `otherwise` if it is switched off or finds Ray changed."""

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

    Ray polls for the new node at once and then every second, although half a second is enough; here the first poll
    takes place when the node is there.
    """
    with ExitStack() as stack:
        if is_on("quick_start"):
            try:
                _patch(stack)
            except CHANGED as error:
                stack.close()  # undo the patches so far
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
    """Replace an existing attribute until the stack closes."""
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


@fast_path(otherwise=None)
def _await_node(gcs_address: str) -> None:
    """Return when the cluster has a node, or after `NODE_SECONDS`; Ray then reports the error itself."""
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]  # compiled, its stub has no such

    client, begun = GcsClient(address=gcs_address), time.monotonic()
    while not client.get_all_node_info() and time.monotonic() - begun < NODE_SECONDS:
        time.sleep(0.01)


@fast_path(otherwise=({}, ""))
def processes() -> tuple[dict[str, int], str]:
    """Return the ids of the Ray processes that this driver started, by name; else the address of the cluster's GCS."""
    from ray._private import worker

    started = getattr(worker._global_node, "all_processes", {})  # empty if another process started them
    named = {"raylet": "raylet", "GCS": "gcs_server"}
    ids = {name: started[kind][0].process.pid for name, kind in named.items() if started.get(kind)}
    return ids, "" if ids else getattr(worker._global_node, "gcs_address", "")


@fast_path(otherwise=None)
def kill_processes() -> None:
    """End the remaining processes of a Ray that has died."""
    from ray._private import worker

    node: Any = worker._global_node
    node.kill_all_processes(check_alive=False)


@fast_path(otherwise=None)
def forget_ended(controller: Any) -> None:
    """Remove ended trials from the collections that Tune's controller keeps and scans at each step.

    It keeps them for the experiment's end, where they are not used; also the first task of each process that was
    requested but not started, because another one became free.
    """
    manager = controller._actor_manager
    waiting, pending = manager._pending_actors_to_enqueued_actor_tasks, manager._pending_actors_to_attrs
    keeps = controller._stopped_trials, controller._trials_to_cache, controller._trials, controller._trial_metadata
    stopped, cached, trials, metadata = keeps  # unpacked first, so that nothing is changed unless all exist
    for trial in stopped - set(controller._trial_to_actor):  # a failed one may be retried
        stopped.remove(trial)
        cached.discard(trial)
        trials.remove(trial)
        metadata.pop(trial.trial_id, None)
    for actor in set(waiting) - set(pending):
        del waiting[actor]
