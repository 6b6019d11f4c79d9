"""Iterations per second of SGD: raysat's engines, a plain PyTorch loop, JAX's scan, and what the machine could do.

    python -W ignore benchmarks/sgd.py                     # all three networks, some ten minutes on two cores
    python -W ignore benchmarks/sgd.py --networks fc       # about four; with --quick under one
    python -W ignore benchmarks/sgd.py --threads 1

The networks are the paper's: fully connected 784-1000-1000-1000-10 on noise of MNIST's size, ResNet-28 of width 16 on
noise of CIFAR-10's, and NanoGPT of 6 layers, 6 heads and 384 channels on sequences of 256 tokens, in float32. Each
contender is a process of its own, on the same cores. They take turns: a round has one turn of each, a figure is the
median over rounds, and a ratio the median of the rounds' own ratios, so that what else the machine does falls on both.
raysat draws the batches' indices as a trial does, within its time; JAX, which is there for the fully-connected network
only, is handed them. Runs on the GPU where PyTorch finds one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from raysat import gpt, mlp, models, resnet
from raysat.losses import LOSSES
from raysat.spec.cells import Model

SIZES = (784, 1000, 1000, 1000, 10)
WEIGHTS = [before * after for before, after in pairwise(SIZES)]
ETA = 0.01
Steps = Callable[[int, int], None]


@dataclass(frozen=True)
class Network:
    """What is trained.

    Attributes:
        title: As it is printed.
        model: The architecture.
        width: Its width.
        input_shape: Of one sample.
        outputs: C.
        n: Samples.
        batch_sizes: Those at which the contenders are compared.
        loss: The loss of a sample.
        seconds: The least length of a turn.
    """

    title: str
    model: Model
    width: int
    input_shape: tuple[int, ...]
    outputs: int
    n: int
    batch_sizes: tuple[int, ...]
    loss: str = "mse"
    seconds: float = 0.6

    def build(self) -> torch.nn.Module:
        """The network at initialization."""
        return models.build(self.model, self.width, self.input_shape, self.outputs, seed=0).to(device())

    def samples(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, where they are used."""
        generator = torch.Generator().manual_seed(0)
        if self.loss == "cross_entropy":
            x, y = torch.randint(self.outputs, (2, self.n, *self.input_shape), generator=generator)
        else:
            x = torch.randn(self.n, *self.input_shape, generator=generator)
            y = torch.randn(self.n, self.outputs, generator=generator)
        return x.to(device()), y.to(device())

    def operations(self) -> float:
        """Floating-point operations of one sample's part in a step."""
        from raysat.sgd.cost import count

        return count(self.build(), *self.samples(), LOSSES[self.loss]).step


NETWORKS = {
    "fc": Network("784-1000-1000-1000-10", mlp(3), 1000, (784,), 10, 60_000, (1, 8, 64, 512, 4096)),
    "resnet": Network("ResNet-28, width 16", resnet(depth=28), 16, (3, 32, 32), 10, 2_000, (8, 128), seconds=0.1),
    "gpt": Network("NanoGPT 6 x 6 x 384", gpt(6, 6), 384, (256,), 65, 64, (1, 32), "cross_entropy", seconds=0.1),
}


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    if device().type == "cuda":
        torch.cuda.synchronize()


def chunk(network: Network, b: int) -> int:
    """Iterations between two returns to Python, a turn being a whole number of them."""
    return max(2, min(256, 4096 // b)) if network.seconds > 0.1 else 1


def raysat_engine(network: Network, engine: str, matmul: str | None = None) -> Steps:
    """One of raysat's engines, as a trial uses it."""
    from raysat.compute.matmul import VARIABLE
    from raysat.sgd.engine import Problem, build
    from raysat.sgd.sampler import Batches

    if matmul:
        os.environ[VARIABLE] = matmul
    x, y = network.samples()
    taker = build(engine, Problem(network.build(), x, y, LOSSES[network.loss]), ETA)
    drawn: dict[int, Batches] = {}
    taken = dict.fromkeys(network.batch_sizes, 0)

    def steps(b: int, count: int) -> None:
        if b not in drawn:
            drawn[b] = Batches(0, 1 << 40, b, network.n, "without_replacement", str(device()))
        turn = chunk(network, b)
        for _ in range(0, count, turn):
            taker.run(drawn[b].take(taken[b], turn))
            taken[b] += turn

    return steps


def pytorch(network: Network, loader: bool) -> Steps:
    """The loop of PyTorch's tutorials, with a DataLoader or with indices into the tensors."""
    x, y = network.samples()
    module, loss = network.build(), LOSSES[network.loss]
    optimizer = torch.optim.SGD(module.parameters(), lr=ETA)

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> None:
        optimizer.zero_grad()
        value = loss.total(module(inputs), targets) / len(inputs)
        value.backward()
        optimizer.step()

    def steps(b: int, count: int) -> None:
        if not loader:
            for _ in range(count):
                chosen = torch.randint(len(x), (b,), device=device())
                step(x[chosen], y[chosen])
            return
        done = 0
        while done < count:
            for inputs, targets in torch.utils.data.DataLoader(
                torch.utils.data.TensorDataset(x, y), batch_size=b, shuffle=True, drop_last=True
            ):
                step(inputs, targets)
                done += 1
                if done == count:
                    break

    return steps


def jax_scan(network: Network) -> Steps:
    """`jit(lax.scan)` over a chunk of iterations of the fully-connected network, the weights donated."""
    import jax
    import jax.numpy as jnp

    def forward(weights, x):
        for index, w in enumerate(weights):
            x = (x / w.shape[1] ** 0.5) @ w.T
            x = jnp.maximum(x, 0) if index < len(weights) - 1 else x
        return x

    def loss(weights, x, y):
        return ((forward(weights, x) - y) ** 2).sum() / (2 * len(x))

    def run(weights, x, y, indices):
        def step(weights, chosen):
            gradients = jax.grad(loss)(weights, x[chosen], y[chosen])
            return [w - ETA * g for w, g in zip(weights, gradients, strict=True)], None

        return jax.lax.scan(step, weights, indices)[0]

    run = jax.jit(run, donate_argnums=0)
    x, y = (jnp.asarray(data.cpu().numpy()) for data in network.samples())
    keys = jax.random.split(jax.random.PRNGKey(0), len(WEIGHTS))
    shapes = zip(keys, SIZES[1:], SIZES, strict=False)
    state = {"weights": [jax.random.normal(key, (after, before)) for key, after, before in shapes]}
    drawn: dict[int, object] = {}

    def steps(b: int, count: int) -> None:
        if b not in drawn:
            drawn[b] = jnp.asarray(torch.randint(network.n, (chunk(network, b), b)).numpy())
        for _ in range(0, count, chunk(network, b)):
            state["weights"] = run(state["weights"], x, y, drawn[b])
        jax.block_until_ready(state["weights"])

    return steps


def contenders(network: Network) -> dict[str, tuple[Callable[..., Steps], tuple]]:
    """Name to what makes its steps, and its arguments. The first is measured against all others."""
    from raysat.compute.matmul import Matmul, choose

    chosen = choose(torch.float32, device())
    found = {"raysat, auto": (raysat_engine, ("auto",))}
    if network is NETWORKS["fc"] or device().type == "cuda":
        found["raysat, autograd"] = raysat_engine, ("autograd",)
    if network is NETWORKS["fc"] and device().type == "cpu":
        others = [choice for choice in Matmul if choice is not chosen]
        found |= {f"raysat, fused, {choice.label}": (raysat_engine, ("fused", choice.label)) for choice in others}
    if network is not NETWORKS["fc"]:
        found["raysat, compiled"] = raysat_engine, ("compiled",)
    found |= {"PyTorch, DataLoader": (pytorch, (True,)), "PyTorch, tensors": (pytorch, (False,))}
    if network is NETWORKS["fc"] and find_spec("jax"):
        found["JAX, jit(scan)"] = (jax_scan, ())
    return found


def contender(pipe: Connection, make: Callable[..., Steps], arguments: tuple, network: Network, threads: int) -> None:
    """A contender's process: says when it is ready; answers each (b, seconds) it is sent with seconds per iteration."""
    limit_to(threads)
    steps = make(network, *arguments)
    pipe.send(None)
    rates: dict[int, float] = {}
    while (asked := pipe.recv()) is not None:
        b, seconds = asked
        turn = chunk(network, b)
        if b not in rates:  # compilation and the first use of buffers, then a guess at the pace
            steps(b, turn)
            rates[b] = timed(steps, b, turn)
        pipe.send(timed(steps, b, max(1, round(seconds / rates[b] / turn)) * turn))


def timed(steps: Steps, b: int, count: int) -> float:
    synchronize()
    begun = time.perf_counter()
    steps(b, count)
    synchronize()
    return (time.perf_counter() - begun) / count


def limit_to(threads: int) -> None:
    """Confine this process to its first cores, which JAX takes its threads from, and PyTorch to as many threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)


def best_of(function: Callable[[], object], seconds: float) -> float:
    """The shortest time of a call within some seconds: what the machine can do, not what it does on average."""
    function()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        synchronize()
        begun = time.perf_counter()
        function()
        synchronize()
        best = min(best, time.perf_counter() - begun)
    return best


def floors(seconds: float) -> tuple[dict[str, float], float, float]:
    """Operations per second of each library's product, and bytes per second of copies in caches and beyond."""
    from raysat.compute.matmul import Matmul, Products, choose, tune_malloc

    tune_malloc()
    libraries = [Matmul.TORCH]
    if choose(torch.float32, device()).onednn:
        libraries.append(Matmul.ONEDNN)
    rates = dict.fromkeys((library.label for library in libraries), 0.0)
    for rows, size in ((4096, 1000), (512, 1000), (2048, 2048)):
        a, w, out = (torch.randn(shape, device=device()) for shape in ((rows, size), (size, size), (rows, size)))
        for library in libraries:
            for product in (Products(library).forward, Products(library).backward):
                (call,) = product(a, w, 1.0, out)
                rate = 2 * rows * size**2 / best_of(call, seconds)
                rates[library.label] = max(rates[library.label], rate)
    bandwidths = []
    for numel in (sum(WEIGHTS), 1 << 27):
        source, target = torch.ones(numel, device=device()), torch.ones(numel, device=device())
        bandwidths.append(8 * numel / best_of(lambda s=source, t=target: t.copy_(s), seconds))
    return rates, *bandwidths


def machine() -> str:
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        entries = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        name = f"{entries.get('model name', name)}, family {entries.get('cpu family')}, model {entries.get('model')}"
    if device().type == "cuda":
        name += f", {torch.cuda.get_device_name()}"
    versions = [f"Python {platform.python_version()}"]
    for package in ("torch", "jax", "raysat"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"no {package}")
    return f"{name}; {os.cpu_count()} cores; {', '.join(versions)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of every contender")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="three rounds, the fully-connected network alone")
    options = parser.parse_args()
    if options.quick:
        options.networks, options.rounds = ["fc"], 3

    limit_to(options.threads)
    print(f"{machine()}; {options.threads} threads; load of the machine before the run {os.getloadavg()[0]:.1f}")
    rates, cached, memory = floors(0.3)
    peak = max(rates.values())
    print("product: " + ", ".join(f"{label} {rate / 1e9:.0f} GFLOP/s" for label, rate in rates.items()))
    print(f"copy: {cached / 1e9:.0f} GB/s (11 MB), {memory / 1e9:.0f} GB/s (0.5 GB); read and write both counted")
    for name in options.networks:
        network = NETWORKS[name]
        times = compare(network, options.rounds, options.threads)
        operations = network.operations()
        report(network, times, {b: b * operations for b in network.batch_sizes}, peak, cached)


def compare(network: Network, rounds: int, threads: int) -> dict[str, dict[int, list[float]]]:
    """Seconds per iteration of each contender, batch size and round."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    for name, (make, arguments) in contenders(network).items():
        pipes[name], end = context.Pipe()
        work = (end, make, arguments, network, threads)
        processes.append(context.Process(target=contender, args=work, daemon=True))
        processes[-1].start()
    times: dict[str, dict[int, list[float]]] = {name: {b: [] for b in network.batch_sizes} for name in pipes}
    for pipe in pipes.values():
        pipe.recv()
    for b in network.batch_sizes:
        for _ in range(rounds):
            for name, pipe in pipes.items():
                pipe.send((b, network.seconds))
                times[name][b].append(pipe.recv())
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(None)
        process.join()
    return times


def report(
    network: Network,
    times: dict[str, dict[int, list[float]]],
    operations: dict[int, float],
    peak: float,
    cached: float,
) -> None:
    """Print the tables, in Markdown."""
    sizes = network.batch_sizes
    print(f"\n{network.title}")

    def table(title: str, rows: dict[str, list[str]]) -> None:
        print(f"\n| {title} | " + " | ".join(f"b = {b}" for b in sizes) + " |")
        print("| --- |" + " ---: |" * len(sizes))
        for name, entries in rows.items():
            print(f"| {name} | " + " | ".join(entries) + " |")

    def per_second(rate):
        return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"

    rows = {name: [per_second(1 / statistics.median(runs[b])) for b in sizes] for name, runs in times.items()}
    rows["floor: all products at the peak"] = [per_second(peak / operations[b]) for b in sizes]
    if network is NETWORKS["fc"]:
        rows["floor: one copy of the weights"] = [per_second(cached / (8 * sum(WEIGHTS))) for b in sizes]
    table("iterations per second", rows)

    first, *others = times
    table(
        f"{first}, against",
        {
            name: [
                f"{statistics.median(y / x for x, y in zip(times[first][b], times[name][b], strict=True)):.2f}"
                for b in sizes
            ]
            for name in others
        },
    )
    share = {name: [f"{operations[b] / statistics.median(times[name][b]) / peak:.0%}" for b in sizes] for name in times}
    table("share of the product's peak", share)
    spread = {name: [f"{max(runs[b]) / min(runs[b]):.2f}" for b in sizes] for name, runs in times.items()}
    table("slowest turn over fastest", spread)


if __name__ == "__main__":
    main()
