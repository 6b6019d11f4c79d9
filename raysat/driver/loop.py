"""The driver of a sweep: hands jobs to an executor, and writes and shows what comes back."""

from __future__ import annotations

import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from rich.console import Console

from raysat.driver.adaptive import Finding
from raysat.driver.outdated import Consequences, to_compute
from raysat.driver.plan import Plan
from raysat.driver.progress import Running, View, mishap, trial_line
from raysat.driver.queue import Agenda
from raysat.executor import InProcess, OnRay, Outcome
from raysat.messages.failures import cause
from raysat.ntk.words import WAYS, approximations
from raysat.sgd.stacked import MOST
from raysat.spec.cells import Cell, Initialization
from raysat.storage.retry import PatientWriter
from raysat.storage.rows import Row, known
from raysat.storage.schema import COMPLETED, FAILED, REFUSED
from raysat.storage.store import Store, reached
from raysat.text import duration, number
from raysat.trial.initial import compute_statistics, no_statistics
from raysat.trial.job import Job
from raysat.trial.train import failed_row, run_trials

STATISTICS, TRIALS = "statistics at initialization", "trials"
"""The stages of a sweep, as they are shown."""

HEARTBEAT = 10.0
"""Seconds between two records of what runs, for `raysat.status`."""


class Recorder:
    """Writes what comes back from the executor, and shows it.

    Args:
        store: Where it is written, at once or as soon as the storage answers again.
        views: The view of each stage, `STATISTICS` and `TRIALS`. The second is shown from the first trial on.
        agenda: Receives every result and decides which cells to run next.
        size: Human-readable size of the cluster, such as `2 nodes, 8 CPUs`.
        statistics: Those that are known, by init_id.
        missing: The initializations whose statistics are yet to come, by init_id.
        outdated: Of those, the rows of `ntk` that are stored and not certified, by init_id.
        meanwhile: Called once, when the first trial has started: from then on this process has little to do.
        check: Called now and then; raises what is to end the sweep.
    """

    def __init__(
        self,
        store: Store,
        views: Mapping[str, View],
        agenda: Agenda,
        size: Callable[[], str],
        statistics: Mapping[str, Row],
        missing: Iterable[str],
        outdated: Mapping[str, Row],
        meanwhile: Callable[[], object] | None = None,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self.check = check
        self.store, self.views, self.agenda, self.size = store, views, agenda, size
        self.shown = ExitStack()
        self.writer = PatientWriter(store.root, self.note)
        self.statistics, self.missing, self.meanwhile = dict(statistics), set(missing), meanwhile
        self.outdated, self.agreeing = dict(outdated), 0
        self.trials = store.read("trials") if outdated else None
        self.errors: dict[str, str] = {}
        """Why there is no row of statistics, by init_id."""
        self.failed: list[tuple[str, str]] = []
        """The name of each cell that failed, and its error."""
        self.told_of: set[str] = set()
        self.starts: Counter[str] = Counter()
        self.beat = 0.0

    def __enter__(self) -> Recorder:
        self._show(STATISTICS if self.missing else TRIALS)
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                self.writer.finish()
            else:
                self.writer.abandon()
            self._record()
        finally:
            self.shown.close()

    def _show(self, stage: str) -> None:
        """Show a stage, in place of the one before it."""
        self.shown.close()
        self.view = self.shown.enter_context(self.views[stage])

    def note(self, text: str) -> None:
        """Show something that is not a job."""
        self.view.note(text)

    def started(self, job: Job) -> None:
        """Count how often a job was started: more than once where its process or its node died."""
        if job.cell and self.view is not self.views[TRIALS]:
            self._show(TRIALS)
        if job.cell and self.meanwhile:
            self.meanwhile()
            self.meanwhile = None
        for one in job.trials:
            self.starts[one.key] += 1
            of = (one.cell.iterations, "iteration") if one.cell else (one.init.n, "sample")
            self.view.job_started(one.key, one.name, *of)

    def told(self, job: Job, iteration: int, losses: Mapping[str, float]) -> None:
        """Show how far the cells of a job are."""
        for key, loss in losses.items():
            self.view.job_told(key, iteration, loss)

    def tick(self) -> None:
        """Write what waits, and record what runs."""
        self.check()
        self.writer.attempt()
        if time.monotonic() - self.beat > HEARTBEAT:
            self.view.tick(self.size())
            self._record()

    def _record(self) -> None:
        self.beat = time.monotonic()
        about = {"at": datetime.now(UTC).isoformat(), "hostname": platform.node(), "pid": os.getpid()}
        about["done"] = list(self.agenda.done)
        with suppress(Exception):  # it is shown to a person and no more; the writer says when the storage is away
            self.store.write_status({**about, **self.view.record()})

    def ended(self, outcome: Outcome) -> None:
        """Store and show an outcome."""
        if outcome.job.cell is None:
            self._statistics(outcome)
            return
        for k, job in enumerate(outcome.job.trials):
            self._trial(job, (failed_row(job, outcome.error), []) if outcome.error else outcome.value[k])

    def _statistics(self, outcome: Outcome) -> None:
        """Of an initialization: its row, or why there is none, without which none of its cells can be run."""
        job, view = outcome.job, self.views[STATISTICS]
        self.missing.discard(job.key)
        if outcome.error and not outcome.died:
            self.errors[job.key] = outcome.error
            view.job_ended(job.key, mishap(job.name, FAILED, self._once(outcome.error)), FAILED)
            return
        row = no_statistics(job.sweep, job.init, outcome.error) if outcome.died else outcome.value
        self.statistics[job.key] = row
        if job.key in self.outdated:
            self._renew(job.init, self.outdated.pop(job.key), row)
        self.writer.do(partial(self.store.write_ntk, row))
        name = f"{row['model']} width {row['width']}, seed {row['seed']}"
        if (method := row["method"]) in (REFUSED, FAILED):
            status = FAILED if method == FAILED else COMPLETED
            view.job_ended(job.key, mishap(name, status, self._once(row["method_reason"]), "no statistics"), status)
            return
        view.job_ended(
            job.key,
            f"{name}: gamma {number(row['gamma'], 4)}, k_op {number(row['k_op'], 4)}, b_star {number(row['b_star'])}, "
            f"{duration(row['seconds'])}",
        )
        way = WAYS["jacobian"] + " for this part" if row["method"] == "gram" else WAYS.get(row["method"])
        slower = f"{row['method_reason']}; its statistics come from {way}, which is slower"
        for note in (*[slower] * bool(row["method_reason"]), *approximations(row)):
            if note not in self.told_of:
                self.told_of.add(note)
                view.note(f"{row['model']}: {note}.")

    def _renew(self, init: Initialization, before: Row, row: Row) -> None:
        """Bring the trials of an initialization in line with its new statistics, before these are stored."""
        assert self.trials is not None  # they are read where there is something outdated
        trials = self.trials[self.trials["init_id"] == init.init_id]
        found = Consequences.of(before, row, trials, init.k_tolerance)
        if found.again:
            self.writer.do(partial(self.store.set_aside, found.again))
            self.agenda.forget(found.again)
        if found.rows:
            self.writer.do(partial(self.store.update, found.rows))
        if found.line:
            runs = f": {len(found.again)} cells whose stepsize was made of them run again, and their rows are set aside"
            self.view.note(f"{found.line}{runs * bool(found.again)}.")
        self.agreeing += not found.line
        if self.agreeing and not self.outdated:
            self.view.note(
                f"Statistics of {self.agreeing} initializations, stored without certificates, were computed again and "
                "agree: their cells stay."
            )

    def _once(self, error: str) -> str:
        """What an error says, the first time."""
        if (said := cause(error)) in self.told_of:
            return "the same as before"
        self.told_of.add(said)
        return said

    def _trial(self, job: Job, rows: Sequence) -> None:
        key, row = job.key, rows[0]
        row["attempts"] = max(row.get("attempts", 0), self.starts[key])  # a lost checkpoint has not counted them
        self.writer.do(partial(self.store.write_trial, *rows), lambda error: self._unstorable(job, error))
        shown = row
        if row["status"] == FAILED:
            self.failed.append((job.name, row["error"]))
            shown = {**row, "error": self._once(row["error"])}
        curve = rows[1]
        losses = [point["train_loss"] for point in curve]
        self.agenda.ended(key, Finding.of(row, [point["iteration"] for point in curve], losses))
        self.views[TRIALS].job_ended(key, trial_line(shown), row["status"])

    def _unstorable(self, job: Job, error: str) -> Callable[[], object]:
        """Of a cell whose rows no table can hold: the write of a failed row, which says why."""
        self.failed.append((job.name, error))
        self.note(f"{job.name}: its result cannot be stored: {cause(error)}")
        return partial(self.store.write_trial, failed_row(job, error), [])


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
        """Whether nothing more is to come of a cell's statistics."""
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
        return replace(self.shared, init=cell.init, cell=cell, statistics=statistics, engine=engine)


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
) -> list[tuple[str, str]]:
    """Run what is missing: first the statistics at initialization, then the trials.

    With `shares` the storage has the data set's files, for workers without internet. `meanwhile` is called once, when
    the first trial has started, and `check` now and then, to raise what is to end the sweep.

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
    with Recorder(store, views, agenda, executor.size, statistics, inits, outdated, meanwhile, check) as recorder:
        stacks = partial(laid_out.stacks, gpus=executor.gpus)
        auto = any(stepsize.policy == "grid_auto" for stepsize in sweep.stepsizes)
        jobs = Jobs(agenda, shared, inits, recorder, stacks, executor.slots, grows=auto)
        _warn_where_unshared(store, executor, recorder.note)
        executor.run(jobs, lambda job: run_trials(job) if job.cell else compute_statistics(job), recorder)
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
