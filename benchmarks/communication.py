"""How well the model of the all-reduce predicts sizes it was not fitted to, and steps of a real engine of two ranks.

    python -W ignore benchmarks/communication.py [--ranks 2] [--backend gloo]

First every second size is left out of the fit. Then `launch + b/2 sample + T(s, 2)` stands beside the measured step of
`ParallelEngine(ranks=2)`: launch and sample are fitted to steps of one process of one thread, T to all-reduces. A
factor of 3 between prediction and measurement is what is asked of the model. It takes a minute.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from scipy.optimize import nnls

from raysat import mlp, models
from raysat.losses import LOSSES
from raysat.sgd.allreduce import Link, fit, measure
from raysat.sgd.autograd import AutogradEngine
from raysat.sgd.engine import StepEngine
from raysat.sgd.parallel import ParallelEngine
from raysat.sgd.problem import Problem
from raysat.sgd.sampler import batches

N, SIZES = 4096, (16, 64, 256, 1024)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--backend", default="gloo")
    options = parser.parse_args()
    measured = measure(options.ranks, [2**k for k in range(10, 25)], options.backend, repeats=100)
    link = fit(measured[::2])
    print(f"{options.backend}, {options.ranks} ranks: {link.label}")
    for k, one in enumerate(measured):
        predicted = link.seconds(one.size, one.ranks)
        use = "held out" if k % 2 else "fitted"
        print(
            f"{one.size:>10,} bytes: measured {1e6 * one.seconds:9.1f} us, model {1e6 * predicted:9.1f} us "
            f"({100 * (predicted / one.seconds - 1):+.0f} %), {use}"
        )
    if options.backend == "gloo":
        steps(fit(measured) if options.ranks == 2 else fit(measure(2)))


def steps(link: Link) -> None:
    """Print predicted and measured seconds of a step of two ranks, for a network of three layers of 512."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(N, 784, generator=generator), torch.randn(N, 10, generator=generator)
    network = models.build(mlp(3), 512, (784,), 10, 0)
    given = Problem(network, x, y, LOSSES["mse"]), 1e-3
    alone = {b: seconds(AutogradEngine(*given), b) for b in SIZES}
    rows = np.array([(1, b) for b in SIZES]) / np.array(list(alone.values()))[:, None]
    (launch, sample), _ = nnls(rows, np.ones(len(SIZES)))
    size = 4 * sum(parameter.numel() for parameter in network.parameters())
    print(f"one process: {1e3 * launch:.2f} ms + b {1e6 * sample:.1f} us; {size / 1e6:.2f} MB of gradients")
    engine = ParallelEngine(*given, ranks=2)
    for b in SIZES:
        predicted, took = launch + b / 2 * sample + link.seconds(size, 2), seconds(engine, b)
        ratio = predicted / took
        print(
            f"b = {b:>5}: measured {1e3 * took:7.2f} ms, predicted {1e3 * predicted:7.2f} ms ({ratio:.2f} times), "
            f"{'within' if 1 / 3 < ratio < 3 else 'NOT within'} a factor of 3; one process {1e3 * alone[b]:7.2f} ms"
        )


def seconds(engine: StepEngine, b: int, least: float = 2.0) -> float:
    """Median seconds of a step."""
    engine.run(batches(0, 0, 3, b, N))
    times: list[float] = []
    while sum(times) < least:
        batch = batches(0, 3 + len(times), 1, b, N)
        begun = time.perf_counter()
        engine.run(batch)
        times.append(time.perf_counter() - begun)
    return float(np.median(times))


if __name__ == "__main__":
    main()
