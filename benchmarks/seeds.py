"""What training the seeds of a cell as one computation gains over training them one by one, on a CPU.

    python -W ignore benchmarks/seeds.py

It takes five minutes. The networks are fully connected with three hidden layers and 10 outputs; the stacked engine
takes the steps of S networks at once, the fused engine those of one after the other. One thread, as a trial has by
default: beside it other trials run on the other cores either way.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from raysat import mlp, models
from raysat.compute.matmul import tune_malloc
from raysat.losses import LOSSES
from raysat.sgd.engine import FusedEngine, StackedEngine
from raysat.sgd.problem import Problem
from raysat.sgd.sampler import batches

N, OUTPUTS, ETA, STEPS = 1000, 10, 0.01, 64
SECONDS, ROUNDS = 0.3, 5
SEEDS = 1, 2, 3, 8


def seconds(call: Callable[[], object]) -> float:
    call()
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < SECONDS:
        call()
        count += 1
    return (time.perf_counter() - begun) / count


def measure(inputs: int, width: int, b: int) -> tuple[float, list[float]]:
    """Steps per second of the fused engine, and the gain of `SEEDS` at once, medians of the rounds' own ratios."""
    problem = torch.randn(N, inputs), torch.randn(N, OUTPUTS), LOSSES["mse"]
    chosen = [batches(seed, 0, STEPS, b, N) for seed in range(max(SEEDS))]

    def built(count: int) -> list[torch.nn.Module]:
        return [models.build(mlp(3), width, (inputs,), OUTPUTS, seed=seed) for seed in range(count)]

    def stack(count: int) -> Callable[[], object]:
        engine = StackedEngine([Problem(network, *problem) for network in built(count)], [ETA] * count)
        return lambda: engine.run(*chosen[:count])

    fused = FusedEngine(Problem(*built(1), *problem), ETA)
    calls = [lambda: fused.run(chosen[0]), *map(stack, SEEDS)]
    rounds = [[seconds(call) for call in calls] for _ in range(ROUNDS)]
    gains = [
        statistics.median(count * alone / together[k] for alone, *together in rounds) for k, count in enumerate(SEEDS)
    ]
    return STEPS / statistics.median(alone for alone, *_ in rounds), gains


def main() -> None:
    torch.set_num_threads(1)
    tune_malloc()
    print("| inputs | width | b | one by one, steps/s |", " | ".join(f"{count} at once" for count in SEEDS), "|")
    print("| ---: " * (4 + len(SEEDS)) + "|")
    for inputs, width in ((64, 32), (64, 64), (64, 128), (64, 256), (784, 32), (784, 64), (784, 128), (784, 256)):
        for b in (1, 8, 32, 128):
            alone, gains = measure(inputs, width, b)
            cells = " | ".join(f"{gain:.2f}" for gain in gains)
            print(f"| {inputs} | {width} | {b} | {alone:,.0f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
