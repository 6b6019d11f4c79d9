"""Write and show the results that the executor returns."""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import partial

from raysat.driver.outdated import Consequences
from raysat.driver.progress import View, mishap, trial_line
from raysat.driver.queue import CellQueue
from raysat.driver.stepsizes import TrialResult
from raysat.executor import Outcome
from raysat.messages.failures import cause
from raysat.ntk.words import WAYS, approximations
from raysat.spec.cells import Initialization
from raysat.spec.goals import TRAIN_LOSS, along
from raysat.storage.retry import RetryingWriter
from raysat.storage.rows import Row
from raysat.storage.schema import COMPLETED, FAILED, REFUSED
from raysat.storage.store import Store
from raysat.text import duration, number
from raysat.trial.initial import no_statistics
from raysat.trial.job import Job
from raysat.trial.train import failed_row

STATISTICS, TRIALS = "statistics at initialization", "trials"
"""The names of a sweep's stages, as shown."""

HEARTBEAT = 10.0
"""Seconds between two records of the running jobs, for `raysat.status`."""


class Recorder:
    """Writes and shows the results that the executor returns.

    Args:
        store: Where they are written, immediately or as soon as the storage answers again.
        views: The view of each stage, `STATISTICS` and `TRIALS`. The second is shown from the first trial on.
        queue: Receives every result and decides which cells to run next.
        size: Human-readable size of the cluster, such as `2 nodes, 8 CPUs`.
        statistics: The known statistics, by init_id.
        missing: The initializations whose statistics are not known yet, by init_id.
        outdated: The stored rows of `ntk` of these that are not certified, by init_id.
        on_first_trial: Called once, when the first trial has started and this process has little left to do.
        check: Called regularly; an error that it raises ends the sweep.
        metric: The metric by which the queue decides (`raysat.spec.sweep.Sweep.metric`).
    """

    def __init__(
        self,
        store: Store,
        views: Mapping[str, View],
        queue: CellQueue,
        size: Callable[[], str],
        statistics: Mapping[str, Row],
        missing: Iterable[str],
        outdated: Mapping[str, Row],
        on_first_trial: Callable[[], object] | None = None,
        check: Callable[[], object] = lambda: None,
        metric: str = TRAIN_LOSS,
    ) -> None:
        self.check, self.metric = check, metric
        self.store, self.views, self.queue, self.size = store, views, queue, size
        self.shown = ExitStack()
        self.writer = RetryingWriter(store.root, self.note)
        self.statistics, self.missing, self.on_first_trial = dict(statistics), set(missing), on_first_trial
        self.outdated, self.agreeing = dict(outdated), 0
        self.trials = store.read("trials") if outdated else None
        self.errors: dict[str, str] = {}
        """The error that prevented a row of statistics, by init_id."""
        self.failed: list[tuple[str, str]] = []
        """The name of each cell that failed, and its error."""
        self.noted: set[str] = set()
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
                self.writer.close_now()
            self._record()
        finally:
            self.shown.close()

    def _show(self, stage: str) -> None:
        """Show a stage in place of the previous one."""
        self.shown.close()
        self.view = self.shown.enter_context(self.views[stage])

    def note(self, text: str) -> None:
        """Show a message that is not about a job."""
        self.view.note(text)

    def on_start(self, job: Job) -> None:
        """Count the starts of a job: more than one if its process or node died."""
        if job.cell and self.view is not self.views[TRIALS]:
            self._show(TRIALS)
        if job.cell and self.on_first_trial:
            self.on_first_trial()
            self.on_first_trial = None
        for one in job.members:
            self.starts[one.key] += 1
            of = (one.cell.iterations, "iteration") if one.cell else (one.init.n, "sample")
            self.view.job_started(one.key, one.name, *of)

    def on_progress(self, job: Job, iteration: int, losses: Mapping[str, float]) -> None:
        """Show the progress of a job's cells."""
        for key, loss in losses.items():
            self.view.job_told(key, iteration, loss)

    def on_tick(self) -> None:
        """Retry pending writes, and record the running jobs."""
        self.check()
        self.writer.attempt()
        if time.monotonic() - self.beat > HEARTBEAT:
            self.view.tick(self.size())
            self._record()

    def _record(self) -> None:
        self.beat = time.monotonic()
        about = {"at": datetime.now(UTC).isoformat(), "hostname": platform.node(), "pid": os.getpid()}
        about["done"] = list(self.queue.stop_reasons)
        with suppress(Exception):  # for display only; the writer reports when the storage is away
            self.store.write_status({**about, **self.view.record()})

    def on_end(self, outcome: Outcome) -> None:
        """Store and show an outcome."""
        if outcome.job.cell is None:
            self._statistics(outcome)
            return
        for k, job in enumerate(outcome.job.members):
            self._trial(job, (failed_row(job, outcome.error), []) if outcome.error else outcome.value[k])

    def _statistics(self, outcome: Outcome) -> None:
        """Store an initialization's row, or note why there is none: without it none of its cells can run."""
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
            if note not in self.noted:
                self.noted.add(note)
                view.note(f"{row['model']}: {note}.")

    def _renew(self, init: Initialization, before: Row, row: Row) -> None:
        """Update the trials of an initialization to its new statistics, before these are stored."""
        assert self.trials is not None  # read if any statistics are outdated
        trials = self.trials[self.trials["init_id"] == init.init_id]
        found = Consequences.of(before, row, trials, init.k_tolerance)
        if found.again:
            self.writer.do(partial(self.store.set_aside, found.again))
            self.queue.forget(found.again)
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
        """Return the message of an error the first time, a short form later."""
        if (said := cause(error)) in self.noted:
            return "the same as before"
        self.noted.add(said)
        return said

    def _trial(self, job: Job, rows: Sequence) -> None:
        key, row = job.key, rows[0]
        row["attempts"] = max(row.get("attempts", 0), self.starts[key])  # a lost checkpoint would not count them
        self.writer.do(partial(self.store.write_trial, *rows), lambda error: self._unstorable(job, error))
        shown = row
        if row["status"] == FAILED:
            self.failed.append((job.name, row["error"]))
            shown = {**row, "error": self._once(row["error"])}
        curve = rows[1]
        losses = along(self.metric, [point[self.metric] for point in curve])
        self.queue.add_result(key, TrialResult.of(row, [point["iteration"] for point in curve], losses))
        self.views[TRIALS].job_ended(key, trial_line(shown), row["status"])

    def _unstorable(self, job: Job, error: str) -> Callable[[], object]:
        """Return a write of a failed row with the reason, for a cell whose rows no table can hold."""
        self.failed.append((job.name, error))
        self.note(f"{job.name}: its result cannot be stored: {cause(error)}")
        return partial(self.store.write_trial, failed_row(job, error), [])
