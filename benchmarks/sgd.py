"""Iterations per second of SGD: raysat's engines, a plain PyTorch loop, JAX's scan, and what the machine could do.

    python benchmarks/sgd.py                  # about five minutes on two cores; --quick: under one
    python benchmarks/sgd.py --threads 1

The network is the paper's, fully connected 784-1000-1000-1000-10, the data are noise of MNIST's size, in float32. Each
contender is a process of its own, on the same cores. They take turns: a round has one turn of each, a figure is the
median over rounds, and a ratio the median of the rounds' own ratios, so that what else the machine does falls on both.
raysat draws the batches' indices as a trial does, for up to 256 iterations at once; JAX is handed them. Runs on the GPU
where PyTorch finds one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path

import torch

SIZES = (784, 1000, 1000, 1000, 10)
WEIGHTS = [before * after for before, after in pairwise(SIZES)]
ETA = 0.01
Steps = Callable[[int, int], None]


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    if device().type == "cuda":
        torch.cuda.synchronize()


def chunk(b: int) -> int:
    """Iterations between two returns to Python, a turn being a whole number of them."""
    return max(2, min(256, 4096 // b))


def samples(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, SIZES[0], generator=generator), torch.randn(n, SIZES[-1], generator=generator)
    return x.to(device()), y.to(device())


def raysat_engine(n: int, engine: str, matmul: str | None = None) -> Steps:
    """One of raysat's engines, as a trial uses it."""
    from raysat.losses import LOSSES
    from raysat.models.mlp import MLP
    from raysat.sgd.engine import build
    from raysat.sgd.matmul import VARIABLE
    from raysat.sgd.sampler import batches

    if matmul:
        os.environ[VARIABLE] = matmul
    x, y = samples(n)
    taker = build(engine, MLP(1000, SIZES[0], SIZES[-1]).to(device()), x, y, LOSSES["mse"], ETA)
    drawn: dict[int, tuple[torch.Tensor, ...]] = {}

    def steps(b: int, count: int) -> None:
        for _ in range(0, count, chunk(b)):
            if not drawn.get(b):
                at_once = max(chunk(b), min(256, (1 << 16) // b))  # as in raysat.trial
                drawn[b] = batches(0, 0, at_once, b, n, device=str(device())).split(chunk(b))
            chosen, *drawn[b] = drawn[b]
            taker.run(chosen)

    return steps


def pytorch(n: int, loader: bool) -> Steps:
    """The loop of PyTorch's tutorials, with a DataLoader or with indices into the tensors."""
    from raysat.models.mlp import MLP

    x, y = samples(n)
    network = MLP(1000, SIZES[0], SIZES[-1]).to(device())
    optimizer = torch.optim.SGD(network.parameters(), lr=ETA)

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss = (network(inputs) - targets).square().sum() / (2 * len(inputs))
        loss.backward()
        optimizer.step()

    def steps(b: int, count: int) -> None:
        if not loader:
            for _ in range(count):
                chosen = torch.randint(n, (b,), device=device())
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


def jax_scan(n: int) -> Steps:
    """`jit(lax.scan)` over a chunk of iterations, the weights donated."""
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
    x, y = (jnp.asarray(data.cpu().numpy()) for data in samples(n))
    keys = jax.random.split(jax.random.PRNGKey(0), len(WEIGHTS))
    shapes = zip(keys, SIZES[1:], SIZES, strict=False)
    state = {"weights": [jax.random.normal(key, (after, before)) for key, after, before in shapes]}
    drawn: dict[int, object] = {}

    def steps(b: int, count: int) -> None:
        if b not in drawn:
            drawn[b] = jnp.asarray(torch.randint(n, (chunk(b), b)).numpy())
        for _ in range(0, count, chunk(b)):
            state["weights"] = run(state["weights"], x, y, drawn[b])
        jax.block_until_ready(state["weights"])

    return steps


def contenders() -> dict[str, tuple[Callable[..., Steps], tuple]]:
    """Name to what makes its steps, and the arguments after n. The first is measured against all others."""
    from raysat.sgd.matmul import Matmul, choose

    chosen = choose(torch.float32, device())
    found = {"raysat, auto": (raysat_engine, ("auto",)), "raysat, autograd": (raysat_engine, ("autograd",))}
    if device().type == "cpu":
        others = [choice for choice in Matmul if choice is not chosen]
        found |= {f"raysat, fused, {choice.label}": (raysat_engine, ("fused", choice.label)) for choice in others}
    found |= {"PyTorch, DataLoader": (pytorch, (True,)), "PyTorch, tensors": (pytorch, (False,))}
    if find_spec("jax"):
        found["JAX, jit(scan)"] = (jax_scan, ())
    return found


def contender(pipe: Connection, make: Callable[..., Steps], arguments: tuple, n: int, threads: int) -> None:
    """A contender's process: for each (b, seconds) it is sent, it answers with seconds per iteration."""
    limit_to(threads)
    steps = make(n, *arguments)
    rates: dict[int, float] = {}
    while (asked := pipe.recv()) is not None:
        b, seconds = asked
        if b not in rates:  # compilation and the first use of buffers, then a guess at the pace
            steps(b, chunk(b))
            rates[b] = timed(steps, b, chunk(b))
        count = max(1, round(seconds / rates[b] / chunk(b))) * chunk(b)
        pipe.send(timed(steps, b, count))


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
    from raysat.sgd.matmul import Matmul, Products, choose, keep_memory

    keep_memory()
    libraries = [Matmul.TORCH]
    if choose(torch.float32, device()) is not Matmul.TORCH:
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
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of every contender")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 64, 512, 4096])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.6, help="about the length of a turn")
    parser.add_argument("--quick", action="store_true", help="three short rounds on fewer samples, without b = 4096")
    options = parser.parse_args()
    n = 60_000
    if options.quick:
        n, options.rounds, options.seconds = 10_000, 3, 0.2
        options.batch_sizes = [b for b in options.batch_sizes if b <= 512]

    limit_to(options.threads)
    print(f"{machine()}; {options.threads} threads; load of the machine before the run {os.getloadavg()[0]:.1f}")
    rates, cached, memory = floors(options.seconds / 2)
    peak = max(rates.values())
    print("product: " + ", ".join(f"{label} {rate / 1e9:.0f} GFLOP/s" for label, rate in rates.items()))
    print(f"copy: {cached / 1e9:.0f} GB/s (11 MB), {memory / 1e9:.0f} GB/s (0.5 GB); read and write both counted")

    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    for name, (make, arguments) in contenders().items():
        pipes[name], end = context.Pipe()
        processes.append(
            context.Process(target=contender, args=(end, make, arguments, n, options.threads), daemon=True)
        )
        processes[-1].start()

    times: dict[str, dict[int, list[float]]] = {name: {b: [] for b in options.batch_sizes} for name in pipes}
    for b in options.batch_sizes:
        for _ in range(options.rounds):
            for name, pipe in pipes.items():
                pipe.send((b, options.seconds))
                times[name][b].append(pipe.recv())
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(None)
        process.join()
    report(times, options.batch_sizes, peak, cached)


def report(times: dict[str, dict[int, list[float]]], sizes: list[int], peak: float, cached: float) -> None:
    """Print the tables, in Markdown."""

    def table(title: str, rows: dict[str, list[str]]) -> None:
        print(f"\n| {title} | " + " | ".join(f"b = {b}" for b in sizes) + " |")
        print("| --- |" + " ---: |" * len(sizes))
        for name, entries in rows.items():
            print(f"| {name} | " + " | ".join(entries) + " |")

    per_second = lambda rate: f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"  # noqa: E731
    operations = {b: 2 * b * (3 * sum(WEIGHTS) - WEIGHTS[0]) for b in sizes}
    rows = {name: [per_second(1 / statistics.median(runs[b])) for b in sizes] for name, runs in times.items()}
    rows["floor: all products at the peak"] = [per_second(peak / operations[b]) for b in sizes]
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
