import copy
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from raysat import mlp, models
from raysat.compute import micro_batch as memory
from raysat.compute.micro_batch import kept_bytes, max_micro_batch, out_of_memory, retry_on_oom
from raysat.losses import LOSSES
from raysat.sgd import fused
from raysat.sgd.autograd import AutogradEngine
from raysat.sgd.engine import build
from raysat.sgd.evaluate import evaluate
from raysat.sgd.problem import Problem
from raysat.sgd.sampler import batches

MSE = LOSSES["mse"]
N = 20
FULL = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")


def problem():
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(N, size, generator=generator, dtype=torch.float64) for size in (12, 6))


def network_of():
    return models.build(mlp(2), 24, (12,), 6, seed=0).double()


def short_of_memory(network, most):
    """The network, in which a forward pass of more than so many samples finds no memory."""

    def check(module, inputs):
        if len(inputs[0]) > most:
            raise FULL

    network.register_forward_pre_hook(check)
    return network


def difference(a, b):
    return max((p - q).abs().max().item() for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("micro_batch", [1, 3, 7, N])
def test_the_result_does_not_depend_on_the_parts(micro_batch):
    x, y = problem()
    whole, parts, chosen = network_of(), network_of(), batches(0, 0, 50, 17, N)
    AutogradEngine(Problem(whole, x, y, MSE), 0.1).run(chosen)
    AutogradEngine(Problem(parts, x, y, MSE), 0.1, micro_batch).run(chosen)
    assert difference(whole, parts) < 1e-12


@pytest.mark.parametrize(("b", "most", "ends_at"), [(17, 5, 5), (17, 1, 1), (16, 8, 8), (4, 9, N)])
def test_where_memory_runs_out_the_parts_are_halved_and_no_step_is_lost(b, most, ends_at):
    x, y = problem()
    whole, parts, chosen = network_of(), short_of_memory(network_of(), most), batches(0, 0, 50, b, N)
    AutogradEngine(Problem(whole, x, y, MSE), 0.1).run(chosen)
    engine = AutogradEngine(Problem(parts, x, y, MSE), 0.1)
    engine.run(chosen)
    assert engine.micro_batch == ends_at
    assert difference(whole, parts) < 1e-12


@pytest.mark.parametrize(("micro_batch", "most", "ends_at"), [(8, N, 8), (N, 9, 8), (5, 4, 4)])
def test_ghost_batches_stay_together_and_are_averaged_once(micro_batch, most, ends_at):
    x, y = problem()

    def network():
        return models.build(mlp(2, norm="batch", ghost=4), 24, (12,), 6, seed=0).double()

    whole, parts, chosen = network(), short_of_memory(network(), most), batches(0, 0, 10, 16, N)
    AutogradEngine(Problem(whole, x, y, MSE), 0.1).run(chosen)
    engine = AutogradEngine(Problem(parts, x, y, MSE), 0.1, micro_batch)
    engine.run(chosen)
    assert engine.micro_batch == ends_at or most == N
    assert difference(whole, parts) < 1e-12
    for (name, one), (_, other) in zip(whole.named_buffers(), parts.named_buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12, msg=name)
    assert max_micro_batch(network(), x, y, MSE) % 4 == 0


def test_the_fused_engine_leaves_what_does_not_fit_to_autograd(monkeypatch):
    x, y = problem()
    whole, small, full, chosen = network_of(), network_of(), network_of(), batches(0, 0, 50, 17, N)
    AutogradEngine(Problem(whole, x, y, MSE), 0.1).run(chosen)
    engine = build("auto", Problem(small, x, y, MSE), 0.1, micro_batch=4)
    engine.run(chosen)
    assert (engine.name, engine.micro_batch) == ("autograd", 4)
    assert difference(whole, small) < 1e-12

    def no_memory(*_):
        raise FULL

    monkeypatch.setattr(fused, "_Block", no_memory)
    engine = build("auto", Problem(full, x, y, MSE), 0.1)
    engine.run(chosen)
    assert (engine.name, engine.micro_batch) == ("autograd", 8)
    assert difference(whole, full) < 1e-12


def test_an_error_that_is_not_of_memory_is_not_tried_again():
    calls = []

    def function(micro_batch):
        calls.append(micro_batch)
        raise RuntimeError("shapes do not fit") if len(calls) > 1 else FULL

    with pytest.raises(RuntimeError, match="shapes"):
        retry_on_oom(function, 9)
    assert calls == [9, 5]
    with pytest.raises(RuntimeError, match="can't allocate"):
        retry_on_oom(lambda micro_batch: (_ for _ in ()).throw(FULL), 4)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))


def test_a_batch_whose_samples_are_coupled_is_never_taken_in_parts():
    x, y = problem()
    network = nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6)).double()
    expected = copy.deepcopy(network)
    assert max_micro_batch(network, x, y, MSE) == N
    chosen = batches(0, 0, 5, 8, N)
    AutogradEngine(Problem(expected, x, y, MSE), 0.1).run(chosen)
    AutogradEngine(Problem(network, x, y, MSE), 0.1, micro_batch=2).run(chosen)
    assert difference(network, expected) == 0
    with pytest.raises(RuntimeError, match="can't allocate"):
        AutogradEngine(Problem(short_of_memory(network, 4), x, y, MSE), 0.1).run(chosen)


def test_an_evaluation_takes_smaller_chunks_where_memory_runs_out():
    x, y = problem()
    expected = evaluate(network_of(), x, y, MSE, classes=True)
    found = evaluate(short_of_memory(network_of(), 3), x, y, MSE, classes=True)
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    assert found.accuracy == expected.accuracy


def test_what_is_kept_for_the_backward_pass_is_counted():
    x, y = torch.randn(5, 100), torch.randn(5, 7)
    network = nn.Sequential(nn.Linear(100, 40), nn.Tanh(), nn.Linear(40, 7))
    # tanh keeps its output, which is the next layer's input; the square keeps the residual
    assert kept_bytes(network, x, y, MSE) == 4 * 5 * (40 + 7)


@pytest.mark.parametrize(("free", "expected"), [(0, 1), (1 << 20, 1024), (1 << 30, 1 << 20)])
def test_what_fits_is_a_power_of_two_of_the_free_memory(monkeypatch, free, expected):
    x, y = torch.randn(5, 100), torch.randn(5, 7)
    network = nn.Sequential(nn.Linear(100, 40), nn.Tanh(), nn.Linear(40, 7))  # 188 bytes a sample
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    assert max_micro_batch(network, x, y, MSE) == expected


def test_free_memory_is_no_more_than_the_machine_has():
    pages, size = memory.os.sysconf("SC_PHYS_PAGES"), memory.os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory.free_bytes(torch.device("cpu")) <= pages * size


@pytest.mark.skipif(sys.platform != "linux", reason="limits the process's memory as Linux does")
def test_a_process_that_runs_out_of_memory_goes_on_in_parts():
    """One step of a batch for which there is room in the address space only in parts."""
    script = """
        import resource, torch
        from torch import nn
        from raysat.losses import LOSSES
        from raysat.sgd.engine import AutogradEngine, Problem

        torch.set_num_threads(1)
        n, width = 4096, 4096
        x, y = torch.ones(n, 8), torch.ones(n, 1)
        layers = [nn.Tanh() for _ in range(6)]
        network = nn.Sequential(nn.Linear(8, width), *layers, nn.Linear(width, 1))
        engine = AutogradEngine(Problem(network, x, y, LOSSES["mse"]), 1e-6)
        engine.run(torch.arange(64)[None])
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)  # all at once keeps 450 MiB
        engine.run(torch.arange(n)[None])
        print(engine.micro_batch)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 64 <= int(done.stdout) <= 2048
