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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from raysat.spec import InputError
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

    def ended(self, outcome: Outcome) -> None:
        """A job has ended."""


def _attempt(function: Function, job: Job) -> Outcome:
    try:
        return Outcome(job, function(job))
    except Exception:
        return Outcome(job, error=traceback.format_exc())


class InProcess:
    """Runs jobs one after the other in this process: for a debugger, a test, or a machine without Ray."""

    where = "in this process"

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def statistics(self, jobs: Sequence[Job], function: Function, listener: Listener) -> None:
        """Run the first stage's jobs."""
        self.trials(jobs, function, listener)

    def trials(self, jobs: Sequence[Job], function: Function, listener: Listener) -> None:
        """Run the second stage's jobs."""
        for job in jobs:
            listener.started(job)
            listener.ended(_attempt(function, job))


class OnRay:
    """Runs jobs on a Ray cluster: statistics as Ray tasks, trials as one Tune trial each.

    Args:
        storage: Folder for what Tune itself writes; emptied at the start and removed at the end.
        cpus: CPUs of a job.
        gpus: GPUs of a job; None for one where the cluster has any.
        address: A running cluster's address; None starts one on this machine, unless `RAY_ADDRESS` names one.
    """

    def __init__(self, storage: Path, cpus: int = 1, gpus: float | None = None, address: str | None = None) -> None:
        self.storage, self.cpus, self.gpus, self.address = storage.resolve(), cpus, gpus, address
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
            self.gpus = 1.0 if resources.get("GPU", 0) else 0.0
        if address is None and (self.cpus > resources.get("CPU", 0) or self.gpus > resources.get("GPU", 0)):
            ray.shutdown()
            raise InputError(
                f"a trial asks for {self.cpus} CPUs and {self.gpus:g} GPUs, this machine has "
                f"{resources.get('CPU', 0):g} and {resources.get('GPU', 0):g}: lower cpus_per_trial or gpus_per_trial."
            )
        nodes = sum(node["Alive"] for node in ray.nodes())
        cores, graphics = resources.get("CPU", 0), resources.get("GPU", 0)
        self.where = f"on Ray: {nodes} node{'s' * (nodes > 1)}, {cores:g} CPUs, {graphics:g} GPUs"
        if context.dashboard_url:
            self.where += f", dashboard http://{context.dashboard_url}"
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()
        shutil.rmtree(self.storage, ignore_errors=True)

    def statistics(self, jobs: Sequence[Job], function: Function, listener: Listener) -> None:
        """Run the first stage's jobs, each as a Ray task that is tried again where its process dies."""
        import ray

        task = ray.remote(_attempt).options(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=3)
        pending = {}
        for job in jobs:
            pending[task.remote(function, job)] = job
            listener.started(job)
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            job = pending.pop(ready)
            try:
                outcome = ray.get(ready)
            except ray.exceptions.RayError as error:
                outcome = Outcome(job, error=str(error))
            listener.ended(outcome)

    def trials(self, jobs: Sequence[Job], function: Function, listener: Listener) -> None:
        """Run the second stage's jobs, each as a Tune trial that is tried again where its process or node dies."""
        from ray import tune
        from ray.tune.progress_reporter import TrialProgressCallback

        shutil.rmtree(self.storage, ignore_errors=True)
        self.storage.mkdir(parents=True)

        def trainable(config: dict, jobs: Sequence[Job], function: Function) -> None:
            outcome = _attempt(function, jobs[config["job"]])
            tune.report({"outcome": (outcome.value, outcome.error)})

        class Tell(TrialProgressCallback):
            """Hands outcomes to the listener and takes them out of what Tune keeps; stands in for Tune's own report."""

            def __reduce__(self) -> tuple:  # Tune pickles callbacks for a restore that never comes
                return TrialProgressCallback, ()

            def on_trial_start(self, iteration: int, trials: list, trial: object, **_: object) -> None:
                listener.started(jobs[trial.config["job"]])

            def on_trial_result(self, iteration: int, trials: list, trial: object, result: dict, **_: object) -> None:
                if "outcome" in result:
                    listener.ended(Outcome(jobs[trial.config["job"]], *result.pop("outcome")))

            def on_trial_complete(self, iteration: int, trials: list, trial: object, **_: object) -> None:
                pass

            def on_trial_error(self, iteration: int, trials: list, trial: object, **_: object) -> None:
                text = Path(trial.error_file).read_text() if trial.error_file else "the trial's process died"
                listener.ended(Outcome(jobs[trial.config["job"]], error=text))

        resources = {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(trainable, jobs=list(jobs), function=function), resources),
            param_space={"job": tune.grid_search(list(range(len(jobs))))},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(self.storage),
                callbacks=[Tell()],
                failure_config=tune.FailureConfig(max_failures=3),
                verbose=0,
            ),
        )
        tuner.fit()


def _knock(address: str | None) -> None:
    """Raise `OSError` where nobody listens at `host:port`: Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()
