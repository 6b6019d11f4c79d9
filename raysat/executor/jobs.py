"""Jobs, what becomes of them, and the executor that runs them in this process. It knows nothing of Ray."""

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
    """What runs the jobs could not be started, or has died. The message says why, in words without a full stop."""


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: The job.
        value: What its function returned; None where it failed.
        error: The error, with its traceback; empty where there is none.
        died: Whether its process died of it, and not the function raised it.
    """

    job: Job
    value: Any = None
    error: str = ""
    died: bool = False


class JobCallbacks(Protocol):
    """Who is told as jobs start and end."""

    def on_start(self, job: Job) -> None:
        """A job has started, or has been started again."""

    def on_progress(self, job: Job, iteration: int, losses: Mapping[str, float]) -> None:
        """A job that runs has said how far it is, and the losses of its cells, by cell_id."""

    def on_tick(self) -> None:
        """Some time has passed."""

    def on_end(self, outcome: Outcome) -> None:
        """A job has ended."""


class Source(Protocol):
    """Who names the jobs, one at a time.

    Attributes:
        shared: What all jobs have in common; it is sent to every process once.
    """

    shared: Job

    @property
    def waiting(self) -> bool:
        """Whether a job that was named has not ended, so that more may be named then."""
        ...

    def next(self) -> Job | None:
        """The next job; None if none is available now. `waiting` tells blocked from finished."""


def attempt(function: Function, job: Job) -> tuple[object, str]:
    """Return what the function returns, or the error that it raises, as text.

    Also what is no `Exception` is an error of the job alone, such as the `SystemExit` of a user's code that calls
    `sys.exit`; Ctrl-C is none.
    """
    try:
        return function(job), ""
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return None, hidden(traced(error))  # also what this machine alone knows to be a secret


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
        """The hosts that do not see a file of this one: none."""
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
