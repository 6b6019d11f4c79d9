"""The driver of a sweep: hands jobs to an executor, and writes and shows what comes back."""

from __future__ import annotations

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
from uuid import uuid4

from rich.console import Console
from rich.markup import escape

from raysat.adaptive import Finding
from raysat.agenda import Agenda
from raysat.cells import Cell, Initialization
from raysat.executor import InProcess, OnRay, Outcome
from raysat.initial import compute_statistics
from raysat.job import Job
from raysat.plan import Plan
from raysat.progress import Running, View, trial_line
from raysat.retry import PatientWriter
from raysat.rows import Row
from raysat.schema import FAILED, REFUSED
from raysat.sgd.stacked import MOST
from raysat.store import Store, reached
from raysat.text import duration, last_line
from raysat.trial import failed_row, run_trials

STATISTICS, TRIALS = "statistics at initialization", "trials"
"""The stages of a sweep, as they are shown."""

HEARTBEAT = 10.0
"""Seconds between two records of what runs, for `raysat.status`."""


class Recorder:
    """Writes what comes back from the executor, and shows it.

    Args:
        store: Where it is written, at once or as soon as the storage answers again.
        views: The view of each stage, `STATISTICS` and `TRIALS`. The second is shown from the first trial on.
        agenda: Is told what was found, for what is to be run next.
        size: What there is to run on, as text.
        statistics: Those that are known, by init_id.
        missing: The initializations whose statistics are yet to come, by init_id.
        meanwhile: Called once, when the first trial has started: from then on this process has little to do.
    """

    def __init__(
        self,
        store: Store,
        views: Mapping[str, View],
        agenda: Agenda,
        size: Callable[[], str],
        statistics: Mapping[str, Row],
        missing: Iterable[str],
        meanwhile: Callable[[], object] | None = None,
    ) -> None:
        self.store, self.views, self.agenda, self.size = store, views, agenda, size
        self.shown = ExitStack()
        self.writer = PatientWriter(store.root, self.note)
        self.statistics, self.missing, self.meanwhile = dict(statistics), set(missing), meanwhile
        self.errors: dict[str, str] = {}
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
            self.view.job_started(one.key, one.name, one.cell.iterations if one.cell else 0)

    def told(self, job: Job, iteration: int, losses: Mapping[str, float]) -> None:
        """Show how far the cells of a job are."""
        for key, loss in losses.items():
            self.view.job_told(key, iteration, loss)

    def tick(self) -> None:
        """Write what waits, and record what runs."""
        self.writer.attempt()
        if time.monotonic() - self.beat > HEARTBEAT:
            self.view.tick(self.size())
            self._record()

    def _record(self) -> None:
        self.beat = time.monotonic()
        about = {"at": datetime.now(UTC).isoformat(), "hostname": platform.node(), "pid": os.getpid()}
        about["done"] = list(self.agenda.done)
        with suppress(OSError):  # the writer says when the storage is away
            self.store.write_status({**about, **self.view.record()})

    def ended(self, outcome: Outcome) -> None:
        """Store and show an outcome."""
        if outcome.job.cell is None:
            self._statistics(outcome)
            return
        for k, job in enumerate(outcome.job.trials):
            self._trial(job, (failed_row(job, outcome.error), []) if outcome.error else outcome.value[k], outcome.error)

    def _statistics(self, outcome: Outcome) -> None:
        key, view = outcome.job.key, self.views[STATISTICS]
        self.missing.discard(key)
        if outcome.error:
            self.errors[key] = outcome.error
            view.job_ended(key, f"{outcome.job.name}: [bold red]failed[/]: {escape(last_line(outcome.error))}", FAILED)
            return
        row = outcome.value
        self.statistics[key] = row
        self.writer.do(partial(self.store.write_ntk, row))
        if row["method"] == REFUSED:
            name = f"{row['model']} width {row['width']}, seed {row['seed']}"
            view.job_ended(key, f"{name}: no statistics, for {escape(row['method_reason'])}")
            return
        view.job_ended(
            key,
            f"{row['model']} width {row['width']}, seed {row['seed']}: gamma {row['gamma']:.4g}, k_op "
            f"{row['k_op']:.4g}, b_star {row['b_star']:.3g}, {duration(row['seconds'])}",
        )
        if (reason := row["method_reason"]) and reason not in self.told_of:
            self.told_of.add(reason)
            view.note(f"{row['model']}: {reason}; its statistics come from per-sample Jacobians, which is slower.")

    def _trial(self, job: Job, rows: Sequence, error: str) -> None:
        key, row = job.key, rows[0]
        row["attempts"] = max(row.get("attempts", 0), self.starts[key])  # a lost checkpoint has not counted them
        self.writer.do(partial(self.store.write_trial, *rows))
        if row["status"] == FAILED:
            self.errors[key] = error
        curve = rows[1]
        losses = [point["train_loss"] for point in curve]
        self.agenda.ended(key, Finding.of(row, [point["iteration"] for point in curve], losses))
        self.views[TRIALS].job_ended(key, trial_line(row), row["status"])


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
    """

    def __init__(
        self,
        agenda: Agenda,
        shared: Job,
        inits: Mapping[str, Initialization],
        recorder: Recorder,
        stacks: Callable[[Cell], bool],
        slots: Callable[[], int],
    ) -> None:
        self.agenda, self.shared, self.recorder, self.stacks, self.slots = agenda, shared, recorder, stacks, slots
        self.first = [replace(shared, init=init) for init in sorted(inits.values(), key=lambda init: init.width)]

    @property
    def waiting(self) -> bool:
        """Whether a job that was named has not ended."""
        return bool(self.recorder.missing or self.agenda.running)

    def next(self) -> Job | None:
        """The next job; None where there is none, or none before another has ended."""
        if self.first:
            return self.first.pop()
        while (cell := self.agenda.next(self._settled)) is not None:
            job = self._job(cell)
            if not self._known(cell):
                self.recorder.ended(Outcome(job, error=self.recorder.errors[cell.init.init_id]))
            elif self.stacks(cell):
                return replace(job, mates=tuple(map(self._job, self._mates(cell))))
            else:
                return job
        return None

    def _settled(self, cell: Cell) -> bool:
        """Whether nothing more is to come of a cell's statistics."""
        return cell.init.init_id not in self.recorder.missing

    def _known(self, cell: Cell) -> bool:
        return cell.init.init_id in self.recorder.statistics

    def _mates(self, cell: Cell) -> list[Cell]:
        """The seeds that run with a cell: no more than leaves each process its share of what waits."""
        share = (1 + self.agenda.waiting) // self.slots()
        return self.agenda.seeds_of(cell, min(MOST, share) - 1, self._known) if share > 1 else []

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
) -> int:
    """Run what is missing: first the statistics at initialization, then the trials. Returns how many cells failed.

    With `shares` the storage has the data set's files, for workers without internet. `meanwhile` is called once, when
    the first trial has started.
    """
    with reached(store.root):
        known = store.statistics()
    sweep = laid_out.sweep
    inits = {cell.init.init_id: cell.init for cell in agenda.wanted if cell.init.init_id not in known}
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
    with Recorder(store, views, agenda, executor.size, known, inits, meanwhile) as recorder:
        stacks = partial(laid_out.stacks, gpus=executor.gpus)
        jobs = Jobs(agenda, shared, inits, recorder, stacks, executor.slots)
        _warn_where_unshared(store, executor, recorder.note)
        executor.run(jobs, lambda job: run_trials(job) if job.cell else compute_statistics(job), recorder)
    return sum(key not in inits for key in recorder.errors)


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
