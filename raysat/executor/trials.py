"""Jobs as trials of Ray Tune, which schedules them and decides nothing else."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from raysat.executor.jobs import Function, Listener, Outcome, Source, attempt
from raysat.spec.cells import Cell, Initialization
from raysat.text import plain
from raysat.trial.job import Job
from raysat.user_code import process

RETRIES = 3
"""How often a job whose process or node died is tried again without having come further than before. Default: 3; a
cell that kills its process each time is to end as failed, one that advances between the losses of spot machines not."""

UP_SECONDS = 10.0
"""How long a process waits in all for the others to be up (see `_Company`)."""


def run_on_tune(
    source: Source,
    function: Function,
    listener: Listener,
    storage: Path,
    cpus: int,
    gpus: Callable[[Job], float],
    *,
    local: bool,
) -> None:
    """Run all jobs on the cluster that this process has joined.

    A Tune `Searcher` asks the source for the next one. On a cluster that may grow Tune keeps as many trials pending as
    with its own grid search, so that an autoscaler sees what is to be done; else as many as a free process needs to
    find its next trial ready.

    Args:
        source: Names the jobs.
        function: Does a job.
        listener: Is told of them.
        storage: Folder for what Tune itself writes.
        cpus: CPUs of a job.
        gpus: The GPUs of a job.
        local: Whether the cluster is this machine alone.
    """
    import ray
    from ray import tune
    from ray.tune.progress_reporter import TrialProgressCallback
    from ray.tune.schedulers import FIFOScheduler
    from ray.tune.search import Searcher

    shutil.rmtree(storage, ignore_errors=True)
    storage.mkdir(parents=True)
    cores = ray.cluster_resources().get("CPU", 1)
    slots = max(1, int(cores / cpus)) if local else 1
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(2 * slots if local else max(200, int(1.1 * cores)))

    jobs: dict[str, Job] = {}  # those that run; what Tune keeps of a trial stays small
    rows: dict[str, ray.ObjectRef] = {}  # statistics, by init_id
    reached: dict[str, tuple[int, int]] = {}  # how far a job was when its process died last, and is now
    again: list[Job] = []  # to be given to Tune anew
    given: Counter[str] = Counter()  # how often a job was given anew
    leaving: set[str] = set()  # jobs that were given to a process which runs no more
    shared, company = source.shared, _Company(storage / "up") if local else None

    def trainable(config: dict) -> None:
        if process.for_good():  # what runs next is to run as anywhere else
            tune.report({"leaves": True})
            os._exit(0)

        def opened(sealed: _Sealed) -> Job:
            row = ray.get(sealed.statistics) if sealed.statistics else {}
            parts = {name: getattr(sealed, name) for name in ("init", "cell", "engine", "gpus")}
            return replace(shared, **parts, statistics=row, mates=tuple(map(opened, sealed.mates)))

        tell = lambda iteration, losses: tune.report({"told": (iteration, losses)})  # noqa: E731
        outcome = attempt(function, replace(opened(config["job"]), tell=tell))
        if company:
            company.wait()
        tune.report({"outcome": outcome, "done": True})

    def resources(config: dict) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([{"CPU": cpus, "GPU": config["job"].gpus}])

    class Suggest(Searcher):
        """Asks the source, which the listener tells of ends."""

        def __reduce__(self) -> tuple:  # Tune pickles searchers for a restore that never comes
            return Searcher, ()

        def suggest(self, trial_id: str) -> dict | str | None:
            job = again.pop() if again else source.next()
            while job is None and tell.outcomes:  # the next job may depend on them, and Tune may wait for it
                tell.hand_on()
                job = source.next()
            if job is None:
                return None if source.waiting else Searcher.FINISHED
            jobs[job.key] = job
            if company:
                company.expect(min(slots, len(jobs)))
            return {"job": self._sealed(job)}

        def _sealed(self, job: Job) -> _Sealed:
            key = job.init.init_id
            if job.statistics and key not in rows:
                rows[key] = ray.put(dict(job.statistics))
            mates = tuple(map(self._sealed, job.mates))
            return _Sealed(job.key, job.init, job.cell, job.engine, gpus(job), rows.get(key), mates)

        def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
            pass

    class Tell(TrialProgressCallback):
        """Takes outcomes out of what Tune keeps and hands them to the listener; stands in for Tune's own report.

        They are handed on a step of Tune's later: what the listener does with them then takes place while the process
        that became free works again. A trial whose node is lost just after its outcome came is run again by Tune; it
        counts once.
        """

        def __init__(self) -> None:
            super().__init__()
            self.outcomes: list[Outcome] = []
            self.due = 0

        def __reduce__(self) -> tuple:
            return TrialProgressCallback, ()

        def _ended(self, trial: object, value: object = None, error: str = "", *, died: bool = False) -> None:
            if job := jobs.pop(repr(trial.config["job"]), None):
                reached.pop(job.key, None)
                self.outcomes.append(Outcome(job, value, error, died))

        def hand_on(self) -> None:
            for _ in range(self.due):
                listener.ended(self.outcomes.pop(0))
            self.due = len(self.outcomes)

        def on_trial_start(self, iteration: int, trials: list, trial: object, **_: object) -> None:
            key = repr(trial.config["job"])
            if key in leaving:  # the process that had it has not begun
                leaving.discard(key)
            elif job := jobs.get(key):
                listener.started(job)

        def on_trial_result(self, iteration: int, trials: list, trial: object, result: dict, **_: object) -> None:
            if "outcome" in result:
                self._ended(trial, *result.pop("outcome"))
            elif "leaves" in result:
                leaving.add(repr(trial.config["job"]))
            elif "told" in result and (job := jobs.get(repr(trial.config["job"]))):
                reached[job.key] = reached.get(job.key, (0, 0))[0], result["told"][0]
                listener.told(job, *result["told"])

        def on_trial_recover(self, iteration: int, trials: list, trial: object, **_: object) -> None:
            before, now = reached.get(key := repr(trial.config["job"]), (0, 0))
            if now > before or key in leaving or _lost_its_node(trial):
                trial.max_failures += 1  # this failure does not count
                reached[key] = now, now

        def on_step_end(self, iteration: int, trials: list, **_: object) -> None:
            self.hand_on()
            listener.tick()

        def on_trial_complete(self, iteration: int, trials: list, trial: object, **_: object) -> None:
            pass

        def on_trial_error(self, iteration: int, trials: list, trial: object, **_: object) -> None:
            key = repr(trial.config["job"])
            if trial.num_failures <= trial.max_failures and key in jobs and given[key] < RETRIES:
                given[key] += 1  # Tune gives up a trial at once whose process is lost before it has begun in it
                again.append(jobs.pop(key))
                return
            self._ended(trial, error=plain(_error_of(trial)) or "the trial's process died", died=True)

    class Forget(FIFOScheduler):
        """Runs trials in their order, and lets Tune forget those that have ended."""

        def on_trial_complete(self, tune_controller: object, trial: object, result: dict) -> None:
            _forget_ended(tune_controller)

    tell = Tell()
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(search_alg=Suggest(), scheduler=Forget(), num_samples=-1, reuse_actors=True),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(storage),
            callbacks=[tell],
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        while tell.outcomes:
            tell.hand_on()


def _error_of(trial: object) -> str:
    """What Tune has written of a trial's failures; empty where there is nothing that can be read."""
    try:
        return Path(trial.error_file).read_text(errors="backslashreplace")
    except (OSError, TypeError):
        return ""


def _forget_ended(controller: object) -> None:
    """Take the trials that have ended out of what Tune's controller keeps of each, and looks through at each step.

    It keeps 60 KB for the experiment's end, where nobody asks for them; and the first task of each process that was
    asked for and, as another one became free, not started.
    """
    for trial in controller._stopped_trials - set(controller._trial_to_actor):  # one that failed may be tried again
        controller._stopped_trials.remove(trial)
        controller._trials_to_cache.discard(trial)
        controller._trials.remove(trial)
        controller._trial_metadata.pop(trial.trial_id, None)
    manager = controller._actor_manager
    for actor in set(manager._pending_actors_to_enqueued_actor_tasks) - set(manager._pending_actors_to_attrs):
        del manager._pending_actors_to_enqueued_actor_tasks[actor]


def _lost_its_node(trial: object) -> bool:
    """Whether a trial's last failure was that of its node: Tune may try it in several processes of one that is gone."""
    last = _error_of(trial).rpartition("Failure # ")[2]
    return any(words in last for words in ("node was terminated", "node has died", "node died"))


@dataclass(frozen=True)
class _Sealed:
    """A job as a value of Tune's, which looks into dictionaries and names folders after what it finds."""

    key: str
    init: Initialization
    cell: Cell | None
    engine: str
    gpus: float
    statistics: object
    mates: tuple[_Sealed, ...]

    def __repr__(self) -> str:
        return self.key


class _Company:
    """Keeps the processes of one machine from ending their trials before all of them are up.

    Tune gives a process that becomes free the next trial even where another process is being started for it, and then
    stops that one: where trials are shorter than the start of a process, all of them would run in the first.

    Args:
        folder: Where each process leaves a mark.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.patience = folder, UP_SECONDS
        folder.mkdir()

    def expect(self, processes: int) -> None:
        """Note how many processes there will be, at least."""
        for number in range(processes):
            (self.folder / f"expected-{number}").touch()

    def wait(self) -> None:
        """Wait until as many processes as are expected have come here, or the patience of this one has gone."""
        (self.folder / f"up-{os.getpid()}").touch()
        begun = time.monotonic()
        while self._missing() and time.monotonic() - begun < self.patience:
            time.sleep(0.01)
        self.patience -= time.monotonic() - begun

    def _missing(self) -> bool:
        marks = [name.partition("-") for name in os.listdir(self.folder)]
        alive = sum(kind == "up" and _runs(int(process)) for kind, _, process in marks)
        return alive < sum(kind == "expected" for kind, *_ in marks)


def _runs(process: int) -> bool:
    """Whether there is a process of this number: Tune stops those for which it has no trial at a time."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
