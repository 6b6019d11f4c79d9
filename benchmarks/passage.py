"""By how much N is too large because metrics are evaluated now and then, and how much of that the analysis takes off.

    python benchmarks/passage.py        about a minute on one core

Exact SGD on least squares with two classes as targets, 400 training and 200 test samples, features of falling scale,
labels with noise; 600 iterations with 30 log-spaced evaluations, as a sweep has. N to a target is compared with N from
an evaluation at every iteration, for each metric, read as one that falls. The corrected N is that of the analysis
(`raysat.saturation.targets.lateness`), over three seeds at a time.
"""

from __future__ import annotations

import numpy as np

from raysat.saturation.targets import earliest, in_time, lateness, steps_to_target
from raysat.sgd.schedule import evaluation_iterations
from raysat.spec.goals import METRICS

ITERATIONS, EVALUATIONS, SEEDS, TOGETHER = 600, 30, 39, 3
STEPSIZES = {1: 0.1, 4: 0.25, 16: 0.4, 64: 0.45}
"""The stepsize of each batch size: about half of the largest stable one."""

DEPTHS = (0.5, 0.8)
"""The share of the way, in logarithms, from the initial value to the lowest that nine of ten seeds reach, at which the
targets lie."""


def curves(b: int, noise: float, seed: int) -> np.ndarray:
    """Return the metrics, as they fall, at every iteration of one run. Shape: [iterations + 1, metrics]."""
    rng = np.random.default_rng(seed)
    scales = np.arange(1, 51) ** -0.5
    x, x_test = (rng.normal(size=(k, 50)) * scales for k in (400, 200))
    truth = rng.normal(size=50) / scales * np.exp(-np.arange(50) / 20)
    spread = (x @ truth).std()
    y, y_test = (np.sign(one @ truth / spread + noise * rng.normal(size=len(one))) for one in (x, x_test))
    w, found = np.zeros(50), np.empty((ITERATIONS + 1, len(METRICS)))
    for t in range(ITERATIONS + 1):
        sides = (x @ w, y), (x_test @ w, y_test)
        losses = [((outputs - targets) ** 2).mean() / 2 for outputs, targets in sides]
        found[t] = [*losses, *((np.sign(outputs) != targets).mean() for outputs, targets in sides)]
        batch = rng.choice(len(x), b, replace=False)
        w -= STEPSIZES[b] * x[batch].T @ (x[batch] @ w - y[batch]) / b
    return found


def excesses(runs: list[np.ndarray], eps: float) -> tuple[list[float], list[float]]:
    """Return the excess of log N, the mean over a few seeds each, as evaluated and as corrected."""
    every, seen = np.arange(ITERATIONS + 1), np.array(evaluation_iterations(ITERATIONS, EVALUATIONS))
    rows = []
    for run in runs:
        true, path = steps_to_target(every, run, eps), (seen, run[seen], eps)
        if true >= 5 and steps_to_target(*path) > 0:
            rows.append((true, steps_to_target(*path), np.nan_to_num(lateness(*path)), earliest(*path)))
    groups = [np.array(rows[k : k + TOGETHER]).T for k in range(0, len(rows) - TOGETHER + 1, TOGETHER)]
    raw = [float(np.log(first / true).mean()) for true, first, _, _ in groups]
    return raw, [float(np.log(in_time(*rest) / true).mean()) for true, *rest in groups]


def main() -> None:
    """Print a row for each metric and batch size: the mean excess of log N, and its root mean square."""
    print(
        "| metric | b | excess as evaluated | corrected | rms as evaluated | corrected |\n| --- " + "| --- " * 5 + "|"
    )
    made = {(b, noise): [curves(b, noise, s) for s in range(SEEDS)] for b in STEPSIZES for noise in (0.1, 0.5)}
    for k, metric in enumerate(METRICS):
        for b in STEPSIZES:
            pairs = [], []
            for noise in (0.1, 0.5):
                runs = [run[:, k] for run in made[b, noise]]
                first, low = np.mean([run[0] for run in runs]), np.quantile([run.min() for run in runs], 0.9)
                for depth in DEPTHS:
                    found = excesses(runs, first ** (1 - depth) * max(low, 1e-3) ** depth)
                    for kept, more in zip(pairs, found, strict=True):
                        kept.extend(more)
            raw, corrected = map(np.array, pairs)
            means = f"{raw.mean():+.3f} | {corrected.mean():+.3f}"
            print(f"| {metric} | {b} | {means} | {(raw**2).mean() ** 0.5:.3f} | {(corrected**2).mean() ** 0.5:.3f} |")


if __name__ == "__main__":
    main()
