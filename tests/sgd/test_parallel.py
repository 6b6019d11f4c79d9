"""Trials of several ranks: real processes that sum their gradients, and that are gone with the trial."""

import dataclasses
import multiprocessing
import os
import select
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from raysat.errors import InputError
from raysat.losses import LOSSES
from raysat.sgd.autograd import AutogradEngine
from raysat.sgd.parallel import ParallelEngine
from raysat.sgd.problem import Problem
from raysat.sgd.sampler import batches
from raysat.spec.cells import Model
from raysat.trial.initial import compute_statistics
from raysat.trial.job import Job
from raysat.trial.train import run_trial

N = 20
LOSS = LOSSES["mse"]


def problem(dtype=torch.float64):
    """Made by hand rather than by a fixture: another process runs it too."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(N, size, generator=generator, dtype=dtype) for size in (5, 2))
    network = nn.Sequential(nn.Linear(5, 8, dtype=dtype), nn.Tanh(), nn.Linear(8, 2, dtype=dtype))
    for parameter in network.parameters():
        nn.init.normal_(parameter, generator=generator)
    return network, x, y


def gone(process: int, seconds: float = 30) -> bool:
    """Whether a process has ended, or does within some seconds."""
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_two_ranks_give_the_loss_curve_of_one(make_cell, dtype):
    cell = make_cell(batch_size=33, iterations=100, evaluations=30, dtype=dtype, model=Model("mlp", (("depth", 2),)))
    job = Job(sweep="s", cell=cell, init=cell.init, engine="autograd")
    job = dataclasses.replace(job, statistics=compute_statistics(job))
    row, one, _ = run_trial(job)
    row_of_two, two, _ = run_trial(dataclasses.replace(job, ranks=2))
    assert (row["engine"], row_of_two["engine"]) == ("autograd", "parallel")
    assert one[-1]["iteration"] == 100
    assert one[-1]["train_loss"] < 0.5 * one[0]["train_loss"]
    assert [point["train_loss"] for point in two] == pytest.approx([point["train_loss"] for point in one], rel=1e-6)
    assert multiprocessing.active_children() == []


def test_shares_may_differ_in_size_and_be_empty():
    network, x, y = problem()
    reference, _, _ = problem()
    engine = ParallelEngine(Problem(network, x, y, LOSS), 0.05, ranks=3)
    alone = AutogradEngine(Problem(reference, x, y, LOSS), 0.05)
    for b in (1, 2, 7, N):
        chosen = batches(0, 0, 13, b, N)
        engine.run(chosen)
        alone.run(chosen)
    for parameter, expected in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-12, atol=1e-12)


def test_a_rank_that_dies_fails_the_trial():
    network, x, y = problem()
    engine = ParallelEngine(Problem(network, x, y, LOSS), 0.05, ranks=2)
    engine.run(batches(0, 0, 1, 4, N))
    (child,) = multiprocessing.active_children()
    child.kill()
    child.join()
    with pytest.raises((RuntimeError, OSError)):
        engine.run(batches(0, 1, 2, 4, N))
    del engine
    engine = ParallelEngine(Problem(network, x, y, LOSS), 0.05, ranks=2)  # a process can have the next trial's after it
    engine.run(batches(0, 0, 1, 4, N))


def test_a_trial_that_is_killed_takes_its_ranks_with_it():
    code = """if True:
        import multiprocessing, sys
        import test_parallel as here
        network, x, y = here.problem()
        engine = here.ParallelEngine(here.Problem(network, x, y, here.LOSS), 0.05, ranks=2)
        engine.run(here.batches(0, 0, 1, 4, here.N))
        print(multiprocessing.active_children()[0].pid, flush=True)
        sys.stdin.read()
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    trial = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, env=environment)
    rank = int(trial.stdout.readline())
    trial.send_signal(signal.SIGKILL)
    trial.communicate()
    assert gone(rank)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_for_each_rank_or_the_remedy():
    network, x, y = (part.to("cuda") for part in problem(torch.float32))
    with pytest.raises(InputError, match="gpus_per_trial="):
        ParallelEngine(Problem(network, x, y, LOSS), 0.05, ranks=torch.cuda.device_count() + 1)


def test_a_network_that_couples_samples_is_refused():
    network = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    _, x, y = problem(torch.float32)
    with pytest.raises(InputError, match="ranks_per_trial=1"):
        ParallelEngine(Problem(network, x, y, LOSS), 0.05, ranks=2)


def test_a_rank_that_cannot_begin_is_an_error():
    class Local(nn.Linear):  # of a function, which no other process can import
        pass

    Local.__qualname__, Local.__module__ = "Local", "my_module_that_is_gone"
    sys.modules["my_module_that_is_gone"] = type(sys)("my_module_that_is_gone")
    sys.modules["my_module_that_is_gone"].Local = Local
    network, x, y = Local(3, 2), torch.zeros(4, 3), torch.zeros(4, 2)
    with pytest.raises(RuntimeError, match="rank 1 ended with exit code 1 before it began"):
        ParallelEngine(Problem(network, x, y, LOSS), 0.05, ranks=2)
