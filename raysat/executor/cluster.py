"""The executor on a Ray cluster: a running one, or a new one on this machine."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from importlib import import_module
from pathlib import Path

from raysat.data import sharing
from raysat.errors import InputError
from raysat.executor import private
from raysat.executor.jobs import ExecutorDied, Function, JobCallbacks, Source
from raysat.executor.vigil import Vigil
from raysat.messages.failures import said
from raysat.trial import packing
from raysat.trial.job import Job

_RAY_ENVIRONMENT = {
    "RAY_prestart_worker_first_driver": "0",  # Tune's processes have another environment and use none
    "RAY_AIR_NEW_OUTPUT": "0",  # the only output that our callback can replace
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the store keeps the results
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C reaches the driver as an exception
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # the store resumes
}


class OnRay:
    """Runs jobs on a Ray cluster, each as one Tune trial.

    Args:
        storage: Folder for what Tune itself writes; emptied at the start and removed at the end.
        cpus: CPUs of a job.
        gpus: GPUs of a trial. None for one for each rank if the cluster has any, or can launch machines that do, and
            for a share of one if several trials fit (`raysat.trial.packing`).
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
        if "RAYSAT_DATA" in os.environ:  # workers have other working folders
            os.environ["RAYSAT_DATA"] = os.path.abspath(os.environ["RAYSAT_DATA"])
        import ray

        address = self.address or os.environ.get("RAY_ADDRESS")
        if not address and not os.access(os.path.expanduser("~"), os.W_OK):  # such as a container's unnamed user
            os.environ["HOME"] = str(sharing.folder())  # Ray keeps a token there
        on_signal = signal.getsignal(signal.SIGTERM)
        try:
            _check_reachable(address)
            loading = threading.Thread(target=import_module, args=("ray.tune.search",), daemon=True)
            loading.start()
            if not address:
                _try_to_write()
            with nullcontext() if address else private.quick_start():
                context = ray.init(address=address or "local", logging_level=logging.CRITICAL, log_to_driver=False)
            loading.join()
        except Exception as error:  # Ray raises many classes, `Exception` itself among them
            raise _not_there(address, said(error)) from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_signal)  # Ray has replaced it by its own
        self.vigil = Vigil(*private.processes()).__enter__()
        try:
            self._look_around(address, context.dashboard_url)
        except BaseException as error:
            self.__exit__(type(error))
            raise
        return self

    def _look_around(self, address: str | None, dashboard: str | None) -> None:
        """Determine the resources of a trial, and print where it runs."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        launchable = _launchable()
        if self.gpus is None:
            self.gpus = float(self.ranks) if any(node.get("GPU", 0) for node in (*nodes, *launchable)) else 0.0
            self.packs = self.gpus == 1
        if not any(self._fits(node) for node in (*nodes, *launchable)):
            largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)))
            has = f"{largest.get('CPU', 0):g} and {largest.get('GPU', 0):g}"
            if address is None or launchable:
                raise InputError(
                    f"a trial asks for {self.cpus} CPUs and {self.gpus:g} GPUs, and no machine has both (the largest "
                    f"has {has}): lower cpus_per_trial or gpus_per_trial."
                )
            self.where = f"no node has {self.cpus} CPUs and {self.gpus:g} GPUs yet (the largest has {has}); "
        self.where += f"on Ray: {self.size()}"
        if dashboard:
            self.where += f", dashboard http://{dashboard}"
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)

    def _fits(self, node: Mapping[str, float]) -> bool:
        assert self.gpus is not None  # known since it was looked around
        return self.cpus <= node.get("CPU", 0) and self.gpus <= node.get("GPU", 0)

    def slots(self) -> int:
        """Return how many jobs can run at a time now, by their CPUs."""
        import ray

        return max(1, int(ray.cluster_resources().get("CPU", 0) / self.cpus))

    def size(self) -> str:
        """Return the present size of the cluster as text, such as `2 nodes, 8 CPUs`."""
        import ray

        resources = ray.cluster_resources()
        nodes = sum(node["Alive"] for node in ray.nodes())
        cores, graphics = resources.get("CPU", 0), resources.get("GPU", 0)
        return f"{nodes} node{'s' * (nodes > 1)}, {cores:g} CPUs, {graphics:g} GPUs"

    def __exit__(self, kind: type | None = None, *_: object) -> None:
        import ray

        self.vigil.__exit__(kind)
        if self.vigil.died:  # a shutdown would wait for the dead processes until Ray's core ends this one
            atexit.unregister(ray.shutdown)
            private.kill_processes()
        else:
            ray.shutdown()
        shutil.rmtree(self.storage, ignore_errors=True)
        self.vigil.relieve()
        if self.vigil.died and kind:
            raise ExecutorDied(self.vigil.sentence) from None

    def hosts_without(self, path: Path) -> list[str]:
        """Return the other hosts of the cluster that do not see a file of this one, unless they do not answer."""
        import ray
        from ray.exceptions import RayError
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
        hosts_without = set()
        for answer in answered:
            with suppress(RayError):
                if not ray.get(answer):
                    hosts_without.add(asked[answer])
        return sorted(hosts_without)

    def run(self, source: Source, function: Function, callbacks: JobCallbacks) -> None:
        """Run all jobs, each as a Tune trial that is retried if its process or node dies.

        If Ray itself dies, leaving the context raises `ExecutorDied` in place of the error raised here.
        """
        from raysat.executor.tune import run_on_tune  # imported here, because it loads Ray Tune

        local = self.address is None and not os.environ.get("RAY_ADDRESS")
        run_on_tune(source, function, callbacks, self.storage, self.cpus, self._gpus_of, local=local)

    def _gpus_of(self, job: Job) -> float:
        """Return the GPUs of a job: those of a trial, at most one for statistics."""
        assert self.gpus is not None  # known since it was looked around
        if job.cell is None:
            return min(self.gpus, 1.0)
        return packing.share(job.cell, job.statistics) if self.packs else self.gpus


def _launchable() -> list[dict[str, float]]:
    """Return the resources of the machines that Ray's cluster launcher may start; none except on its head node."""
    import yaml

    try:
        config = yaml.safe_load((Path.home() / "ray_bootstrap_config.yaml").read_text())
        kinds = config["available_node_types"].values()
        return [kind["resources"] for kind in kinds if kind.get("max_workers", 0) > 0 and kind["resources"]]
    except (OSError, RuntimeError, yaml.YAMLError, KeyError, TypeError, AttributeError):  # the second: no home
        return []


def _not_there(address: str | None, reason: str) -> Exception:
    """Return the exception for a missing Ray cluster, whose message ends in the remedy."""
    if address:
        return InputError(
            f"no Ray cluster answers at {address!r} ({reason}): start one with 'ray start --head' and give its address "
            "with --address, with RAY_AUTH_MODE=token in the environment where it asks for a token, or run without Ray "
            "by --inline."
        )
    return ExecutorDied(
        f"Ray could not be started on this machine ({reason}): see that {_temporary()} can be written and has room, or "
        "name another folder by RAY_TMPDIR, or run without Ray by --inline"
    )


def _temporary() -> str:
    """Return the folder in which Ray on this machine keeps its sockets and logs."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"


def _try_to_write() -> None:
    """Raise `OSError` if there is no space for Ray's files: Ray itself would wait half a minute for them."""
    os.makedirs(_temporary(), exist_ok=True)
    with tempfile.TemporaryFile(dir=_temporary()) as file:
        file.write(bytes(1 << 20))


def _check_reachable(address: str | None) -> None:
    """Raise `OSError` if nothing listens at `host:port`: Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()
