"""The parts of `benchmarks/gpu.py` that check: statistics, memory that runs out, NCCL, whole trials."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from gpu_bench import Bench, apart, copies
from torch import Tensor, nn

from raysat import gpt, mlp, models, ntk_statistics, theory
from raysat.compute.micro_batch import max_micro_batch, sample_bytes
from raysat.losses import LOSSES
from raysat.ntk import NTKStatistics
from raysat.sgd.autograd import AutogradEngine
from raysat.sgd.engine import build, set_precision
from raysat.sgd.parallel import ParallelEngine
from raysat.sgd.problem import Problem
from raysat.sgd.sampler import batches
from raysat.spec.cells import Cell, Initialization

TOLERANCES = {torch.float64: (1e-9, 1e-6), torch.float32: (1e-4, 2e-4)}
"""Of each type the `k_tolerance` that is asked for, and how far a statistic may be from the CPU's in float64."""


class Encoder(nn.Module):
    """PyTorch's own encoder over sequences, and a linear layer of the mean over positions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(inputs, 2, 2 * inputs, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.last = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: [n, L, inputs] to [n, outputs]."""
        return self.last(self.encoder(x).mean(1))


class Recurrent(nn.Module):
    """PyTorch's own LSTM over sequences, and a linear layer of its last output."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, 2 * inputs, batch_first=True)
        self.last = nn.Linear(2 * inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: [n, L, inputs] to [n, outputs]."""
        return self.last(self.lstm(x)[0][:, -1])


def cases(bench: Bench) -> Iterator[tuple[str, nn.Module, Tensor, Tensor, str]]:
    """Each network with its name, inputs, targets and loss, in float64 on the CPU."""
    torch.manual_seed(0)
    n, many, c, width = bench.size(256, 6), bench.size(32, 4), bench.size(10, 3), bench.size(256, 8)
    y = torch.randn(n, c)
    yield "mlp", models.build(mlp(3), width, (64,), c, 0).double(), torch.randn(n, 64).double(), y.double(), "mse"
    side, k = bench.size(16, 6), bench.size(16, 4)
    convolutions = nn.Conv2d(3, k, 3, padding=1), nn.ReLU(), nn.Conv2d(k, k, 3, stride=2), nn.ReLU(), nn.Flatten()
    conv = nn.Sequential(*convolutions, nn.Linear(k * ((side - 3) // 2 + 1) ** 2, c))
    yield "conv net", conv.double(), torch.randn(n, 3, side, side).double(), y.double(), "mse"
    length, vocabulary, channels = bench.size(16, 4), bench.size(65, 5), bench.size(64, 4)
    tokens = torch.randint(vocabulary, (2, many, length))
    yield "gpt", models.build(gpt(2, 2), channels, (length,), vocabulary, 0).double(), *tokens, "cross_entropy"
    x, y = torch.randn(many, length, channels).double(), torch.randn(many, c).double()
    yield "nn.TransformerEncoder", Encoder(channels, c).double(), x, y, "mse"
    yield "nn.LSTM", Recurrent(channels, c).double(), x, y, "mse"


def statistics(bench: Bench) -> None:
    """Each network's statistics on the device in both types against the CPU's in float64; then a large one's time."""
    for name, network, x, y, loss in cases(bench):
        expected = None
        with bench.attempt(f"{name}, on the CPU"):
            expected, took = _timed(bench, torch.device("cpu"), network, x, y, loss)
        if expected is None:
            continue
        for dtype in TOLERANCES:
            title = f"{name}, {str(dtype).removeprefix('torch.')}"
            with bench.attempt(title):
                set_precision("full", bench.device)
                found, here = _timed(bench, bench.device, network.to(dtype), x, y, loss)
                _compare(bench, title, found, expected, dtype)
                bench.say(f"{title}: seconds", f"{here:.2f}, of the CPU in float64 {took:.2f}")
        if bench.cuda and loss == "mse":
            title = f"{name}, float32, where the caller allows TF32"
            with bench.attempt(title):
                set_precision("tf32", bench.device)
                found, _ = _timed(bench, bench.device, network.float(), x, y, loss)
                _compare(bench, title, found, expected, torch.float32)
                left = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
                bench.holds(f"{title}: what is allowed afterwards", left, "as before", left == (True, True))
    set_precision("full", bench.device)
    n, width, inputs = bench.size(60_000, 64), bench.size(1000, 8), bench.size(784, 8)
    title = f"mlp {inputs}-{width}-{width}-{width}-10, n = {n}, float32"
    with bench.attempt(title):
        large = models.build(mlp(3), width, (inputs,), 10, 0)
        x, y = torch.randn(n, inputs), torch.randn(n, 10)
        found, took = _timed(bench, bench.device, large, x, y, "mse", tolerance=1e-3)
        bench.say(title, f"{took:.2f} s, gamma {found.gamma:.4g}, k_op {found.k_op:.4g}, method {found.method}")


def _timed(
    bench: Bench, device: torch.device, network: nn.Module, x: Tensor, y: Tensor, loss: str, tolerance: float = 0.0
) -> tuple[NTKStatistics, float]:
    """The statistics of a copy of the network on a device, in the network's type, and the seconds that they took."""
    weight = next(network.parameters())
    moved = copy.deepcopy(network).to(device)
    x, y = (part.to(device, weight.dtype if part.is_floating_point() else part.dtype) for part in (x, y))
    bench.wait()
    begun = time.perf_counter()
    tolerance = tolerance or TOLERANCES[weight.dtype][0]
    found = ntk_statistics(moved, x, y, loss=loss, k_tolerance=tolerance)
    bench.wait()
    return found, time.perf_counter() - begun


def _compare(bench: Bench, title: str, found: NTKStatistics, wanted: NTKStatistics, dtype: torch.dtype) -> None:
    for name in ("gamma", "k_op", "noise_scale"):
        expected = getattr(wanted, name)
        bench.check(f"{title}: {name}", abs(getattr(found, name) - expected) / abs(expected), TOLERANCES[dtype][1])


@contextmanager
def short_of_memory(bench: Bench, network: nn.Module, room: int, each: int) -> Iterator[None]:
    """Only so many bytes more may be taken: of the GPU in earnest; on a CPU too large a forward pass says so."""
    if bench.cuda:
        gc.collect()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(bench.device).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + room) / total)
    else:

        def check(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if len(inputs[0]) > room // each:
                raise torch.OutOfMemoryError

        handle = network.register_forward_pre_hook(check)
    try:
        yield
    finally:
        if bench.cuda:
            torch.cuda.set_per_process_memory_fraction(1.0)
        else:
            handle.remove()


def memory(bench: Bench) -> None:
    """Steps of a batch for a third of which there is room: the parts are halved, and the steps are those of parts."""
    n, width, loss = bench.size(8192, 64), bench.size(4096, 8), LOSSES["mse"]
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(8, width), *(nn.Tanh() for _ in range(6)), nn.Linear(width, 1)).to(bench.device)
    x, y = (torch.randn(n, size, device=bench.device) for size in (8, 1))
    each = sample_bytes(start, x, y, loss)
    chosen = torch.arange(n, device=bench.device).repeat(32, 1)  # as many steps as a graph has
    expected, warm = copies(start, 2)
    AutogradEngine(Problem(expected, x, y, loss), 1e-3, micro_batch=n // 16).run(chosen)
    AutogradEngine(Problem(warm, x, y, loss), 1e-3).run(chosen[:1, : n // 16])
    bench.say("a batch keeps for its backward pass", f"{n * each / 2**20:.1f} MiB, and may take a third of that")
    for engine in ("autograd", "graph"):
        if engine == "graph" and not bench.cuda:
            bench.skip(engine)
            continue
        with bench.attempt(engine):
            (network,) = copies(start, 1)
            with short_of_memory(bench, network, n * each // 3, each):
                taker = build(engine, Problem(network, x, y, loss), 1e-3)
                taker.run(chosen)
                bench.holds(
                    f"{engine}: samples at once", taker.micro_batch, f"1 to {n // 2}", 1 <= taker.micro_batch <= n // 2
                )
                bench.holds(f"{engine}: goes by the name of", taker.name, engine, taker.name == engine)
            bench.check(f"{engine}: weights against those of small parts", apart(network, expected, start), 1e-3)
    if not bench.cuda:
        bench.skip("samples that are said to fit")
        return
    with bench.attempt("samples that are said to fit"):
        (network,) = copies(start, 1)
        with short_of_memory(bench, network, n * each // 3, each):
            fits = max_micro_batch(network, x, y, loss)
            taker = build("autograd", Problem(network, x, y, loss), 1e-3, micro_batch=fits)
            taker.run(chosen)
            bench.holds(
                "samples that are said to fit", fits, f"and do: {taker.micro_batch}", taker.micro_batch == fits < n
            )


def nccl(bench: Bench) -> None:
    """One rank against autograd: the same steps, through NCCL's sum of one."""
    n, b, width = bench.size(4096, 20), bench.size(512, 8), bench.size(1000, 8)
    x, y = (torch.randn(n, size, device=bench.device) for size in (64, 10))
    start = models.build(mlp(3), width, (64,), 10, 0).to(bench.device)
    chosen = batches(0, 0, 64, b, n, device=str(bench.device))
    one, other = copies(start, 2)
    common = x, y, LOSSES["mse"]
    alone = AutogradEngine(Problem(other, *common), 0.01)
    alone.run(chosen)
    parallel = ParallelEngine(Problem(one, *common), 0.01, ranks=1)
    backend, wanted = torch.distributed.get_backend(), bench.size("nccl", "gloo")
    bench.holds("backend", backend, wanted, backend == wanted)
    parallel.run(chosen)
    bench.check("weights against autograd's", apart(one, other, start), 1e-5)
    with_it, without = (bench.rate(lambda taker=taker: taker.run(chosen), len(chosen)) for taker in (parallel, alone))
    bench.say(f"b = {b}", f"{with_it:,.1f} it/s, autograd {without:,.1f}")
    del parallel
    gc.collect()
    left = torch.distributed.is_initialized()
    bench.holds("a process group afterwards", left, "False", not left)


def trial(bench: Bench) -> None:
    """Statistics and training as a worker does them, on the linear data, here and on the CPU."""
    try:
        from raysat.trial.initial import compute_statistics
        from raysat.trial.job import Job
        from raysat.trial.packing import trials_at_once
        from raysat.trial.train import run_trial
    except ModuleNotFoundError as error:  # rows need Arrow
        bench.skip("all", f"needs {error.name}")
        return
    width, iterations = bench.size(256, 8), bench.size(500, 40)
    fields = {"k_samples": 256, "k_tolerance": 1e-4, "seed": 0, "width": width, "n": 256, "n_test": 0}
    first = Initialization("linear", "none", model=mlp(2), dtype="float64", **fields)
    for dtype, most in (("float64", 1e-8), ("float32", 1e-4)):
        init = replace(first, dtype=dtype)
        cell = Cell(init, 8, theory(0.25), iterations, "without_replacement", 12, None)
        with bench.attempt(dtype):
            ends = []
            for gpus in (0, None):
                job = Job("gpu", init, cell, gpus=gpus if bench.cuda else 0, threads=torch.get_num_threads())
                job = replace(job, statistics=compute_statistics(job))
                ends.append((job.statistics, *run_trial(job)))
            (_, expected, curve, _), (measured, row, other, _) = ends
            bench.check(f"{dtype}: h against the CPU's", abs(row["h"] / expected["h"] - 1), most)
            points = zip(curve, other, strict=True)
            far = max(abs(a["train_loss"] - b["train_loss"]) / a["train_loss"] for a, b in points)
            bench.check(f"{dtype}: the loss curve", far, 100 * most)  # h is of logarithms
            wanted = bench.size("graph", "fused")
            bench.holds(f"{dtype}: engine", row["engine"], wanted, row["engine"] == wanted)
            rates = [f"{found['steps_per_second']:,.0f}" for found in (row, expected)]
            bench.say(f"{dtype}: steps a second", f"{rates[0]}, CPU {rates[1]}")
            if bench.cuda:
                launch, sample = measured["launch_seconds"], measured["sample_seconds"]
                share = trials_at_once(cell, measured)
                bench.say(f"{dtype}: pace", f"launch {launch:.2e} s, sample {sample:.2e} s, {share} trials at once")
