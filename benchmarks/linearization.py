"""Why the forecast's N(b) differs from the networks': exact linearized SGD between the two. MNIST, n = 1,000.

    python -W ignore benchmarks/linearization.py [WIDTH ...]

It needs MNIST (RAYSAT_DATA), 3 GB and some five minutes on two cores. With the dense kernel K of w_0 one step of
linearized SGD is `r <- r - eta (n/b) K P_S r`, a product with b C of K's rows, so that N(b) is found to the iteration
under the stepsizes and seeds of sweeps/critical_batch.py. What is between the forecast and it is the recursion's
closure and that it follows the mean loss; what is between it and the networks is that their kernel moves.
"""

from __future__ import annotations

import sys
from dataclasses import asdict

import numpy as np
import torch

from raysat import data, mlp, models, ntk_statistics
from raysat.ntk import dense_kernel
from raysat.saturation.critical import critical_batch
from raysat.saturation.formulas import beta
from raysat.saturation.recursion import Spectrum, largest_stable, loss_curves, noise_factor
from raysat.saturation.targets import steps_to_target
from raysat.sgd.sampler import batches

N, TARGET, SIZES, SEEDS = 1000, 0.6, (1, 2, 4, 8, 16, 32, 64, 256), range(3)
MODEL = mlp(depth=3, hidden_gain=2**0.5)
LONGEST = 4_000
EXPONENTS = np.arange(-4, 9)
"""Stepsizes are 2^(k/2) / beta(b), as in `grid(auto=True)`."""


def linearized_steps(kernel: torch.Tensor, residual: torch.Tensor, eta: float, b: int, seed: int) -> float:
    """N of one run of linearized SGD; nan where it diverges or takes too long."""
    outputs = residual.shape[1]
    r, losses = residual.flatten().clone(), []
    rows = kernel.view(N, -1)
    for start in range(0, LONGEST, 64):
        for batch in batches(seed, start, 64, b, N):
            losses.append((r.square().sum() / (2 * N)).item())
            if losses[-1] <= TARGET or not losses[-1] < 1e3 * losses[0]:
                return steps_to_target(np.arange(len(losses)), np.array(losses), TARGET)
            chosen = r.view(N, outputs).index_select(0, batch).flatten()
            if b < 64:
                change = chosen @ rows.index_select(0, batch).view(b * outputs, -1)
            else:  # gathering the rows would cost more than reading all of them
                change = (
                    kernel @ torch.zeros_like(r).view(N, outputs).index_copy_(0, batch, chosen.view(b, -1)).flatten()
                )
            r -= eta * N / b * change
    return np.nan


def mean_steps(spectrum: Spectrum, eta: float, b: int) -> float:
    """N of the forecast's mean loss."""
    curve = loss_curves(spectrum, np.array([eta]), np.array([noise_factor(b, N)]), LONGEST)[0]
    return steps_to_target(np.arange(LONGEST + 1), curve, TARGET)


def main(width: int) -> None:
    torch.set_num_threads(1)
    dataset = data.load("mnist", n_train=N, n_test=0)
    table: dict[str, dict[tuple[int, int], list[float]]] = {"forecast": {}, "linearized": {}, "linearized, all": {}}
    for seed in SEEDS:
        network = models.build(MODEL, width, dataset.input_shape, dataset.outputs, seed=seed)
        found = asdict(ntk_statistics(network, dataset.x, dataset.y, spectrum=64))
        spectrum = Spectrum.of(found)
        kernel = dense_kernel(network, dataset.x)
        with torch.no_grad():
            residual = network(dataset.x) - dataset.y
        for b in SIZES:
            limit = largest_stable(spectrum, noise_factor(b, N))
            best: dict[str, tuple[float, float]] = {name: (np.inf, np.nan) for name in table}
            for k in EXPONENTS:
                eta = 2 ** (k / 2) / beta(b, N, found["gamma"], found["k_op"])
                if eta > 4 * limit:
                    continue
                run = linearized_steps(kernel, residual, eta, b, seed)
                tried = {"linearized, all": run}
                if eta < limit:
                    tried |= {"forecast": mean_steps(spectrum, eta, b), "linearized": run}
                for name, steps in tried.items():
                    if steps < best[name][0]:
                        best[name] = steps, eta / limit
            for name in table:
                table[name][seed, b] = list(best[name])
            print(
                f"width {width}, seed {seed}, b = {b}: " + str({k: [round(x, 3) for x in v] for k, v in best.items()}),
                flush=True,
            )
    for name, cells in table.items():
        steps = np.array([[cells[seed, b][0] for b in SIZES] for seed in SEEDS])
        at = np.array([[cells[seed, b][1] for b in SIZES] for seed in SEEDS])
        fit = critical_batch(np.array(SIZES), steps, "N")
        print(f"width {width}, {name}: b_N {fit.value:.3g} [{fit.low:.3g}, {fit.high:.3g}], {fit.reason}")
        print("  N " + " ".join(f"{value:.3g}" for value in np.exp(np.log(steps).mean(0))))
        print("  best eta over the limit " + " ".join(f"{value:.2g}" for value in np.median(at, 0)))


if __name__ == "__main__":
    for width in map(int, sys.argv[1:] or ("512", "2048")):
        main(width)
