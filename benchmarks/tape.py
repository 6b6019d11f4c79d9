"""Where a step of the fused engine spends its time: the calls of its tape, each timed, the same calls together.

    python -W ignore benchmarks/tape.py 1 512          # batch sizes; some seconds each

The network is that of `benchmarks/sgd.py`, 784-1000-1000-1000-10, on two threads or as many as `--threads` says. Calls
that take less than a hundredth of a step are left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from functools import partial

import torch
from sgd import ETA, NETWORKS, limit_to

from raysat.compute.matmul import tune_malloc
from raysat.losses import LOSSES
from raysat.sgd.engine import FusedEngine
from raysat.sgd.problem import Problem
from raysat.sgd.sampler import batches

PRODUCTS = {"addmm_", "baddbmm_", "mm"}


def described(call: partial) -> tuple[str, str]:
    """What a call is and the shapes it has, one for the same call of every step."""
    name = getattr(call.func, "__name__", str(call.func)).removesuffix(".grad_input")
    owner = getattr(call.func, "__self__", None)
    tensors = [tensor for tensor in (owner, *call.args) if isinstance(tensor, torch.Tensor)]
    return name, ", ".join("x".join(map(str, tensor.shape)) for tensor in tensors)


def operations(call: partial) -> int:
    """Floating-point operations of a product; 0 for any other call."""
    if getattr(call.func, "__name__", "") not in PRODUCTS:
        return 0
    left, right = (tensor for tensor in call.args if isinstance(tensor, torch.Tensor))
    return 2 * left.numel() * right.shape[-1]


def measure(b: int, rounds: int) -> None:
    """Print the calls of a step at a batch size."""
    network = NETWORKS["fc"]
    engine = FusedEngine(Problem(network.build(), *network.samples(), LOSSES[network.loss]), ETA)
    steps = engine.block(b)
    chunks = batches(0, 0, steps * (rounds + 1), b, network.n).split(steps)
    engine.run(chunks[0])
    block = engine._block(steps, b)
    times: dict[int, list[float]] = defaultdict(list)
    wrapped = [partial(_timed, call, times[index]) for index, call in enumerate(block.tape)]
    whole, tape = [], block.tape
    block.tape = wrapped
    for chunk in chunks[1:]:
        begun = time.perf_counter()
        engine.run(chunk)
        whole.append(time.perf_counter() - begun)
    grouped: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
    for index, call in enumerate(tape):
        grouped[described(call)].append((statistics.median(times[index]), operations(call)))
    step = statistics.median(whole) / steps
    print(f"\nb = {b}, {engine.matmul}: {1e6 * step:,.0f} microseconds a step, {steps} steps a block\n")
    print("| call | shapes | a step | microseconds | share | GFLOP/s |\n| --- | --- |" + " ---: |" * 4)
    for (name, shapes), calls in sorted(grouped.items(), key=lambda entry: -sum(seconds for seconds, _ in entry[1])):
        seconds, work = (sum(column) for column in zip(*calls, strict=True))
        if (share := seconds / steps / step) >= 0.01:
            rate = f"{work / seconds / 1e9:.0f}" if work else ""
            count = len(calls) / steps
            print(f"| {name} | {shapes} | {count:.2g} | {1e6 * seconds / len(calls):.1f} | {share:.0%} | {rate} |")


def _timed(call: partial, times: list[float]) -> None:
    begun = time.perf_counter()
    call()
    times.append(time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("batch_sizes", nargs="+", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    limit_to(options.threads)
    tune_malloc()
    for b in options.batch_sizes:
        measure(b, options.rounds)


if __name__ == "__main__":
    main()
