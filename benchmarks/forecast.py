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
from raysat.forecast import STEPS
from raysat.losses import LOSSES
from raysat.saturation.critical import critical_batch
from raysat.saturation.forecast import GRID, forecast
from raysat.saturation.formulas import beta
from raysat.saturation.recursion import Spectrum, loss_curves, noise_factor
from raysat.saturation.targets import steps_to_target
from raysat.sgd.engine import AutogradEngine
from raysat.sgd.evaluate import evaluate
from raysat.sgd.problem import Problem
from raysat.sgd.sampler import batches

N, T, SIZES = 1000, 300, (1, 4, 16, 64)
RUNS = 1000
MODEL = mlp(depth=3, hidden_gain=2**0.5)


def prepare(width: int):
    dataset = data.load("mnist", n_train=N)
    network = models.build(MODEL, width, dataset.input_shape, dataset.outputs, seed=0)
    statistics = asdict(ntk_statistics(network, dataset.x, dataset.y, spectrum=STEPS))
    return dataset, statistics, Spectrum.of(statistics)


def final_loss(dataset, model, width: int, eta: float, b: int, seed: int) -> tuple[float, float]:
    network = models.build(model, width, dataset.input_shape, dataset.outputs, seed=0)
    engine = AutogradEngine(Problem(network, dataset.x, dataset.y, LOSSES["mse"]), eta)

    def at():
        return evaluate(network, dataset.x, dataset.y, LOSSES["mse"], classes=False).loss

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


def exact_runs(
    x: np.ndarray, error: np.ndarray, eta: float, b: int, target: float, longest: int
) -> tuple[float, float, float]:
    """Of `RUNS` runs of SGD: the geometric mean of N, its relative error, and N of the geometric mean of the losses."""
    n, draw, runs = len(x), np.random.default_rng(b), RUNS if b < len(x) else 1
    w, losses, lowest = np.tile(error, (runs, 1)), [], np.inf
    while len(losses) <= longest:
        losses.append(((w @ x.T) ** 2).sum(1) / (2 * n))
        lowest = np.minimum(lowest, losses[-1])
        if (lowest <= target).all() and np.log(losses[-1]).mean() <= np.log(target):
            break
        batch = draw.random((runs, n)).argpartition(b - 1, axis=1)[:, :b]
        w = w - eta / b * np.einsum("rbd,rb->rd", x[batch], np.einsum("rbd,rd->rb", x[batch], w))
    t, paths = np.arange(len(losses)), np.array(losses)
    logs = np.log([steps_to_target(t, path, target) for path in paths.T])
    off = logs.std() / runs**0.5
    return float(np.exp(logs.mean())), off, steps_to_target(t, np.exp(np.log(paths).mean(1)), target)


def against_least_squares(share: float = 0.1, steps: int = 600) -> None:
    """b_N on least squares: of the mean loss against its exact recursion, of the typical run against 1,000 runs.

    `linear` is the data set; the two others have a steeper and a flat spectrum. Stepsizes are 1/beta(b), or the best of
    `GRID`; of the runs the best of the forecast's own and its neighbours.
    """
    for name, power in (("linear", 1.0), ("linear(power=2.0)", 2.0), ("linear(power=0.0)", 0.0)):
        # With one eigenvalue a large batch takes a single iteration, which has no b_N.
        sizes = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256] if power else [1, 2, 4, 8, 16, 32])
        problem = linear_problem(power=power)
        n = len(problem.x)
        dataset = data.load(name, preprocessing="none", dtype="float64")
        network = models.build(linear(), 0, dataset.input_shape, dataset.outputs, seed=0).double()
        statistics = asdict(ntk_statistics(network, dataset.x, dataset.y, spectrum=STEPS))
        error = next(network.parameters()).detach().numpy().ravel() - problem.w_bar
        target = share * statistics["loss_init"]
        rows = forecast(statistics, sizes.tolist(), steps, target).by_batch.set_index("batch_size")
        exact: dict[str, list[float]] = {"N_theory": [], "N_mean": [], "N": []}
        losses, errors = [], []
        for b, row in rows.iterrows():
            eta = 1 / beta(int(b), n, problem.gamma, problem.k_op)
            exact["N_theory"].append(exact_steps(problem.x, error, eta, b, steps, target))
            tried = [exact_steps(problem.x, error, row["eta_max"] * part, b, steps, target) for part in GRID]
            exact["N_mean"].append(float(np.nanmin(tried)))
            own = [row["eta"] * 2 ** (k / 4) for k in (-1, 0, 1) if row["eta"] * 2 ** (k / 4) < row["eta_max"]]
            found = [exact_runs(problem.x, error, eta, b, target, steps) for eta in own]
            best = min(found, key=lambda one: np.nan_to_num(one[0], nan=np.inf))
            exact["N"].append(best[0])
            losses.append(best[2])
            errors.append(best[1])
        for column, what in (
            ("N_theory", "mean loss, eta = 1/beta(b)"),
            ("N_mean", "mean loss, tuned"),
            ("N", "typical run, tuned"),
        ):
            foreseen, truth = (critical_batch(sizes, np.array([v]), "N").value for v in (rows[column], exact[column]))
            off = np.abs(np.log(rows[column] / exact[column]))[np.array(exact[column]) > 1].max()
            print(
                f"{name}, L <= {share} L(w_0), {what}: b_N forecast {foreseen:.4g}, exact {truth:.4g} "
                f"({100 * (foreseen / truth - 1):+.1f} %); N off by {100 * off:.1f} % at most\n"
                f"  N exact    {_words(exact[column])}\n  N forecast {_words(rows[column])}",
                flush=True,
            )
        print(f"  N of the geometric mean of the runs' losses {_words(losses)}")
        print(f"  standard error of the exact N of typical runs {100 * max(errors):.1f} % at most", flush=True)


def _words(values) -> str:
    return " ".join(f"{value:.4g}" for value in values)


PARTS = {"linearized": against_linearized, "trained": against_trained, "linear": against_least_squares}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
