"""Asynchronous SGD on Ray: real processes, and what the simulation makes of their staleness."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from raysat import InputError, Training, asgd, asynchronous, fixed, mlp
from raysat.asgd import Learner, Server
from raysat.driver import sweepfile
from raysat.executor import OnRay
from raysat.sgd.asynchronous import mean_staleness
from raysat.spec.training import PLAIN
from raysat.storage.files import location
from raysat.trial.initial import compute_statistics
from raysat.trial.job import Job, prepare
from raysat.trial.train import run_trial


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


def shaken(x, y, generator):
    return x + torch.randn(x.shape, generator=generator), y


@pytest.mark.parametrize("transform", ["", "my_transforms:shaken"])
def test_one_learner_is_sgd(job, transform, monkeypatch):
    """A server and one learner in this process take the steps of the trial, bit for bit."""
    monkeypatch.setitem(sys.modules, "my_transforms", SimpleNamespace(shaken=shaken))
    job = replace(job, cell=replace(job.cell, training=Training(transform=transform)))
    _, network, _ = prepare(job)
    server = Server(list(network.parameters()), 0.05, job.cell.iterations, [job.cell.iterations])
    learner, task = Learner(job), server.exchange()
    while task is not None:
        t, number, weights = task
        task = server.exchange(t, learner.gradients(number, weights))
    asgd._put(network, server.result()[0][job.cell.iterations])
    row, *_ = run_trial(replace(job, engine="autograd"))
    assert asgd._evaluator(job, prepare(job)[0], network)(network)["train_loss"] == row["loss_final"]


REAL, DRAWS = 3, 12
"""Real runs, and simulated runs beside each."""


def bound(variances, level=1e-3):
    """How far the mean over real runs may lie from that of the simulation, for each point of the curve, in logs.

    Student's t of the difference, with the variance pooled over the simulated runs of each w_0, and the level shared
    among the points (Bonferroni): where real and simulated runs are draws of one kind, a test fails once in a thousand.
    """
    tail = student.ppf(1 - level / 2 / variances.shape[1], REAL * (DRAWS - 1))
    return tail * np.sqrt(variances.mean(axis=0) * (1 + 1 / DRAWS) / REAL)


def test_real_learners_train_as_the_simulation_with_their_staleness_does(cluster, make_cell):
    """Four learners on however few cores, against simulated runs with the staleness that they had, in whole curves.

    Of five simulated runs the ends contain one more draw of the same kind in two of three cases only, so that a single
    real run inside or outside says little. Compared are means: of three real runs, each from a w_0 of its own, and of
    twelve simulated ones from the same w_0, over `bound`, of about 2.6 standard deviations of one run. The same
    comparison tells the simulation apart from one that is never stale: that is what it could miss.
    """
    apart, never, variances = [], [], []
    for seed in range(REAL):
        cell = make_cell(batch_size=32, stepsize=fixed(0.4), iterations=80, dtype="float32", seed=seed)
        job = Job("s", cell.init, cell)
        real = asgd.run(job, 4)
        assert sum(real.staleness) == 80
        assert mean_staleness(torch.tensor(real.staleness)) > 1
        stale, fresh = (
            np.log([[point["train_loss"] for point in asgd.simulate(job, 4, taus, 100 + k)] for k in range(draws)])
            for taus, draws in ((real.staleness, DRAWS), ([1.0], DRAWS // 3))
        )
        assert [point["iteration"] for point in real.curve][-1] == 80
        losses = np.log([point["train_loss"] for point in real.curve])
        assert losses[0] == stale[0, 0]  # the same w_0
        apart.append((losses - stale.mean(axis=0))[1:])
        never.append((fresh.mean(axis=0) - stale.mean(axis=0))[1:])
        variances.append(stale.var(axis=0, ddof=1)[1:])
    allowed = bound(np.array(variances))
    assert (np.abs(np.mean(apart, axis=0)) <= allowed).all()
    assert np.abs(np.mean(never, axis=0) / allowed).max() > 1


def test_where_one_more_draw_lies_is_students_interval():
    low, high = asgd.of_one_more(np.exp([1.0, 2.0, 3.0]))
    half = 4.302652729911275 * (4 / 3) ** 0.5  # t of 2 degrees of freedom at 97.5 %, from a table
    assert (low, high) == (pytest.approx(np.exp(2 - half)), pytest.approx(np.exp(2 + half)))


def test_a_killed_learner_does_not_stop_the_run(cluster, job):
    real = asgd.run(job, 2, begun=lambda processes: os.kill(processes[0], signal.SIGKILL))
    assert real.died == 1
    assert sum(real.staleness) == 150
    assert real.curve[-1]["train_loss"] < real.curve[0]["train_loss"] / 2


SWEEP = """
from raysat import Sweep, fixed, mlp
sweep = Sweep(name="few", dataset="digits", n_train=64, n_test=16, widths=[8], batch_sizes=[4], iterations=30,
              models=[mlp(1)], stepsizes=[fixed(0.1)])
"""


def test_the_command_stores_curves_and_a_staleness_that_a_sweep_takes(tmp_path, bucket):
    """In a process of its own, for this one has joined a cluster already."""
    path = tmp_path / "few.py"
    path.write_text(SWEEP)
    command = [sys.executable, "-m", "raysat.asgd", str(path), "--learners", "2", "--results", bucket]
    wide = os.environ | {"COLUMNS": "1000"}
    said = subprocess.run(command, env=wide, capture_output=True, text=True, check=True).stdout
    (stored,) = (location(bucket) / "few").glob("asgd-*-2.json")
    assert str(stored) in said
    record = json.loads(stored.read_text())
    assert sum(record["staleness"]) == 30
    assert (record["learners"], record["died"]) == (2, 0)
    assert len(record["simulated"]) == asgd.SIMULATED
    iterations = [point["iteration"] for point in record["curve"]]
    assert (iterations[0], iterations[-1]) == (0, 30)
    assert all([point["iteration"] for point in curve] == iterations for curve in record["simulated"])
    ends = [curve[-1]["train_loss"] for curve in (record["curve"], *record["simulated"])]
    assert len(set(ends)) == len(ends)  # no simulated run has the real one's batches
    assert f"{ends[0]:.4g}" in said
    (text,) = re.findall(r"In a sweep: (asynchronous\(.*\))\.", said)
    training = sweepfile.value(text, "the command's last line")
    assert (training.learners, training) == (2, asynchronous(2, record["staleness"]))


def test_the_first_cell_is_plain_sgd_though_the_sweep_has_branches(tmp_path, monkeypatch):
    (tmp_path / "few.py").write_text(SWEEP)
    taken = []

    def no_further(job):
        taken.append(job)
        raise InputError("this is as far as the test goes.")

    monkeypatch.setattr(asgd, "compute_statistics", no_further)
    branched = ["--set", "branches=Branches(at=[30], samples=64)", "--set", "batch_sizes=[4,8]"]
    assert asgd.main([str(tmp_path / "few.py"), *branched, "--results", str(tmp_path)]) == 2
    (job,) = taken
    assert job.cell.training == PLAIN
    assert (job.cell.batch_size, job.cell.iterations) == (4, 30)


def test_batch_normalization_is_refused_before_any_work(tmp_path, capsys, monkeypatch):
    path = tmp_path / "few.py"
    path.write_text(SWEEP)
    for work in ("OnRay", "compute_statistics"):
        monkeypatch.delattr(asgd, work)
    for model in ("mlp(1,norm='batch')", "mlp(1,norm='batch',ghost=2)"):
        assert asgd.main([str(path), "--set", f"models=[{model}]", "--results", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("raysat: model mlp has batch normalization")
        assert "resnet(norm='group')" in said
    assert [entry.name for entry in tmp_path.iterdir()] == ["few.py"]


def test_a_network_with_batch_normalization_is_refused(make_cell):
    cell = make_cell(model=mlp(1, norm="batch"), stepsize=fixed(0.1))
    with pytest.raises(InputError, match="running averages"):
        asgd.run(Job("s", cell.init, cell), 2)
