"""Jobs as trials of Ray Tune, which schedules them and decides nothing else. Imported only where Ray runs."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from raysat.executor import private
from raysat.executor.barrier import StartupBarrier
from raysat.executor.bookkeeping import RETRIES, Bookkeeping
from raysat.executor.jobs import Function, JobCallbacks, Source, attempt
from raysat.saturation.recursion import MEASURES
from raysat.spec.cells import Cell, Initialization
from raysat.spec.race import Limits
from raysat.text import plain
from raysat.trial.job import Job
from raysat.user_code import process

PART = 1 << 16
"""Bytes of an outcome that a trial reports at a time. Default: 64 KiB. Objects above 100 KB (Ray's
`max_direct_call_object_size`) pass through the object store, and Ray's core ends a driver that reads from the store of
a dead raylet."""


def run_on_tune(
    source: Source,
    function: Function,
    callbacks: JobCallbacks,
    storage: Path,
    cpus: int,
    gpus: Callable[[Job], float],
    *,
    local: bool,
) -> None:
    """Run all jobs on the cluster that this process has joined.

    A Tune `Searcher` asks the source for the next one. On a cluster that may grow, Tune keeps as many trials pending as
    with its own grid search, so that the autoscaler sees the demand; on one machine, two for each worker, so that a
    worker never waits for its next trial.

    Args:
        source: Provides the jobs.
        function: Runs a job.
        callbacks: Called as jobs start, advance and end.
        storage: Folder for what Tune itself writes.
        cpus: CPUs of a job.
        gpus: The GPUs of a job.
        local: Whether the cluster is this machine alone.
    """
    shutil.rmtree(storage, ignore_errors=True)
    storage.mkdir(parents=True)
    cores = ray.cluster_resources().get("CPU", 1)
    slots = max(1, int(cores / cpus)) if local else 1
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(2 * slots if local else max(200, int(1.1 * cores)))
    book = Bookkeeping(source, callbacks)
    barrier = StartupBarrier(storage / "up") if local else None

    def resources(config: dict) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([{"CPU": cpus, "GPU": config["job"].gpus}])

    tuner = tune.Tuner(
        tune.with_resources(_trainable(function, source.shared, barrier), resources),
        tune_config=tune.TuneConfig(
            search_alg=_Searcher(book, gpus, barrier, slots),
            scheduler=_Scheduler(),
            num_samples=-1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(storage),
            callbacks=[_Callbacks(book)],
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        book.hand_on_all()


def _trainable(function: Function, shared: Job, barrier: StartupBarrier | None) -> Callable[[dict], None]:
    """Return the function that a worker runs for each trial."""

    def report(iteration: int, losses: dict[str, float]) -> None:
        tune.report({"told": (iteration, losses)})

    def trainable(config: dict) -> None:
        if process.for_good():  # the settings cannot be undone, so that the next job needs a new process
            tune.report({"leaves": True})
            os._exit(0)
        outcome = cloudpickle.dumps(attempt(function, replace(config["job"].job(shared), on_progress=report)))
        if barrier:
            barrier.wait()
        for begin in range(0, len(outcome), PART):
            end = begin + PART
            tune.report({"outcome": (begin, outcome[begin:end]), "done": end >= len(outcome)})

    return trainable


@dataclass(frozen=True)
class _JobRef:
    """A job as an opaque value for Tune, which inspects dictionaries and names folders after their content.

    Attributes:
        key: The job's key.
        init: Its initialization.
        cell: Its cell, if it has one.
        engine: The engine of its steps.
        gpus: The job's GPUs.
        limits: The trial's limits.
        statistics: What a trial needs of its row of statistics: all columns but lists, except the spectral measures,
            for `eta_limit`; some KB. Not a reference to Ray's object store (see `PART`).
        stacked_with: The jobs that run with it in one computation.
    """

    key: str
    init: Initialization
    cell: Cell | None
    engine: str
    gpus: float
    limits: Limits
    statistics: Mapping[str, Any]
    stacked_with: tuple[_JobRef, ...]

    def __repr__(self) -> str:
        return self.key

    def job(self, shared: Job) -> Job:
        """Restore the job, in a worker."""
        parts = {name: getattr(self, name) for name in ("init", "cell", "engine", "gpus", "limits", "statistics")}
        return replace(shared, **parts, stacked_with=tuple(mate.job(shared) for mate in self.stacked_with))


class _Searcher(Searcher):
    """Asks for the next job, and wraps it as a value of Tune's."""

    def __init__(
        self, book: Bookkeeping, gpus: Callable[[Job], float], barrier: StartupBarrier | None, slots: int
    ) -> None:
        super().__init__()
        self.book, self.gpus, self.barrier, self.slots = book, gpus, barrier, slots
        self.rows: dict[str, Mapping[str, Any]] = {}  # the statistics that trials need, by init_id

    def __reduce__(self) -> tuple:  # Tune pickles searchers for a restore that never comes
        return Searcher, ()

    def suggest(self, trial_id: str) -> dict | str | None:
        job = self.book.next()
        if job is None:
            return None if self.book.source.waiting else Searcher.FINISHED
        if self.barrier:
            self.barrier.expect(min(self.slots, len(self.book.running)))
        return {"job": self._ref(job)}

    def _ref(self, job: Job) -> _JobRef:
        key = job.init.init_id
        if job.statistics and key not in self.rows:
            row = job.statistics.items()
            self.rows[key] = {name: value for name, value in row if name in MEASURES or not isinstance(value, list)}
        parts = job.key, job.init, job.cell, job.engine, self.gpus(job), job.limits, self.rows.get(key, {})
        return _JobRef(*parts, tuple(map(self._ref, job.stacked_with)))

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        pass


class _Callbacks(TrialProgressCallback):
    """Moves outcomes from Tune's trials into the bookkeeping; replaces Tune's own progress report."""

    def __init__(self, book: Bookkeeping) -> None:
        super().__init__()
        self.book = book
        self.parts: dict[str, bytes] = {}  # the parts of outcomes that have arrived, by job

    def __reduce__(self) -> tuple:
        return TrialProgressCallback, ()

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **_: object) -> None:
        self.book.start(_key(trial))

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **_: object) -> None:
        if "outcome" in result:
            self._take(_key(trial), *result.pop("outcome"), done=result["done"])
        elif "leaves" in result:
            self.book.leave(_key(trial))
        elif "told" in result:
            self.book.report(_key(trial), *result["told"])

    def _take(self, key: str, begin: int, part: bytes, *, done: bool) -> None:
        """Take one part of an outcome; a job that was retried sends all parts again."""
        outcome = self.parts.pop(key, b"")[:begin] + part
        if done:
            self.book.end(key, *cloudpickle.loads(outcome))
        else:
            self.parts[key] = outcome

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **_: object) -> None:
        if not self.book.counts(_key(trial), lost_node=_lost_its_node(trial)) or _told_twice(trial):
            trial.max_failures += 1

    def on_step_end(self, iteration: int, trials: list, **_: object) -> None:
        self.book.hand_on()
        self.book.callbacks.on_tick()

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **_: object) -> None:
        pass

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **_: object) -> None:
        tries_left = trial.num_failures - _told_twice(trial) <= trial.max_failures
        self.book.give_up(_key(trial), plain(_error_of(trial)), tries_left=tries_left)


class _Scheduler(FIFOScheduler):
    """Runs trials in order, and makes Tune forget ended ones."""

    def on_trial_complete(self, tune_controller: object, trial: object, result: dict) -> None:
        private.forget_ended(tune_controller)


def _key(trial: Any) -> str:
    """Return the key of a trial's job."""
    return repr(trial.config["job"])


def _error_of(trial: Any) -> str:
    """Return Tune's record of a trial's failures; empty if there is none that can be read."""
    try:
        return Path(trial.error_file).read_text(errors="backslashreplace")
    except (OSError, TypeError):
        return ""


def _failures(trial: object) -> list[str]:
    """Return Tune's record of each of a trial's failures, the latest last."""
    return _error_of(trial).split("Failure # ")[1:]


def _lost_its_node(trial: Any) -> bool:
    """Return whether a trial's last failure was its node's: Tune may try it in several processes of a lost node."""
    last = "".join(_failures(trial)[-1:])
    return any(words in last for words in ("node was terminated", "node has died", "node died"))


def _told_twice(trial: Any) -> bool:
    """Return whether the last two failures are one: Tune may give a trial again to a process that has just died."""
    *_, before, last = "", "", *(re.findall(r"actor_id: (\w+)", failure) for failure in _failures(trial))
    return bool(last) and last == before
