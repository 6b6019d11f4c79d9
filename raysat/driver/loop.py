"""The main loop of a sweep: passes jobs to an executor, and writes and shows their results."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from rich.console import Console

from raysat.driver.outdated import to_compute
from raysat.driver.plan import Plan
from raysat.driver.progress import Running, View
from raysat.driver.queue import CellQueue
from raysat.driver.recorder import STATISTICS, TRIALS, Recorder
from raysat.executor import InProcess, OnRay, Outcome
from raysat.sgd.stacked import MOST
from raysat.spec.cells import Cell, Initialization
from raysat.storage.rows import Row, none_if_nan
from raysat.storage.store import Store, storage_errors
from raysat.text import number
from raysat.trial.initial import compute_statistics
from raysat.trial.job import Job
from raysat.trial.train import run_trials


class Jobs:
    """The jobs of a sweep, for an executor: first the statistics that the queue's cells need, the widest network first.

    A cell may run once the statistics of its own initialization exist: no process waits for those of another.

    Args:
        queue: The cells to run.
        shared: The fields that all jobs have in common.
        inits: The initializations without statistics, by init_id.
        recorder: Holds the statistics, and records the cells that cannot run without them.
        stacks: Whether a cell is trained by the stacked engine, together with other seeds.
        slots: How many jobs run at a time.
        grows: Whether multiples of 1/beta(b) come from `grid(auto=True)`, which needs no statistics.
    """

    def __init__(
        self,
        queue: CellQueue,
        shared: Job,
        inits: Mapping[str, Initialization],
        recorder: Recorder,
        stacks: Callable[[Cell], bool],
        slots: Callable[[], int],
        *,
        grows: bool = False,
    ) -> None:
        self.queue, self.shared, self.recorder, self.stacks, self.slots = queue, shared, recorder, stacks, slots
        self.grows = grows
        self.first = [replace(shared, init=init) for init in sorted(inits.values(), key=lambda init: init.width)]

    @property
    def waiting(self) -> bool:
        """Whether a job that was provided has not ended."""
        return bool(self.recorder.missing or self.queue.running)

    def next(self) -> Job | None:
        """Return the next job, or None if none is available now; `waiting` then distinguishes blocked from finished."""
        if self.first:
            return self.first.pop()
        while (cell := self.queue.next(self._settled)) is not None:
            job = self._job(cell)
            if error := self._lacking(cell):
                self.recorder.on_end(Outcome(job, error=error))
            elif self.stacks(cell):
                return replace(job, stacked_with=tuple(map(self._job, self._stacked_with(cell))))
            else:
                return job
        return None

    def _settled(self, cell: Cell) -> bool:
        """Return whether a cell's statistics exist or have failed."""
        return cell.init.init_id not in self.recorder.missing

    def _lacking(self, cell: Cell) -> str:
        """Return why a cell cannot be run; empty if it can."""
        row = self.recorder.statistics.get(cell.init.init_id)
        if row is None:
            return self.recorder.errors[cell.init.init_id]
        if not cell.stepsize.needs_statistics or all(0 < _number(row[name]) < math.inf for name in ("gamma", "k_op")):
            return ""
        why = f"there are no statistics ({row['method_reason']})"
        if none_if_nan(row["gamma"]) is not None:
            found = f"gamma {number(row['gamma'])} and k_op {number(row['k_op'])}"
            why = f"these are no numbers to divide by ({found}: do the outputs depend on the weights?)"
        if not (self.grows and cell.stepsize.policy == "grid_relative"):
            return f"{cell.stepsize.name} is made of gamma and k_op, and {why}: use fixed() or a grid without relative"
        if none_if_nan(row.get("base_stepsize")) is None:
            return f"grid(auto=True) has nothing to start from, for {why} and no base stepsize: use grid([...])"
        return ""

    def _can_run(self, cell: Cell) -> bool:
        return self._settled(cell) and not self._lacking(cell)

    def _stacked_with(self, cell: Cell) -> list[Cell]:
        """Return the seeds that run with a cell: so few that each process keeps its share of the waiting cells."""
        share = (1 + self.queue.waiting) // self.slots()
        return self.queue.seeds_of(cell, min(MOST, share) - 1, self._can_run) if share > 1 else []

    def _job(self, cell: Cell) -> Job:
        engine = "stacked" if self.stacks(cell) else self.shared.engine
        statistics = self.recorder.statistics.get(cell.init.init_id, {})
        limits = self.queue.limits(cell)
        return replace(self.shared, init=cell.init, cell=cell, statistics=statistics, engine=engine, limits=limits)


def run(
    laid_out: Plan,
    queue: CellQueue,
    store: Store,
    executor: InProcess | OnRay,
    console: Console,
    quiet: bool = False,
    *,
    shares: bool = False,
    on_first_trial: Callable[[], object] | None = None,
    check: Callable[[], object] = lambda: None,
    deadline: float = math.inf,
) -> list[tuple[str, str]]:
    """Run what is missing: first the statistics at initialization, then the trials.

    With `shares` the storage has the data set's files, for workers without internet. `on_first_trial` is called once,
    when the first trial has started, and `check` now and then, to raise what is to end the sweep. At the `deadline`, on
    the clock of `time.monotonic`, what runs is stopped.

    Returns:
        The name of each cell that failed, and its error.
    """
    statistics, outdated = stored_statistics(store, queue)
    sweep = laid_out.sweep
    inits = {cell.init.init_id: cell.init for cell in queue.requested if cell.init.init_id not in statistics}
    shared = Job(
        sweep=sweep.name,
        init=laid_out.cells[0].init,
        sources=laid_out.sources,
        checkpoints=store.checkpoints,
        checkpoint_seconds=sweep.checkpoint_seconds,
        threads=sweep.cpus_per_trial,
        engine=sweep.engine,
        data=store.data if shares else None,
        ranks=sweep.ranks_per_trial,
        budget=sweep.budget,
    )
    weights = {key: float(max(init.width, 1)) ** 2 for key, init in inits.items()}
    running: dict[str, Running] = {}
    views = {
        STATISTICS: View(console, STATISTICS, weights, running, quiet=quiet),
        TRIALS: View(console, TRIALS, queue.weights, running, grows=sweep.grows, quiet=quiet),
    }

    def check_time() -> None:
        check()
        if time.monotonic() > deadline:
            raise KeyboardInterrupt  # which user code does not catch as an error of its own

    with Recorder(
        store, views, queue, executor.size, statistics, inits, outdated, on_first_trial, check_time, sweep.metric
    ) as recorder:
        stacks = partial(laid_out.stacks, gpus=executor.gpus)
        auto = any(stepsize.policy == "grid_auto" for stepsize in sweep.stepsizes)
        jobs = Jobs(queue, shared, inits, recorder, stacks, executor.slots, grows=auto)
        _warn_where_unshared(store, executor, recorder.note)
        store.parts.let_go()
        try:
            executor.run(jobs, lambda job: run_trials(job) if job.cell else compute_statistics(job), recorder)
        except KeyboardInterrupt:
            check()
            if time.monotonic() <= deadline:
                raise
    return recorder.failed


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def stored_statistics(store: Store, queue: CellQueue) -> tuple[dict[str, Row], dict[str, Row]]:
    """Return the valid rows of `ntk` at initialization, and those to be computed again, by init_id."""
    with storage_errors(store.root):
        stored = store.statistics()
    outdated = to_compute(stored, queue.requested, queue.results)
    return {key: row for key, row in stored.items() if key not in outdated}, outdated


def _warn_where_unshared(store: Store, executor: InProcess | OnRay, say: Callable[[str], None]) -> None:
    """Print the nodes that do not see the driver's checkpoints. The sweep goes on: results need no shared folder."""
    folder = store.checkpoints
    if not isinstance(folder, Path):
        return
    probe = folder / f".probe-{uuid4().hex}"
    probe.touch()
    try:
        hosts = executor.hosts_without(probe)
    finally:
        probe.unlink()
    if hosts:
        say(
            f"{folder} is not shared with {', '.join(hosts)}: results arrive all the same, but a trial whose node is "
            "lost starts over; give --results a folder that all nodes share, or an address such as s3://bucket/path."
        )
