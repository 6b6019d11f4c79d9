"""Sweeps on several Ray nodes of this machine: a head that runs no trial, and nodes that are taken away."""

from pathlib import Path

import pandas as pd
import pytest
import ray
from ray.cluster_utils import Cluster

from raysat.progress import View
from raysat.sweep import main

SWEEP = """
from raysat import Sweep, fixed_fraction, mlp, theory
sweep = Sweep(name="nodes", dataset="digits", n_train=64, models=[mlp(2)], widths=[64], batch_sizes=[1, 2, 4, 8],
              stepsizes=[fixed_fraction(), theory()], iterations=100, evaluations=5, seeds=2)
"""
WAITING = '''
"""A linear model that at its trial's third step says which node it is on, and there waits until a node is lost."""

import pathlib
import threading
import ray
import torch

MARKS = pathlib.Path({marks!r})

class Waiting(torch.nn.Linear):
    steps = 0

    def forward(self, x):
        in_a_trial = threading.current_thread() is not threading.main_thread()
        self.steps += in_a_trial and torch.is_grad_enabled()
        if self.steps == 3:
            here = ray.get_runtime_context().get_node_id()
            (MARKS / f"runs-{{here}}").touch()
            lost, patience = MARKS / "lost", threading.Event()
            for _ in range(1200):  # a worker outlives its node by some moments, and must not end its trial in them
                if lost.exists() and lost.read_text() != here:
                    break
                patience.wait(0.05)
            else:
                raise RuntimeError("no node was lost, or this one, whose processes went on")
        return super().forward(x)

def build(width, input_shape, outputs):
    return Waiting(input_shape[0], outputs)
'''


@pytest.fixture
def cluster():
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture
def run(cluster, tmp_path):
    """Runs the sweep on the cluster, with some of its fields replaced; its rows."""
    path = tmp_path / "nodes.py"
    path.write_text(SWEEP)

    def run(*where: str, **changes: object) -> pd.DataFrame:
        settings = [word for name, value in changes.items() for word in ("--set", f"{name}={value!r}")]
        where = where or ("--address", cluster.address)
        assert main([str(path), "--results", str(tmp_path), *where, *settings]) == 0
        return pd.read_parquet(Path(tmp_path, changes.get("name", "nodes"), "trials"))

    return run


def test_every_cell_outlives_the_loss_of_a_node(cluster, run, monkeypatch, tmp_path):
    (tmp_path / "my_waiting.py").write_text(WAITING.format(marks=str(tmp_path)))
    doomed, _ = (cluster.add_node(num_cpus=2) for _ in range(2))
    lost, tick = tmp_path / "lost", View.tick

    def lose_the_node(view, size):
        tick(view, size)
        if (tmp_path / f"runs-{doomed.node_id}").exists() and not lost.exists():
            cluster.remove_node(doomed, allow_graceful=False)
            (tmp_path / ".lost").write_text(doomed.node_id)
            (tmp_path / ".lost").rename(lost)

    monkeypatch.setattr(View, "tick", lose_the_node)
    monkeypatch.setattr("raysat.sweep.HEARTBEAT", 0.0)
    trials = run(models=["my_waiting:build"])
    assert lost.read_text() == doomed.node_id
    assert len(trials) == trials["cell_id"].nunique() == 16
    assert set(trials["status"]) == {"completed"}
    assert trials["attempts"].max() == 2
    assert (trials["attempts"] == 1).sum() >= 12  # only what ran on the lost node ran again


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
