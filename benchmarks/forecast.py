"""The forecast against training: linearized SGD, and networks of two widths. MNIST, n = 1,000, T = 300.

    python -W ignore benchmarks/forecast.py [linearized] [trained]

It needs MNIST (RAYSAT_DATA) and takes some fifteen minutes on two cores.
"""

from __future__ import annotations

import sys
from dataclasses import asdict

import numpy as np

from raysat import data, linearized, mlp, models, ntk_statistics
from raysat.forecast import STEPS
from raysat.losses import LOSSES
from raysat.recursion import Spectrum, loss_curves, noise_factor
from raysat.sgd.engine import AutogradEngine
from raysat.sgd.evaluate import evaluate
from raysat.sgd.sampler import batches
from raysat.theory import beta

N, T, SIZES = 1000, 300, (1, 4, 16, 64)
MODEL = mlp(depth=3, hidden_gain=2**0.5)


def prepare(width: int):
    dataset = data.load("mnist", n_train=N)
    network = models.build(MODEL, width, dataset.input_shape, dataset.outputs, seed=0)
    statistics = asdict(ntk_statistics(network, dataset.x, dataset.y, spectrum=STEPS))
    return dataset, statistics, Spectrum.of(statistics)


def final_loss(dataset, model, width: int, eta: float, b: int, seed: int) -> tuple[float, float]:
    network = models.build(model, width, dataset.input_shape, dataset.outputs, seed=0)
    engine = AutogradEngine(network, dataset.x, dataset.y, LOSSES["mse"], eta)
    at = lambda: evaluate(network, dataset.x, dataset.y, LOSSES["mse"], classes=False).loss  # noqa: E731
    before = at()
    engine.run(batches(seed, 0, T, b, N))
    return before, at()


def against_linearized(runs: int = 10) -> None:
    """Loss after T iterations against the mean of linearized SGD, at two stepsizes and four batch sizes."""
    dataset, statistics, spectrum = prepare(512)
    gamma, k_op = statistics["gamma"], statistics["k_op"]
    for b in SIZES:
        for name, eta in (("1/gamma", 1 / gamma), ("1/beta(b)", 1 / beta(b, N, gamma, k_op))):
            if b == 1 and name == "1/beta(b)":
                continue  # the same stepsize
            forecast = loss_curves(spectrum, np.array([eta]), np.array([noise_factor(b, N)]), T)[0, -1]
            losses = [final_loss(dataset, linearized(MODEL), 512, eta, b, seed)[1] for seed in range(runs)]
            mean, error = np.mean(losses), np.std(losses, ddof=1) / runs**0.5
            print(
                f"linearized, b = {b:3d}, eta = {name:9s}: forecast {forecast:.4f}, mean of {runs} runs {mean:.4f} "
                f"(standard error {100 * error / mean:.1f} %), forecast off by {100 * (forecast / mean - 1):+.1f} %",
                flush=True,
            )


def against_trained(seeds: int = 3) -> None:
    """H under eta = 1/beta(b): the forecast against the network itself, at two widths."""
    for width in (512, 2048):
        dataset, statistics, spectrum = prepare(width)
        for b in SIZES:
            eta = 1 / beta(b, N, statistics["gamma"], statistics["k_op"])
            curve = loss_curves(spectrum, np.array([eta]), np.array([noise_factor(b, N)]), T)[0]
            forecast = np.log(curve[0] / curve[-1]) / T
            ends = [final_loss(dataset, MODEL, width, eta, b, seed) for seed in range(seeds)]
            h = np.mean([np.log(before / after) / T for before, after in ends])
            print(
                f"trained, width {width}, b = {b:3d}: h forecast {forecast:.5f}, measured {h:.5f}, forecast off by "
                f"{100 * (forecast / h - 1):+.1f} %",
                flush=True,
            )


PARTS = {"linearized": against_linearized, "trained": against_trained}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
