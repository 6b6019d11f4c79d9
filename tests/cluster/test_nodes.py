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
              stepsizes=[fixed_fraction(), theory()], iterations=3000, evaluations=5, seeds=2)
"""


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


def test_every_cell_outlives_the_loss_of_a_node(cluster, run, monkeypatch):
    lost, _ = (cluster.add_node(num_cpus=2) for _ in range(2))
    ended, job_ended = [], View.job_ended

    def lose_a_node(view, key, *shown):
        job_ended(view, key, *shown)
        ended.append(key)
        if (
            len(ended) == 5
        ):  # two statistics and three trials: of the other three that run, one at least is on either node
            cluster.remove_node(lost, allow_graceful=False)

    monkeypatch.setattr(View, "job_ended", lose_a_node)
    trials = run()
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
