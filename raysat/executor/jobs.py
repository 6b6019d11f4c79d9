"""Outcomes of jobs, the interfaces of executors, and the executor in this process. No dependency on Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from raysat.messages.credentials import hidden
from raysat.messages.failures import traced
from raysat.trial.job import Job

Function = Callable[[Job], object]


class ExecutorDied(RuntimeError):
    """The executor could not be started, or died. The message says why, without a full stop at its end."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job.

    Attributes:
        job: The job.
        value: The value of its function; None if it failed.
        error: The error, with its traceback; empty if there is none.
        died: Whether the process died, instead of the function raising an error.
    """

    job: Job
    value: Any = None
    error: str = ""
    died: bool = False


class JobCallbacks(Protocol):
    """Callbacks of an executor, called as jobs start, advance and end."""

    def on_start(self, job: Job) -> None:
        """Called when a job starts or is restarted."""

    def on_progress(self, job: Job, iteration: int, losses: Mapping[str, float]) -> None:
        """Called with the iteration of a running job, and the losses of its cells, by cell_id."""

    def on_tick(self) -> None:
        """Called from time to time."""

    def on_end(self, outcome: Outcome) -> None:
        """Called when a job ends."""


class Source(Protocol):
    """Provides jobs, one at a time.

    Attributes:
        shared: The fields that all jobs have in common, as a job; it is sent to every process once.
    """

    shared: Job

    @property
    def waiting(self) -> bool:
        """Whether a job that was provided has not ended, so that more may follow."""
        ...

    def next(self) -> Job | None:
        """Return the next job, or None if none is available now; `waiting` then distinguishes blocked from finished."""


def attempt(function: Function, job: Job) -> tuple[object, str]:
    """Return the value of the function, or the error that it raises, as text.

    Errors that are no `Exception` count as well, such as the `SystemExit` of user code that calls `sys.exit`; Ctrl-C
    does not.
    """
    try:
        return function(job), ""
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return None, hidden(traced(error))  # hidden here, because only this machine knows its secrets


class InProcess:
    """Runs jobs one after the other in this process: for a debugger, a test, or a machine without Ray."""

    where = "in this process"
    gpus = None

    def slots(self) -> int:
        """Return how many jobs run at a time."""
        return 1

    def size(self) -> str:
        """Human-readable size of the cluster, such as `2 nodes, 8 CPUs`; empty in process."""
        return ""

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def hosts_without(self, path: Path) -> list[str]:
        """Return the hosts that do not see a file of this one: none."""
        return []

    def run(self, source: Source, function: Function, callbacks: JobCallbacks) -> None:
        """Run all jobs."""
        for job in iter(source.next, None):
            callbacks.on_start(job)
            callbacks.on_tick()
            on_progress = partial(self._report, callbacks, job)
            callbacks.on_end(Outcome(job, *attempt(function, replace(job, on_progress=on_progress))))

    @staticmethod
    def _report(callbacks: JobCallbacks, job: Job, iteration: int, losses: Mapping[str, float]) -> None:
        callbacks.on_progress(job, iteration, losses)
        callbacks.on_tick()
