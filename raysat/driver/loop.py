"""The driver of a sweep: hands jobs to an executor, and writes and shows what comes back."""

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
from raysat.driver.queue import Agenda
from raysat.driver.recorder import STATISTICS, TRIALS, Recorder
from raysat.executor import InProcess, OnRay, Outcome
from raysat.sgd.stacked import MOST
from raysat.spec.cells import Cell, Initialization
from raysat.storage.rows import Row, known
from raysat.storage.store import Store, reached
from raysat.text import number
from raysat.trial.initial import compute_statistics
from raysat.trial.job import Job
from raysat.trial.train import run_trials


class Jobs:
    """The jobs of a sweep, for an executor: first the statistics that the agenda's cells need, the widest ahead.

    A cell may run once the statistics of its own initialization are there: no process waits for those of another.

    Args:
        agenda: What is to be run.
        shared: What all jobs have in common.
        inits: The initializations without statistics, by init_id.
        recorder: Has the statistics, and is told of the cells that cannot be run for lack of them.
        stacks: Whether a cell is trained by the stacked engine, together with its other seeds.
        slots: How many jobs run at a time.
        grows: Whether multiples of 1/beta(b) are those of `grid(auto=True)`, which do without statistics.
    """

    def __init__(
        self,
        agenda: Agenda,
        shared: Job,
        inits: Mapping[str, Initialization],
        recorder: Recorder,
        stacks: Callable[[Cell], bool],
        slots: Callable[[], int],
        *,
        grows: bool = False,
    ) -> None:
        self.agenda, self.shared, self.recorder, self.stacks, self.slots = agenda, shared, recorder, stacks, slots
        self.grows = grows
        self.first = [replace(shared, init=init) for init in sorted(inits.values(), key=lambda init: init.width)]

    @property
    def waiting(self) -> bool:
        """Whether a job that was named has not ended."""
        return bool(self.recorder.missing or self.agenda.running)

    def next(self) -> Job | None:
        """The next job; None if none is available now. `waiting` tells blocked from finished."""
        if self.first:
            return self.first.pop()
        while (cell := self.agenda.next(self._settled)) is not None:
            job = self._job(cell)
            if error := self._lacking(cell):
                self.recorder.ended(Outcome(job, error=error))
            elif self.stacks(cell):
                return replace(job, mates=tuple(map(self._job, self._mates(cell))))
            else:
                return job
        return None

    def _settled(self, cell: Cell) -> bool:
        """Return whether nothing more is to come of a cell's statistics."""
        return cell.init.init_id not in self.recorder.missing

    def _lacking(self, cell: Cell) -> str:
        """Why a cell cannot be run; empty where it can."""
        row = self.recorder.statistics.get(cell.init.init_id)
        if row is None:
            return self.recorder.errors[cell.init.init_id]
        if not cell.stepsize.needs_statistics or all(0 < _number(row[name]) < math.inf for name in ("gamma", "k_op")):
            return ""
        why = f"there are no statistics ({row['method_reason']})"
        if known(row["gamma"]) is not None:
            found = f"gamma {number(row['gamma'])} and k_op {number(row['k_op'])}"
            why = f"these are no numbers to divide by ({found}: do the outputs depend on the weights?)"
        if not (self.grows and cell.stepsize.policy == "grid_relative"):
            return f"{cell.stepsize.name} is made of gamma and k_op, and {why}: use fixed() or a grid without relative"
        if known(row.get("base_stepsize")) is None:
            return f"grid(auto=True) has nothing to start from, for {why} and no base stepsize: use grid([...])"
        return ""

    def _can_run(self, cell: Cell) -> bool:
        return self._settled(cell) and not self._lacking(cell)

    def _mates(self, cell: Cell) -> list[Cell]:
        """The seeds that run with a cell: no more than leaves each process its share of what waits."""
        share = (1 + self.agenda.waiting) // self.slots()
        return self.agenda.seeds_of(cell, min(MOST, share) - 1, self._can_run) if share > 1 else []

    def _job(self, cell: Cell) -> Job:
        engine = "stacked" if self.stacks(cell) else self.shared.engine
        statistics = self.recorder.statistics.get(cell.init.init_id, {})
        limits = self.agenda.limits(cell)
        return replace(self.shared, init=cell.init, cell=cell, statistics=statistics, engine=engine, limits=limits)


def run(
    laid_out: Plan,
    agenda: Agenda,
    store: Store,
    executor: InProcess | OnRay,
    console: Console,
    quiet: bool = False,
    *,
    shares: bool = False,
    meanwhile: Callable[[], object] | None = None,
    check: Callable[[], object] = lambda: None,
    deadline: float = math.inf,
) -> list[tuple[str, str]]:
    """Run what is missing: first the statistics at initialization, then the trials.

    With `shares` the storage has the data set's files, for workers without internet. `meanwhile` is called once, when
    the first trial has started, and `check` now and then, to raise what is to end the sweep. At the `deadline`, on the
    clock of `time.monotonic`, what runs is stopped.

    Returns:
        The name of each cell that failed, and its error.
    """
    statistics, outdated = stored_statistics(store, agenda)
    sweep = laid_out.sweep
    inits = {cell.init.init_id: cell.init for cell in agenda.wanted if cell.init.init_id not in statistics}
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
        TRIALS: View(console, TRIALS, agenda.weights, running, grows=sweep.grows, quiet=quiet),
    }

    def check_time() -> None:
        check()
        if time.monotonic() > deadline:
            raise KeyboardInterrupt  # which no user's code takes for an error of its own

    with Recorder(store, views, agenda, executor.size, statistics, inits, outdated, meanwhile, check_time) as recorder:
        stacks = partial(laid_out.stacks, gpus=executor.gpus)
        auto = any(stepsize.policy == "grid_auto" for stepsize in sweep.stepsizes)
        jobs = Jobs(agenda, shared, inits, recorder, stacks, executor.slots, grows=auto)
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


def stored_statistics(store: Store, agenda: Agenda) -> tuple[dict[str, Row], dict[str, Row]]:
    """The rows of `ntk` at initialization that stand, and those that are to be computed again, by init_id."""
    with reached(store.root):
        stored = store.statistics()
    outdated = to_compute(stored, agenda.wanted, agenda.findings)
    return {key: row for key, row in stored.items() if key not in outdated}, outdated


def _warn_where_unshared(store: Store, executor: InProcess | OnRay, say: Callable[[str], None]) -> None:
    """Name the nodes that do not see the driver's checkpoints. The sweep goes on: results need no shared folder."""
    folder = store.checkpoints
    if not isinstance(folder, Path):
        return
    probe = folder / f".probe-{uuid4().hex}"
    probe.touch()
    try:
        hosts = executor.lacking(probe)
    finally:
        probe.unlink()
    if hosts:
        say(
            f"{folder} is not shared with {', '.join(hosts)}: results arrive all the same, but a trial whose node is "
            "lost starts over; give --results a folder that all nodes share, or an address such as s3://bucket/path."
        )
