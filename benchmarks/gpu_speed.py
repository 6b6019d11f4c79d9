"""The parts of `benchmarks/gpu.py` that time: engines, precision, trials and seeds that share a GPU."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

import torch
from gpu_bench import Bench, apart, copies, weights
from torch import Tensor, nn

from raysat import gpt, mlp, models, resnet
from raysat.losses import LOSSES
from raysat.saturation.formulas import exponent
from raysat.sgd.autograd import AutogradEngine
from raysat.sgd.cost import count
from raysat.sgd.engine import StackedEngine, build, set_precision
from raysat.sgd.evaluate import evaluate
from raysat.sgd.problem import Problem as TrainingProblem
from raysat.sgd.sampler import batches
from raysat.spec.cells import Model

BLOCK = 32
"""Steps of a call: those of a graph, so that a call of the graph engine is one launch."""


@dataclass(frozen=True)
class Problem:
    """What is trained; cf. `benchmarks/sgd.py`, whose networks these are at the sizes of a GPU.

    Attributes:
        title: As it is printed.
        model: The architecture.
        width: Its width.
        shape: Of one sample.
        outputs: C.
        n: Samples.
        sizes: Batch sizes.
        loss: The loss of a sample.
    """

    title: str
    model: Model
    width: int
    shape: tuple[int, ...]
    outputs: int
    n: int
    sizes: tuple[int, ...]
    loss: str = "mse"

    def on(self, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor, Tensor]:
        """The network at initialization, inputs and targets, on a device."""
        generator = torch.Generator().manual_seed(0)
        network = models.build(self.model, self.width, self.shape, self.outputs, seed=0).to(device, dtype)
        if self.loss == "cross_entropy":
            x, y = torch.randint(self.outputs, (2, self.n, *self.shape), generator=generator).to(device)
        else:
            x, y = (
                torch.randn(self.n, *shape, generator=generator).to(device, dtype)
                for shape in (self.shape, (self.outputs,))
            )
        return network, x, y


LARGE = (
    Problem("784-1000-1000-1000-10", mlp(3), 1000, (784,), 10, 8192, (1, 4096)),
    Problem("ResNet-28, width 16", resnet(), 16, (3, 32, 32), 10, 2048, (1, 1024)),
    Problem("NanoGPT 6 x 6 x 384", gpt(), 384, (256,), 65, 128, (1, 64), "cross_entropy"),
)
TINY = (
    Problem("8-8-8-8-2", mlp(3), 8, (8,), 2, 64, (1, 32)),
    Problem("ResNet-10, width 2", resnet(10), 2, (3, 4, 4), 2, 8, (1,)),
    Problem("NanoGPT 1 x 2 x 4", gpt(1, 2), 4, (4,), 5, 8, (1,), "cross_entropy"),
)


class Reading(nn.Module):
    """A network that copies a number to the host, which no graph can record."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """The network's outputs."""
        return self.network(x) * (1 + 0 * x.sum().item())


def engines(bench: Bench) -> None:
    """The products' rate; then for each network whether the engines agree, and how fast they are at each batch size."""
    peaks = {}
    for precision in ("full", "tf32", "bfloat16"):
        if precision == "tf32" and not bench.cuda:
            bench.skip("products in tf32")
            continue
        peaks[precision] = product_rate(bench, precision)
        bench.say(f"products in {precision}", f"{peaks[precision] / 1e12:.3g} TFLOP/s")
    for problem in bench.size(LARGE, TINY):
        with bench.attempt(f"{problem.title}: agreement"):
            agree(bench, problem)
        for b in problem.sizes:
            alone = None
            for engine, precision in contenders(bench, b):
                with bench.attempt(f"{problem.title}, b = {b}: {engine}, {precision}"):
                    alone = time_steps(bench, problem, b, engine, precision, peaks[precision], alone)
    set_precision("full", bench.device)
    if bench.cuda:
        with bench.attempt("a network that cannot be recorded"):
            not_recorded(bench)


def product_rate(bench: Bench, precision: str) -> float:
    """Operations a second of a large square product of random numbers: what is called the products' rate."""
    n, dtype = bench.size(8192, 128), torch.bfloat16 if precision == "bfloat16" else torch.float32
    set_precision("tf32" if precision == "tf32" else "full", bench.device)
    a, b, c = (torch.randn(n, n, device=bench.device, dtype=dtype) for _ in range(3))
    return 2 * n**3 * bench.rate(lambda: torch.mm(a, b, out=c))


def contenders(bench: Bench, b: int) -> list[tuple[str, str]]:
    """Engines and precisions: autograd first, which the others are compared with. At b = 1 launches set the pace."""
    if not bench.cuda:
        return [("autograd", "full"), ("auto", "full"), ("autograd", "bfloat16")]
    lower = [("graph", "tf32"), ("graph", "bfloat16")] if b > 1 else []
    return [("autograd", "full"), ("graph", "full"), *lower]


def time_steps(
    bench: Bench, problem: Problem, b: int, engine: str, precision: str, peak: float, alone: float | None
) -> float:
    """Say how fast an engine is; returns the rate of the first, to be compared with."""
    network, x, y = problem.on(bench.device)
    operations = b * count(network, x, y, LOSSES[problem.loss]).step
    set_precision("tf32" if precision == "tf32" else "full", bench.device)
    # A stepsize of zero would leave the update out; a real one would train on through all rounds.
    bfloat16 = precision == "bfloat16"
    taker = build(engine, TrainingProblem(network, x, y, LOSSES[problem.loss]), 1e-9, bfloat16=bfloat16)
    chosen = batches(0, 0, BLOCK, b, problem.n, device=str(bench.device))
    rate = bench.rate(lambda: taker.run(chosen), BLOCK)
    share = f"{rate:,.1f} it/s, {operations * rate / peak:.1%} of the products' rate"
    ratio = f", {rate / alone:.2f} times the first" if alone else ""
    bench.say(f"{problem.title}, b = {b}: {taker.name}, {precision}", share + ratio)
    return alone or rate


def agree(bench: Bench, problem: Problem) -> None:
    """Whether graph and autograd end in the same weights; 72 steps are two graphs and eight launched one by one."""
    engine = bench.size("graph", "auto")
    for dtype, most in ((torch.float64, 1e-9), (torch.float32, 1e-2)):  # a step too few would be 1.4e-2
        set_precision("full", bench.device)
        start, x, y = problem.on(bench.device, dtype)
        largest = problem.sizes[-1] if dtype == torch.float32 else min(problem.sizes[-1], 8)  # float64 may be slow
        for b in sorted({1, largest}):
            chosen = batches(0, 0, 2 * BLOCK + 8, b, problem.n, device=str(bench.device))
            one, other = copies(start, 2)
            AutogradEngine(TrainingProblem(other, x, y, LOSSES[problem.loss]), 0.01).run(chosen)
            taker = build(engine, TrainingProblem(one, x, y, LOSSES[problem.loss]), 0.01)
            taker.run(chosen)
            title = f"{problem.title}, b = {b}, {str(dtype).removeprefix('torch.')}"
            bench.check(f"{title}: weights of {taker.name} against autograd's", apart(one, other, start), most)
    if bench.cuda:
        torch.cuda.set_sync_debug_mode("error")  # what waits for the host raises
        try:
            taker.run(chosen)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        bench.holds(f"{problem.title}: copies to the host", "none", "none", True)


def not_recorded(bench: Bench) -> None:
    """A network that reads its inputs: `auto` goes on without a graph, on the stream on which it was."""
    network, x, y = replace(LARGE[0], width=64).on(bench.device)
    start = Reading(network)
    one, other = copies(start, 2)
    chosen = batches(0, 0, 2 * BLOCK, 8, len(x), device=str(bench.device))
    AutogradEngine(TrainingProblem(other, x, y, LOSSES["mse"]), 0.01).run(chosen)
    taker = build("auto", TrainingProblem(one, x, y, LOSSES["mse"]), 0.01)
    taker.run(chosen)
    bench.holds("a network that cannot be recorded", taker.name, "autograd", taker.name == "autograd")
    bench.check("a network that cannot be recorded: weights", apart(one, other, start), 1e-3)
    stream = torch.cuda.current_stream()
    bench.holds("the stream afterwards", stream, "the default", stream == torch.cuda.default_stream())


def precision(bench: Bench) -> None:
    """H of the same training in each precision; the loss is evaluated in full."""
    n, inputs, width, steps = bench.size(4096, 32), bench.size(784, 8), bench.size(512, 8), bench.size(320, 20)
    problem = Problem("", mlp(2), width, (inputs,), 10, n, (), "mse")
    start, x, _ = problem.on(bench.device)
    teacher = models.build(problem.model, width, (inputs,), 10, seed=1).to(bench.device)
    with torch.no_grad():
        y = torch.eye(10, device=bench.device)[teacher(x).argmax(1)]
    for b in bench.size((16, 256), (4,)):
        chosen, full = batches(0, 0, steps, b, n, device=str(bench.device)), None
        for precision, most in (("full", None), ("tf32", 0.01), ("bfloat16", 0.02)):
            title = f"b = {b}, {precision}"
            if precision == "tf32" and not bench.cuda:
                bench.skip(title)
                continue
            with bench.attempt(title):
                (network,) = copies(start, 1)
                set_precision("tf32" if precision == "tf32" else "full", bench.device)
                taker = build(
                    "auto", TrainingProblem(network, x, y, LOSSES["mse"]), 0.05, bfloat16=precision == "bfloat16"
                )
                taker.run(chosen)
                set_precision("full", bench.device)
                first, last = (evaluate(taken, x, y, LOSSES["mse"], classes=True).loss for taken in (start, network))
                h = exponent(first, last, steps)
                bench.say(f"{title}: h", f"{h:.6g}, loss {first:.4g} to {last:.4g}, by {taker.name}")
                full = full or h
                if most:
                    bench.check(f"{title}: h against full precision", abs(h / full - 1), most)


def packing(bench: Bench) -> None:
    """The same steps by several processes, first each in its turn and then all at once."""
    processes, b = bench.size(4, 2), bench.size(8, 2)
    context, pipes, workers = multiprocessing.get_context("spawn"), [], []
    for _ in range(processes):
        ours, theirs = context.Pipe()
        workers.append(context.Process(target=_packed, args=(theirs, bench.device, processes, b), daemon=True))
        workers[-1].start()
        theirs.close()
        pipes.append(ours)
    try:
        repeats = max(pipe.recv() for pipe in pipes)  # each has recorded its graph
        turns = [_together([pipe], repeats) for pipe in pipes]
        micro_batch = _together(pipes, repeats)
        ends = []
        for pipe in pipes:
            pipe.send(0)
            ends.append(pipe.recv())
    finally:
        for worker in workers:
            worker.join(timeout=10)
            worker.kill()
    steps = repeats * BLOCK
    rates = f"{processes * steps / sum(turns):,.0f} it/s in turn, {processes * steps / micro_batch:,.0f} at once"
    bench.say(f"{processes} processes, b = {b}", f"{rates}: a gain of {sum(turns) / micro_batch:.2f}")
    spread = max(abs(end - ends[0]).max() / abs(ends[0]).max() for end in ends)
    bench.check("how far their weights are apart", spread, 1e-4)


def _together(pipes: list[Connection], repeats: int) -> float:
    """Seconds from the word to the first worker to the answer of the last."""
    begun = time.perf_counter()
    for pipe in pipes:
        pipe.send(repeats)
    for pipe in pipes:
        pipe.recv()
    return time.perf_counter() - begun


def _packed(pipe: Connection, device: torch.device, processes: int, b: int) -> None:
    """A trial in a process of its own, with its share of the GPU's memory; takes calls of `BLOCK` steps when told."""
    torch.set_num_threads(1)
    bench = Bench("packing", device, print)
    if bench.cuda:
        torch.cuda.set_per_process_memory_fraction(1 / processes)
    network, x, y = Problem("", mlp(3), bench.size(256, 8), (64,), 10, 4096, ()).on(device)
    taker = build("auto", TrainingProblem(network, x, y, LOSSES["mse"]), 0.01)
    chosen = batches(0, 0, BLOCK, b, len(x), device=str(device))
    taker.run(chosen)
    pipe.send(max(1, round(bench.size(2.0, 0.02) / bench.seconds(lambda: taker.run(chosen)))))
    while repeats := pipe.recv():
        pipe.send(bench.seconds(lambda: taker.run(chosen), repeats))
    pipe.send(weights(network).numpy())


def stacked(bench: Bench) -> None:
    """Steps a second of all seeds: stacked, and one after the other by the engine that `auto` takes."""
    n, most, steps = bench.size(1024, 64), bench.size(8, 2), 2 * BLOCK
    for width in bench.size((32, 256), (4,)):
        problem = Problem("", mlp(3), width, (64,), 10, n, ())
        start, x, y = problem.on(bench.device)
        for b in bench.size((1, 32), (2,)):
            title = f"64 inputs, width {width}, b = {b}"
            with bench.attempt(title):
                chosen = [batches(seed, 0, steps, b, n, device=str(bench.device)) for seed in range(most)]
                common = x, y, LOSSES["mse"]
                networks, expected = copies(start, most), copies(start, most)
                StackedEngine([TrainingProblem(network, *common) for network in networks], [0.01] * most).run(*chosen)
                for network, batch in zip(expected, chosen, strict=True):
                    AutogradEngine(TrainingProblem(network, *common), 0.01).run(batch)
                far = max(apart(one, other, start) for one, other in zip(networks, expected, strict=True))
                bench.check(f"{title}: weights of {most} seeds against autograd's", far, 1e-3)
                auto = build("auto", TrainingProblem(copies(start, 1)[0], *common), 1e-9)
                alone = bench.rate(lambda auto=auto, chosen=chosen: auto.run(chosen[0]), steps)
                parts = [f"{auto.name} one by one {alone:,.0f} it/s"]
                for seeds in bench.size((3, 8), (2,)):
                    engine = StackedEngine(
                        [TrainingProblem(one, *common) for one in copies(start, seeds)], [1e-9] * seeds
                    )

                    def call(engine=engine, chosen=chosen, seeds=seeds):
                        return engine.run(*chosen[:seeds])

                    rate = seeds * bench.rate(call, steps)
                    parts.append(f"{seeds} stacked {rate:,.0f} ({rate / alone:.2f} times)")
                bench.say(title, ", ".join(parts))
