"""Which jobs run, how far each is, and what is still to be told of them: what the executor on Ray Tune remembers.

It knows nothing of Ray: Tune's searcher and callbacks (`raysat.executor.tune`) ask it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from raysat.executor.jobs import JobCallbacks, Outcome, Source
from raysat.trial.job import Job

RETRIES = 3
"""How often a job whose process or node died is tried again without having come further than before. Default: 3; a
cell that kills its process each time is to end as failed, one that advances between the losses of spot machines not."""


class Bookkeeping:
    """The jobs between a source that names them and a listener that is told of them.

    Args:
        source: Names the jobs.
        callbacks: Is told of them.

    Attributes:
        running: The jobs that run, by key; what Tune keeps of a trial stays small.
        outcomes: Those of jobs that have ended, which the listener has not been told.
    """

    def __init__(self, source: Source, callbacks: JobCallbacks) -> None:
        self.source, self.callbacks = source, callbacks
        self.running: dict[str, Job] = {}
        self.outcomes: list[Outcome] = []
        self._due = 0  # how many outcomes are handed on at the next step
        self._progress: dict[str, tuple[int, int]] = {}  # iterations at the last death of a job's process, and now
        self._again: list[Job] = []  # to be given to Tune anew
        self._given: Counter[str] = Counter()  # how often a job was given anew
        self._leaving: set[str] = set()  # jobs that were given to a process which runs no more

    def next(self) -> Job | None:
        """The next job; None if none is available now."""
        job = self._again.pop() if self._again else self.source.next()
        while job is None and self.outcomes:  # the next job may depend on them, and Tune may wait for it
            self.hand_on()
            job = self.source.next()
        if job is not None:
            self.running[job.key] = job
        return job

    def start(self, key: str) -> None:
        """A process was given a job. One that leaves has not begun it: the job starts in another."""
        if key in self._leaving:
            self._leaving.discard(key)
        elif job := self.running.get(key):
            self.callbacks.on_start(job)

    def leave(self, key: str) -> None:
        """The process that was given a job ends without having begun it."""
        self._leaving.add(key)

    def report(self, key: str, iteration: int, losses: Mapping[str, float]) -> None:
        """A job has said how far it is, and the losses of its cells, by cell_id."""
        if job := self.running.get(key):
            self._progress[key] = self._progress.get(key, (0, 0))[0], iteration
            self.callbacks.on_progress(job, iteration, losses)

    def end(self, key: str, value: object = None, error: str = "", *, died: bool = False) -> None:
        """A job has ended. One whose node is lost just after its outcome came is run again by Tune, and counts once."""
        if job := self.running.pop(key, None):
            self._progress.pop(key, None)
            self.outcomes.append(Outcome(job, value, error, died))

    def counts(self, key: str, *, lost_node: bool) -> bool:
        """Return whether a death counts among `RETRIES`: not where the job has come further, or is not to blame."""
        before, now = self._progress.get(key, (0, 0))
        if now > before or key in self._leaving or lost_node:
            self._progress[key] = now, now
            return False
        return True

    def give_up(self, key: str, error: str, *, tries_left: bool) -> None:
        """Tune has given up a job: at once where its process is lost before it has begun, and then it is given anew."""
        if tries_left and key in self.running and self._given[key] < RETRIES:
            self._given[key] += 1
            self._again.append(self.running.pop(key))
        else:
            self.end(key, error=error or "the trial's process died", died=True)

    def hand_on(self) -> None:
        """Tell the listener of the outcomes that were there at the last step.

        One step late, so that what the listener does with them takes place while the process that became free works.
        """
        for _ in range(self._due):
            self.callbacks.on_end(self.outcomes.pop(0))
        self._due = len(self.outcomes)

    def hand_on_all(self) -> None:
        """Tell the listener of all outcomes."""
        while self.outcomes:
            self.hand_on()
