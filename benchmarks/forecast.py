"""The forecast against training: linearized SGD, networks of two widths (MNIST, n = 1,000, T = 300), least squares.

    python -W ignore benchmarks/forecast.py [linearized] [trained] [linear]

It needs MNIST (RAYSAT_DATA) and takes some fifteen minutes on two cores.
"""

from __future__ import annotations

import sys
from dataclasses import asdict

import numpy as np

from raysat import data, linear, linearized, mlp, models, ntk_statistics
from raysat.data.linear import linear_problem
from raysat.forecast import GRID, STEPS, forecast
from raysat.losses import LOSSES
from raysat.saturation.fits import fit_saturation
from raysat.saturation.formulas import beta
from raysat.saturation.recursion import Spectrum, loss_curves, noise_factor
from raysat.saturation.targets import steps_to_target
from raysat.sgd.engine import AutogradEngine
from raysat.sgd.evaluate import evaluate
from raysat.sgd.sampler import batches

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
            foreseen = loss_curves(spectrum, np.array([eta]), np.array([noise_factor(b, N)]), T)[0, -1]
            losses = [final_loss(dataset, linearized(MODEL), 512, eta, b, seed)[1] for seed in range(runs)]
            mean, error = np.mean(losses), np.std(losses, ddof=1) / runs**0.5
            print(
                f"linearized, b = {b:3d}, eta = {name:9s}: forecast {foreseen:.4f}, mean of {runs} runs {mean:.4f} "
                f"(standard error {100 * error / mean:.1f} %), forecast off by {100 * (foreseen / mean - 1):+.1f} %",
                flush=True,
            )


def against_trained(seeds: int = 3) -> None:
    """H under eta = 1/beta(b): the forecast against the network itself, at two widths."""
    for width in (512, 2048):
        dataset, statistics, spectrum = prepare(width)
        for b in SIZES:
            eta = 1 / beta(b, N, statistics["gamma"], statistics["k_op"])
            curve = loss_curves(spectrum, np.array([eta]), np.array([noise_factor(b, N)]), T)[0]
            foreseen = np.log(curve[0] / curve[-1]) / T
            ends = [final_loss(dataset, MODEL, width, eta, b, seed) for seed in range(seeds)]
            h = np.mean([np.log(before / after) / T for before, after in ends])
            print(
                f"trained, width {width}, b = {b:3d}: h forecast {foreseen:.5f}, measured {h:.5f}, forecast off by "
                f"{100 * (foreseen / h - 1):+.1f} %",
                flush=True,
            )


def exact_steps(x: np.ndarray, error: np.ndarray, eta: float, b: int, steps: int, target: float) -> float:
    """N of SGD's mean loss on least squares, by the exact recursion of `E (w - w_bar)(w - w_bar)^T`; nan beyond T."""
    n, h, m, losses = len(x), x.T @ x / len(x), np.outer(error, error), []
    while len(losses) <= steps:
        losses.append(np.trace(h @ m) / 2)
        if losses[-1] <= target:
            return steps_to_target(np.arange(len(losses)), np.array(losses), target)
        own = (x * np.einsum("ni,ni->n", x @ m, x)[:, None]).T @ x / n
        pairs = (n * h @ m @ h - own) / (n - 1)
        m = m - eta * (h @ m + m @ h) + eta**2 * (own / b + (b - 1) / b * pairs)
    return np.nan


def against_least_squares(share: float = 0.1, steps: int = 600) -> None:
    """b_N on the linear data set: under eta = 1/beta(b), and tuned among the forecast's stable stepsizes."""
    problem = linear_problem()
    n, sizes = len(problem.x), np.array([1, 2, 4, 8, 16, 32, 64, 128, 256])
    dataset = data.load("linear", preprocessing="none", dtype="float64")
    network = models.build(linear(), 0, dataset.input_shape, dataset.outputs, seed=0).double()
    statistics = asdict(ntk_statistics(network, dataset.x, dataset.y, spectrum=STEPS))
    error = next(network.parameters()).detach().numpy().ravel() - problem.w_bar
    target = share * statistics["loss_init"]
    made = forecast(statistics, sizes.tolist(), steps, target)
    exact: dict[str, list[float]] = {"eta = 1/beta(b)": [], "tuned": []}
    for b, most in zip(sizes, made.by_batch["eta_max"], strict=True):
        eta = 1 / beta(int(b), n, problem.gamma, problem.k_op)
        exact["eta = 1/beta(b)"].append(exact_steps(problem.x, error, eta, b, steps, target))
        tried = [exact_steps(problem.x, error, most * part, b, steps, target) for part in GRID[GRID > 0.2]]
        exact["tuned"].append(float(np.nanmin(tried)))
    for (name, found), b_n in zip(exact.items(), (made.b_N_theory, made.b_N), strict=True):
        truth = float(fit_saturation(sizes, np.array(found)).b_c)
        steps_of = made.by_batch["N_best" if name == "tuned" else "N_theory"]
        print(
            f"linear, L <= {share} L(w_0), {name}: b_N forecast {b_n:.4g}, exact {truth:.4g}, forecast off by "
            f"{100 * (b_n / truth - 1):+.1f} %\n  N exact    {' '.join(f'{value:.4g}' for value in found)}\n"
            f"  N forecast {' '.join(f'{value:.4g}' for value in steps_of)}",
            flush=True,
        )


PARTS = {"linearized": against_linearized, "trained": against_trained, "linear": against_least_squares}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
