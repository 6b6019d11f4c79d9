"""A Ray cluster of several nodes on this machine, of which nothing stays behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import ray
from ray.cluster_utils import Cluster

MARK = "RAYSAT_TEST_NODES"


@contextmanager
def ray_nodes(num_cpus: int) -> Iterator[Cluster]:
    """A cluster that has a head with so many CPUs, to which nodes may be added.

    Args:
        num_cpus: CPUs of the head; 0 for one that runs no trial.

    Raises:
        AssertionError: Some of its processes are left at the end.
    """
    os.environ[MARK] = mark = uuid4().hex  # every process of the cluster inherits it
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": num_cpus, "include_dashboard": False})
    try:
        assert processes(mark) or not Path("/proc").exists()
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        del os.environ[MARK]
    patience = time.monotonic() + 30  # a worker notices by itself that its node is gone
    while (left := processes(mark)) and time.monotonic() < patience:
        time.sleep(0.1)
    assert not left


def processes(mark: str) -> list[str]:
    """The processes that were started with this mark in their environment."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in environment.read_bytes():
                found.append((environment.parent / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended, or is another user's
            continue
    return found
