"""What training the seeds of a cell as one batched computation would gain over training them one by one, on a CPU.

    python -W ignore benchmarks/seeds.py

It takes a minute. The networks are fully connected with three hidden layers, 64 inputs and 10 outputs; the batched
steps are those of the fused engine with `torch.baddbmm` over S networks at once. One thread, as a trial has by default:
beside it other trials run on the other cores either way.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch

from raysat import mlp, models
from raysat.losses import LOSSES
from raysat.sgd.fused import FusedEngine
from raysat.sgd.matmul import keep_memory
from raysat.sgd.sampler import batches

N, INPUTS, OUTPUTS, ETA, STEPS = 1000, 64, 10, 0.01, 64
SECONDS, ROUNDS = 0.3, 5


def batched(seeds: int, width: int, b: int, x: torch.Tensor, y: torch.Tensor) -> Callable[[], object]:
    """`STEPS` steps of so many networks, each with its own batches."""
    sizes = (INPUTS, width, width, width, OUTPUTS)
    weights = [torch.randn(seeds, outputs, inputs) for inputs, outputs in pairwise(sizes)]
    scales = [inputs**-0.5 for inputs in sizes[:-1]]
    values = [x.new_empty(seeds, b, size) for size in sizes]
    deltas = [x.new_empty(seeds, b, size) for size in sizes[1:]]
    targets = y.new_empty(seeds * b, OUTPUTS)
    indices = torch.stack([batches(seed, 0, STEPS, b, N) for seed in range(seeds)], 1)
    last = len(weights) - 1

    def step(chosen: torch.Tensor) -> None:
        torch.index_select(x, 0, chosen, out=values[0].view(seeds * b, INPUTS))
        torch.index_select(y, 0, chosen, out=targets)
        for k, weight in enumerate(weights):
            values[k + 1].baddbmm_(values[k], weight.transpose(1, 2), beta=0, alpha=scales[k])
            if k < last:
                values[k + 1].clamp_min_(0)
        torch.sub(values[-1], targets.view(seeds, b, OUTPUTS), out=deltas[-1])
        for k in range(last, -1, -1):
            if k:
                below = deltas[k - 1].baddbmm_(deltas[k], weights[k], beta=0, alpha=scales[k])
                torch.ops.aten.threshold_backward.grad_input(below, values[k], 0, grad_input=below)
            weights[k].baddbmm_(deltas[k].transpose(1, 2), values[k], alpha=-ETA * scales[k] / b)

    @torch.inference_mode()
    def run() -> None:
        for chosen in indices:
            step(chosen.flatten())

    return run


def seconds(call: Callable[[], object]) -> float:
    call()
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < SECONDS:
        call()
        count += 1
    return (time.perf_counter() - begun) / count


def main() -> None:
    torch.set_num_threads(1)
    keep_memory()
    x, y = torch.randn(N, INPUTS), torch.randn(N, OUTPUTS)
    print(
        "| width | b | one by one, steps/s | 3 seeds at once | 8 seeds at once |\n| ---: | ---: | ---: | ---: | ---: |"
    )
    for width in (64, 128, 256, 512):
        for b in (1, 8, 64):
            network = models.build(mlp(3), width, (INPUTS,), OUTPUTS, seed=0)
            engine, chosen = FusedEngine(network, x, y, LOSSES["mse"], ETA), batches(0, 0, STEPS, b, N)
            calls = [lambda: engine.run(chosen), *(batched(seeds, width, b, x, y) for seeds in (3, 8))]  # noqa: B023
            rounds = [[seconds(call) for call in calls] for _ in range(ROUNDS)]
            alone = statistics.median(one for one, *_ in rounds)
            gains = [statistics.median(seeds * r[0] / r[k] for r in rounds) for k, seeds in ((1, 3), (2, 8))]
            print(f"| {width} | {b} | {STEPS / alone:,.0f} | {gains[0]:.2f} | {gains[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
