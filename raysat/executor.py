"""Where jobs run: in this process, or on a Ray cluster. The only module that imports Ray.

Both executors take plain jobs and a function, and hand each outcome to the caller as it comes. Ray Tune schedules the
trials; it decides nothing about science, keeps no results and resumes nothing: that is the store's part.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from raysat import packing
from raysat.spec import Cell, InputError
from raysat.trial import Job

Function = Callable[[Job], object]

_RAY_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the only output that a callback of our own can replace
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the store keeps the results
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C comes to the driver as an exception
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # the store resumes
}


RETRIES = 3
"""How often a job whose process or node died is tried again. Default: 3; spot machines vanish, a cell that kills its
process each time is to end as failed."""


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: The job.
        value: What its function returned; None where it failed.
        error: The error, with its traceback; empty where there is none.
    """

    job: Job
    value: object = None
    error: str = ""


class Listener(Protocol):
    """Who is told as jobs start and end."""

    def started(self, job: Job) -> None:
        """A job has started, or has been started again."""

    def told(self, job: Job, iteration: int, loss: float) -> None:
        """A job that runs has said how far it is."""

    def tick(self) -> None:
        """Some time has passed."""

    def ended(self, outcome: Outcome) -> None:
        """A job has ended."""


class Source(Protocol):
    """Who names the jobs of the second stage, one at a time.

    Attributes:
        make: The job of a cell; it is sent to every worker once, with all that jobs have in common.
    """

    make: Callable[[Cell], Job]

    @property
    def waiting(self) -> bool:
        """Whether a job that was named has not ended, so that more may be named then."""

    def next(self) -> Job | None:
        """The next job; None where there is none, or none before another has ended."""


def _attempt(function: Function, job: Job) -> Outcome:
    try:
        return Outcome(job, function(job))
    except Exception:
        return Outcome(job, error=traceback.format_exc())


class InProcess:
    """Runs jobs one after the other in this process: for a debugger, a test, or a machine without Ray."""

    where = "in this process"

    def size(self) -> str:
        """What there is to run on, as text."""
        return ""

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def lacking(self, path: Path) -> list[str]:
        """The hosts that do not see a file of this one: none."""
        return []

    def statistics(self, jobs: Sequence[Job], function: Function, listener: Listener) -> None:
        """Run the first stage's jobs."""
        self._run(jobs, function, listener)

    def trials(self, source: Source, function: Function, listener: Listener) -> None:
        """Run the second stage's jobs."""
        self._run(iter(source.next, None), function, listener)

    def _run(self, jobs: Iterable[Job], function: Function, listener: Listener) -> None:
        for job in jobs:
            listener.started(job)
            listener.tick()
            listener.ended(_attempt(function, replace(job, tell=partial(self._told, listener, job))))

    @staticmethod
    def _told(listener: Listener, job: Job, iteration: int, loss: float) -> None:
        listener.told(job, iteration, loss)
        listener.tick()


class OnRay:
    """Runs jobs on a Ray cluster: statistics as Ray tasks, trials as one Tune trial each.

    Args:
        storage: Folder for what Tune itself writes; emptied at the start and removed at the end.
        cpus: CPUs of a job.
        gpus: GPUs of a trial; None for one for each rank where the cluster has any, or can launch machines that do, and
            for a share of one where several trials fit (`raysat.packing`).
        address: A running cluster's address; None starts one on this machine, unless `RAY_ADDRESS` names one.
        ranks: Processes of a trial.
    """

    def __init__(
        self, storage: Path, cpus: int = 1, gpus: float | None = None, address: str | None = None, ranks: int = 1
    ) -> None:
        self.storage, self.cpus, self.gpus, self.address = storage.resolve(), cpus, gpus, address
        self.ranks, self.packs = ranks, False
        self.where = ""

    def __enter__(self) -> OnRay:
        os.environ.update(_RAY_ENVIRONMENT)
        import ray

        address = self.address or os.environ.get("RAY_ADDRESS")
        try:
            _knock(address)
            context = ray.init(
                address=address or "local",
                include_dashboard=False if address is None else None,
                logging_level=logging.CRITICAL,
                log_to_driver=False,
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"no Ray cluster answers at {address!r} ({reason}): start one with 'ray start --head' and give its "
                "address with --address, or run without Ray by --inline."
            ) from None
        resources = ray.cluster_resources()
        if self.gpus is None:
            launchable = ray._private.state.state.get_max_resources_from_cluster_config() or {}  # by the autoscaler
            self.gpus = float(self.ranks) if resources.get("GPU", 0) or launchable.get("GPU", 0) else 0.0
            self.packs = self.gpus == 1
        if address is None and (self.cpus > resources.get("CPU", 0) or self.gpus > resources.get("GPU", 0)):
            ray.shutdown()
            raise InputError(
                f"a trial asks for {self.cpus} CPUs and {self.gpus:g} GPUs, this machine has "
                f"{resources.get('CPU', 0):g} and {resources.get('GPU', 0):g}: lower cpus_per_trial or gpus_per_trial."
            )
        self.where = f"on Ray: {self.size()}"
        if context.dashboard_url:
            self.where += f", dashboard http://{context.dashboard_url}"
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        return self

    def size(self) -> str:
        """What there is to run on now, as text."""
        import ray

        resources = ray.cluster_resources()
        nodes = sum(node["Alive"] for node in ray.nodes())
        cores, graphics = resources.get("CPU", 0), resources.get("GPU", 0)
        return f"{nodes} node{'s' * (nodes > 1)}, {cores:g} CPUs, {graphics:g} GPUs"

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()
        shutil.rmtree(self.storage, ignore_errors=True)

    def lacking(self, path: Path) -> list[str]:
        """The other hosts of the cluster that do not see a file of this one; one that does not answer is left out."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = ray.get_runtime_context().get_node_id()
        others = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        others.pop(here, None)
        sees = ray.remote(Path.exists)
        asked = {}
        for node, host in others.items():
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            asked[sees.options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(path)] = host
        answered = ray.wait(list(asked), num_returns=len(asked), timeout=60)[0] if asked else []
        lacking = set()
        for answer in answered:
            with suppress(ray.exceptions.RayError):
                if not ray.get(answer):
                    lacking.add(asked[answer])
        return sorted(lacking)

    def statistics(self, jobs: Sequence[Job], function: Function, listener: Listener) -> None:
        """Run the first stage's jobs, each as a Ray task that is tried again where its process dies."""
        import ray

        options = {"num_cpus": self.cpus, "num_gpus": min(self.gpus, 1), "max_retries": RETRIES}
        task = ray.remote(_attempt).options(**options, scheduling_strategy="SPREAD")
        pending = {}
        for job in jobs:
            pending[task.remote(function, job)] = job
            listener.started(job)
        while pending:
            ended, _ = ray.wait(list(pending), num_returns=1, timeout=1)
            listener.tick()
            for ready in ended:
                job = pending.pop(ready)
                try:
                    outcome = ray.get(ready)
                except ray.exceptions.RayError as error:
                    outcome = Outcome(job, error=str(error))
                listener.ended(outcome)

    def trials(self, source: Source, function: Function, listener: Listener) -> None:
        """Run the second stage's jobs, each as a Tune trial that is tried again where its process or node dies.

        A Tune `Searcher` asks the source for the next one. Tune keeps as many trials pending as with its own grid
        search, so that an autoscaler sees what is to be done, and a free process finds its next trial ready.
        """
        import ray
        from ray import tune
        from ray.tune.progress_reporter import TrialProgressCallback
        from ray.tune.search import Searcher

        shutil.rmtree(self.storage, ignore_errors=True)
        self.storage.mkdir(parents=True)
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max(200, int(1.1 * ray.cluster_resources().get("CPU", 1))))

        gpus = lambda job: packing.share(job.cell, job.statistics) if self.packs else self.gpus  # noqa: E731
        jobs: dict[str, Job] = {}  # those that run; what Tune keeps of a trial stays small

        def trainable(config: dict, function: Function, make: Callable[[Cell], Job]) -> None:
            tell = lambda iteration, loss: tune.report({"told": (iteration, loss)})  # noqa: E731
            outcome = _attempt(function, replace(make(config["cell"].cell), gpus=config["gpus"], tell=tell))
            tune.report({"outcome": (outcome.value, outcome.error)})

        def resources(config: dict) -> tune.PlacementGroupFactory:
            return tune.PlacementGroupFactory([{"CPU": self.cpus, "GPU": config["gpus"]}])

        class Suggest(Searcher):
            """Asks the source. It is told of ends by the listener, before Tune asks for the next trial."""

            def __reduce__(self) -> tuple:  # Tune pickles searchers for a restore that never comes
                return Searcher, ()

            def suggest(self, trial_id: str) -> dict | str | None:
                job = source.next()
                if job is not None:
                    jobs[job.cell.cell_id] = job
                    return {"cell": _Sealed(job.cell), "gpus": gpus(job)}
                return None if source.waiting else Searcher.FINISHED

            def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
                pass

        class Tell(TrialProgressCallback):
            """Hands outcomes to the listener and takes them out of what Tune keeps; stands in for Tune's own report.

            A trial whose node is lost just after its outcome came is run again by Tune; it counts once.
            """

            def __reduce__(self) -> tuple:
                return TrialProgressCallback, ()

            def _ended(self, trial: object, value: object = None, error: str = "") -> None:
                if job := jobs.pop(repr(trial.config["cell"]), None):
                    listener.ended(Outcome(job, value, error))

            def on_trial_start(self, iteration: int, trials: list, trial: object, **_: object) -> None:
                if job := jobs.get(repr(trial.config["cell"])):
                    listener.started(job)

            def on_trial_result(self, iteration: int, trials: list, trial: object, result: dict, **_: object) -> None:
                if "outcome" in result:
                    self._ended(trial, *result.pop("outcome"))
                elif "told" in result and (job := jobs.get(repr(trial.config["cell"]))):
                    listener.told(job, *result["told"])

            def on_step_end(self, iteration: int, trials: list, **_: object) -> None:
                listener.tick()

            def on_trial_complete(self, iteration: int, trials: list, trial: object, **_: object) -> None:
                pass

            def on_trial_error(self, iteration: int, trials: list, trial: object, **_: object) -> None:
                text = Path(trial.error_file).read_text() if trial.error_file else "the trial's process died"
                self._ended(trial, error=text)

        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(trainable, function=function, make=source.make), resources),
            tune_config=tune.TuneConfig(search_alg=Suggest(), num_samples=-1, reuse_actors=True),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(self.storage),
                callbacks=[Tell()],
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                verbose=0,
            ),
        )
        tuner.fit()


@dataclass(frozen=True)
class _Sealed:
    """A cell as a value of Tune's, which looks into dictionaries and names folders after what it finds."""

    cell: Cell

    def __repr__(self) -> str:
        return self.cell.cell_id


class Talker(Protocol):
    """A worker that talks to a server."""

    def work(self, exchange: Callable[..., object]) -> None:
        """Work until the server has no more to do.

        Args:
            exchange: The server's method of that name.
        """


class _Serving:
    """The process of a server, as a Ray actor."""

    def __init__(self, make: Callable[[], object]) -> None:
        self.server = make()

    def exchange(self, *message: object) -> object:
        return self.server.exchange(*message)

    def result(self) -> object:
        return self.server.result()


class _Talking:
    """The process of a talker, as a Ray actor."""

    def __init__(self, make: Callable[[], Talker]) -> None:
        self.talker = make()

    def process(self) -> int:
        return os.getpid()

    def work(self, server: object) -> None:
        import ray

        self.talker.work(lambda *message: ray.get(server.exchange.remote(*message)))


def with_server(
    server: Callable[[], object],
    talker: Callable[[], Talker],
    count: int,
    begun: Callable[[list[int]], None] | None = None,
) -> tuple[object, int]:
    """Run talkers beside a server, each in a process of its own, on the cluster that this process has joined.

    A talker that dies is started anew, up to `RETRIES` times; the others do not wait for it.

    Args:
        server: Makes the server, which has the methods `exchange` and `result`.
        talker: Makes a talker.
        count: Talkers. They share the cluster's CPUs, however few there are.
        begun: Called with the ids of the talkers' processes once they work.

    Returns:
        The server's result, and how many talkers have died.
    """
    import ray

    serving = ray.remote(_Serving).options(num_cpus=0).remote(server)
    actor = ray.remote(_Talking).options(num_cpus=0, num_gpus=0, max_restarts=RETRIES, max_task_retries=-1)
    actors = [actor.remote(talker) for _ in range(count)]
    before = ray.get([one.process.remote() for one in actors])
    working = [one.work.remote(serving) for one in actors]
    if begun:
        begun(before)
    for work in working:
        with suppress(ray.exceptions.RayActorError):  # it has died more often than it is started anew
            ray.get(work)
    result, after = ray.get(serving.result.remote()), [None] * count
    for k, one in enumerate(actors):
        with suppress(ray.exceptions.RayActorError):  # dead for good
            after[k] = ray.get(one.process.remote())
    for one in (*actors, serving):
        ray.kill(one)
    return result, sum(old != new for old, new in zip(before, after, strict=True))


def _knock(address: str | None) -> None:
    """Raise `OSError` where nobody listens at `host:port`: Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()
