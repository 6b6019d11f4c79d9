"""Sweeps on several Ray nodes of this machine: a head that runs no trial, nodes and drivers that are taken away."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from cluster.nodes import ray_nodes
from ray._private.node import Node

from raysat.driver.progress import View
from raysat.storage.checkpoint import Checkpoint
from raysat.storage.files import location
from raysat.storage.store import Store
from raysat.sweep import main

SWEEP = """
from raysat import Sweep, fixed_fraction, mlp, theory
sweep = Sweep(name="nodes", dataset="digits", n_train=64, models=[mlp(2)], widths=[64], batch_sizes=[1, 2, 4, 8],
              stepsizes=[fixed_fraction(), theory()], iterations=100, evaluations=5, seeds=2)
"""
NETWORK = '''
"""A linear model that {what}."""

import math
import pathlib
import time
import ray
import torch

MARKS, BATCH = pathlib.Path({marks!r}), 7  # the statistics never take so many samples at a time

def another_is_lost(node):
    """Whether a node is lost, and not this one, whose processes outlive it by some moments."""
    return (MARKS / "lost").exists() and (MARKS / "lost").read_text() != node

class Network(torch.nn.Linear):
    steps = 0

    def forward(self, x):
        if ray.is_initialized() and torch.is_grad_enabled() and len(x) == BATCH:
            self.steps += 1
            self.step(ray.get_runtime_context().get_node_id())
        return super().forward(x.flatten(1))
{step}
def build(width, input_shape, outputs):
    return Network(math.prod(input_shape), outputs)
'''
WAITING = """
    def step(self, node):
        if self.steps == 3:
            (MARKS / f"runs-{node}").touch()
            for _ in range(1200):
                if another_is_lost(node):
                    break
                time.sleep(0.05)
            else:
                raise RuntimeError("no node was lost, or this one, whose processes went on")
"""
SLOW = """
    def step(self, node):
        with open(MARKS / f"steps-{node}", "a") as steps:
            steps.write("1")
        if not another_is_lost(node):
            time.sleep(0.02)
"""


@pytest.fixture
def cluster():
    with ray_nodes(num_cpus=0) as nodes:
        yield nodes


@pytest.fixture
def run(cluster, tmp_path):
    """Runs the sweep on the cluster, with some of its fields replaced; its rows."""
    path = tmp_path / "nodes.py"
    path.write_text(SWEEP)

    def run(*where: str, results: str = str(tmp_path), **changes: object) -> pd.DataFrame:
        settings = [word for name, value in changes.items() for word in ("--set", f"{name}={value!r}")]
        where = where or ("--address", cluster.address)
        assert main([str(path), "--results", results, *where, *settings]) == 0
        return Store(f"{results}/{changes.get('name', 'nodes')}").read("trials")

    return run


@pytest.fixture
def lose(cluster, monkeypatch, tmp_path):
    """Takes a node away in mid-sweep, once something is so; the file that says which one."""

    def lose(node: Node, when: Callable[[], bool]) -> Path:
        lost, tick = tmp_path / "lost", View.tick

        def tick_and_lose(view: View, size: str) -> None:
            tick(view, size)
            if not lost.exists() and when():
                cluster.remove_node(node, allow_graceful=False)
                (tmp_path / ".lost").write_text(node.node_id)
                (tmp_path / ".lost").rename(lost)

        monkeypatch.setattr(View, "tick", tick_and_lose)
        monkeypatch.setattr("raysat.driver.recorder.HEARTBEAT", 0.0)
        return lost

    return lose


def test_every_cell_outlives_the_loss_of_a_node(cluster, run, lose, tmp_path):
    does = {"what": "at the third step of its trial waits until a node is lost", "step": WAITING}
    (tmp_path / "my_waiting.py").write_text(NETWORK.format(marks=str(tmp_path), **does))
    doomed, _ = (cluster.add_node(num_cpus=2) for _ in range(2))
    lost = lose(doomed, when=(tmp_path / f"runs-{doomed.node_id}").exists)
    trials = run(models=["my_waiting:build"], batch_sizes=[7], seeds=8)
    assert lost.read_text() == doomed.node_id
    assert len(trials) == trials["cell_id"].nunique() == 16
    assert set(trials["status"]) == {"completed"}
    assert trials["attempts"].max() == 2
    assert (trials["attempts"] == 1).sum() >= 12  # only what ran on the lost node ran again


def test_a_trial_whose_node_is_lost_goes_on_from_its_checkpoint_on_s3(bucket, cluster, run, lose, tmp_path):
    does = {"what": "notes each step under its node, and takes its time over it until a node is lost", "step": SLOW}
    (tmp_path / "my_slow.py").write_text(NETWORK.format(marks=str(tmp_path), **does))
    doomed, other = (cluster.add_node(num_cpus=1) for _ in range(2))

    stored = []

    def both_are_on_their_way():
        stored[:] = [Checkpoint(path).load().iteration for path in location(f"{bucket}/nodes/checkpoints").glob("*.pt")]
        return len(stored) == 2 and min(stored) > 0

    lost = lose(doomed, when=both_are_on_their_way)
    small = {"models": ["my_slow:build"], "batch_sizes": [7], "seeds": 1, "iterations": 600}
    trials = run(results=bucket, checkpoint_seconds=0.1, **small)
    assert lost.read_text() == doomed.node_id
    assert sorted(trials["attempts"]) == [1, 2]
    assert list(location(f"{bucket}/nodes/checkpoints").glob("*.pt")) == []
    steps = len((tmp_path / f"steps-{other.node_id}").read_text())  # of its own trial, and of the rest of the other
    assert 600 <= steps <= 2 * 600 - min(stored)
    alone = run("--inline", name="alone", **small).merge(trials, on="cell_id")
    assert alone["loss_final_x"].tolist() == alone["loss_final_y"].tolist()


def test_the_same_command_goes_on_where_its_driver_was_killed(cluster, tmp_path):
    cluster.add_node(num_cpus=2)
    (tmp_path / "nodes.py").write_text(SWEEP)
    command = [sys.executable, "-m", "raysat.sweep", str(tmp_path / "nodes.py"), "--results", str(tmp_path)]
    command += ["--address", cluster.address, "--set", "iterations=2000"]
    parts, deadline = tmp_path / "nodes" / "trials", time.monotonic() + 180
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as driver:
        while len(list(parts.glob("*.parquet"))) < 4 and time.monotonic() < deadline and driver.poll() is None:
            time.sleep(0.05)
        driver.send_signal(signal.SIGKILL)
        said = driver.communicate(timeout=60)[0].decode()
    assert driver.returncode == -signal.SIGKILL, said
    before = pd.read_parquet(parts).set_index("cell_id")
    assert 2 < len(before) < 16
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"{16 - len(before)} of 16 cells to run" in again.stdout
    after = pd.read_parquet(parts).set_index("cell_id")
    assert len(after) == after.index.nunique() == 16
    assert set(after["status"]) == {"completed"}
    pd.testing.assert_frame_equal(after.loc[before.index], before)


def test_a_trial_of_two_ranks_is_placed_and_agrees_with_one_of_one(cluster, run):
    cluster.add_node(num_cpus=2)
    small = {"batch_sizes": [8], "seeds": 1, "iterations": 100, "dtype": "float64", "engine": "autograd"}
    one = run("--inline", name="one", **small)
    two = run(name="two", ranks_per_trial=2, cpus_per_trial=2, **small)
    assert set(one["engine"]) == {"autograd"}
    assert set(two["engine"]) == {"parallel"}
    both = one.merge(two, on="cell_id")
    assert len(both) == 2
    assert both["loss_final_x"].tolist() == pytest.approx(both["loss_final_y"].tolist(), rel=1e-6)
