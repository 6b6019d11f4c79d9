"""Asynchronous SGD on Ray: real processes, and what the simulation makes of their staleness."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from raysat import asgd, fixed
from raysat.asgd import Learner, Server
from raysat.executor import OnRay
from raysat.sgd.asynchronous import mean_staleness
from raysat.trial import Job, compute_statistics, prepare, run_trial


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with OnRay(tmp_path_factory.mktemp("ray") / "storage") as executor:
        yield executor


@pytest.fixture(scope="module")
def job(make_cell):
    cell = make_cell(batch_size=4, stepsize=fixed(0.05), iterations=150, dtype="float32")
    job = Job("s", cell.init, cell)
    return replace(job, statistics=compute_statistics(job))


def test_a_server_takes_each_step_at_once_and_counts_how_stale_it_was():
    server = Server([torch.zeros(2)], eta=0.5, iterations=3, keep_at=[0, 2, 3])
    gradient = [torch.tensor([1.0, 2.0])]
    tasks = [server.exchange(), server.exchange()]  # two learners read w_0
    assert [(t, number) for t, number, _ in tasks] == [(0, 0), (0, 1)]
    t, number, (weights,) = server.exchange(0, gradient)
    assert (t, number, weights.tolist()) == (1, 2, [-0.5, -1.0])
    assert server.exchange(0, gradient)[:2] == (2, 3)  # the second learner: one step stale
    assert server.exchange(1, gradient) is None
    assert server.exchange(0, gradient) is None  # too late: no step
    kept, counts = server.result()
    assert {t: weights.tolist() for t, (weights,) in kept.items()} == {0: [0, 0], 2: [-1, -2], 3: [-1.5, -3]}
    assert counts == [1, 2]


def test_one_learner_is_sgd(job):
    """A server and one learner in this process take the steps of the trial, bit for bit."""
    _, network, _ = prepare(job)
    server = Server(list(network.parameters()), 0.05, job.cell.iterations, [job.cell.iterations])
    learner, task = Learner(job), server.exchange()
    while task is not None:
        t, number, weights = task
        task = server.exchange(t, learner.gradients(number, weights))
    asgd._put(network, server.result()[0][job.cell.iterations])
    row, *_ = run_trial(replace(job, engine="autograd"))
    assert asgd._evaluator(job, prepare(job)[0], network)(network)["train_loss"] == row["loss_final"]


def test_real_learners_end_within_the_spread_of_the_simulation(cluster, job):
    """Four learners on however few cores; simulated runs from the same weights draw batches and staleness."""
    real = asgd.run(job, 4)
    assert [point["iteration"] for point in real.curve][-1] == 150
    assert sum(real.staleness) == 150
    assert 0 < mean_staleness(torch.tensor(real.staleness)) <= 150
    runs = [asgd.simulate(job, 4, real.staleness, seed) for seed in range(asgd.SIMULATED)]
    losses = [curve[-1]["train_loss"] for curve in runs]
    low, high = min(losses), max(losses)
    margin = (high - low) / 2  # of six draws of one kind, one is outermost
    assert low - margin <= real.curve[-1]["train_loss"] <= high + margin
    assert high < real.curve[0]["train_loss"] / 2
    assert real.curve[0]["train_loss"] == runs[0][0]["train_loss"]
    assert [[point["iteration"] for point in curve] for curve in runs] == [[p["iteration"] for p in real.curve]] * 5
    logs = np.log([[point["train_loss"] for point in curve] for curve in (*runs, real.curve)])
    apart = np.abs(logs - np.median(logs[:-1], axis=0)).max(axis=1)  # of each whole curve from the simulated ones
    assert apart[-1] <= 2 * apart[:-1].max()


def test_a_killed_learner_does_not_stop_the_run(cluster, job):
    real = asgd.run(job, 2, begun=lambda processes: os.kill(processes[0], signal.SIGKILL))
    assert real.died == 1
    assert sum(real.staleness) == 150
    assert real.curve[-1]["train_loss"] < real.curve[0]["train_loss"] / 2
