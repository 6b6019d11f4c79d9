"""The state of the executor on Ray Tune: running jobs, their progress, and outcomes not yet passed on.

It does not depend on Ray; Tune's searcher and callbacks (`raysat.executor.tune`) use it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from raysat.executor.jobs import JobCallbacks, Outcome, Source
from raysat.trial.job import Job

RETRIES = 3
"""How often a job whose process or node died is retried without progress since the last death. Default: 3; a cell that
kills its process each time ends as failed, while one that advances between losses of spot machines goes on."""


class Bookkeeping:
    """The jobs between the source that provides them and the callbacks that receive their outcomes.

    Args:
        source: Provides the jobs.
        callbacks: Called as jobs start, advance and end.

    Attributes:
        running: The running jobs, by key, so that what Tune keeps of a trial stays small.
        outcomes: The outcomes of ended jobs that have not been passed to the callbacks.
    """

    def __init__(self, source: Source, callbacks: JobCallbacks) -> None:
        self.source, self.callbacks = source, callbacks
        self.running: dict[str, Job] = {}
        self.outcomes: list[Outcome] = []
        self._due = 0  # how many outcomes are passed on at the next step
        self._progress: dict[str, tuple[int, int]] = {}  # iterations at the last death of a job's process, and now
        self._again: list[Job] = []  # to be given to Tune again
        self._given: Counter[str] = Counter()  # how often a job was given again
        self._leaving: set[str] = set()  # jobs given to a process that ends without running them

    def next(self) -> Job | None:
        """Return the next job; None if none is available now."""
        job = self._again.pop() if self._again else self.source.next()
        while job is None and self.outcomes:  # the next job may depend on them, and Tune may be waiting for it
            self.hand_on()
            job = self.source.next()
        if job is not None:
            self.running[job.key] = job
        return job

    def start(self, key: str) -> None:
        """Note that a process was given a job, unless that process ends: the job then starts in another."""
        if key in self._leaving:
            self._leaving.discard(key)
        elif job := self.running.get(key):
            self.callbacks.on_start(job)

    def leave(self, key: str) -> None:
        """Note that the process that was given a job ends without having started it."""
        self._leaving.add(key)

    def report(self, key: str, iteration: int, losses: Mapping[str, float]) -> None:
        """Pass on the progress of a job, and the losses of its cells, by cell_id."""
        if job := self.running.get(key):
            self._progress[key] = self._progress.get(key, (0, 0))[0], iteration
            self.callbacks.on_progress(job, iteration, losses)

    def end(self, key: str, value: object = None, error: str = "", *, died: bool = False) -> None:
        """Note that a job ended. If its node is lost just after its outcome arrived, Tune reruns it; it counts once."""
        if job := self.running.pop(key, None):
            self._progress.pop(key, None)
            self.outcomes.append(Outcome(job, value, error, died))

    def counts(self, key: str, *, lost_node: bool) -> bool:
        """Return whether a death counts among `RETRIES`: not if the job advanced since the last or did not cause it."""
        before, now = self._progress.get(key, (0, 0))
        if now > before or key in self._leaving or lost_node:
            self._progress[key] = now, now
            return False
        return True

    def give_up(self, key: str, error: str, *, tries_left: bool) -> None:
        """Handle a job that Tune gave up. It does so at once if a process is lost before its start: retry that one."""
        if tries_left and key in self.running and self._given[key] < RETRIES:
            self._given[key] += 1
            self._again.append(self.running.pop(key))
        else:
            self.end(key, error=error or "the trial's process died", died=True)

    def hand_on(self) -> None:
        """Pass the outcomes that were there at the last step to the callbacks.

        One step late, so that writing them overlaps with the next trial of the process that became free.
        """
        for _ in range(self._due):
            self.callbacks.on_end(self.outcomes.pop(0))
        self._due = len(self.outcomes)

    def hand_on_all(self) -> None:
        """Pass all outcomes to the callbacks."""
        while self.outcomes:
            self.hand_on()
