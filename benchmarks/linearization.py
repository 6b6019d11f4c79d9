"""How far the forecast is from exact linearized SGD, and what of that is what. MNIST, n = 1,000.

    python -W ignore benchmarks/linearization.py [WIDTH [NETWORKS]]

It needs MNIST (RAYSAT_DATA), 3 GB and five minutes a network on a core. With the dense kernel K of w_0 a step of
linearized SGD is `r <- r - eta (n/b) K P_S r`, a product with b C of K's rows, so that N(b) is found to the iteration.
Of each network there are 100 runs with each batch size's best stepsize, sought about that of the forecast, among the
same, by 12 runs of each. N of a typical run is their geometric mean, that of the mean loss is where the mean of their
losses crosses the target. What the forecasts of either are off from these is delocalization; what is between the two is
that the mean is not the typical run; and what is between exact linearized SGD and networks (sweeps/critical_batch.py)
is that their kernel moves.
"""

from __future__ import annotations

import sys
from dataclasses import asdict

import numpy as np
import torch

from raysat import data, mlp, models, ntk_statistics
from raysat.ntk import dense_kernel
from raysat.saturation.critical import critical_batch
from raysat.saturation.forecast import GRID, Forecast, forecast
from raysat.saturation.targets import steps_to_target

N, TARGET, SIZES = 1000, 0.6, (1, 2, 4, 8, 16, 32, 64, 256)
MODEL = mlp(depth=3, hidden_gain=2**0.5)
LONGEST = 4_000
RUNS, FEW = 100, 12
WHOLE = 64
"""Batch size from which on a product with all of K is faster than one with its rows for each run; N scatters so little
there that a quarter of the runs will do."""


def linearized_runs(kernel: torch.Tensor, residual: torch.Tensor, eta: float, b: int, runs: int) -> torch.Tensor:
    """The losses of runs of linearized SGD, until all, and their mean, have reached the target: [t, runs]."""
    outputs = residual.shape[1]
    draw = torch.Generator().manual_seed(b)
    r, rows = residual.flatten().expand(runs, -1).clone(), kernel.view(N, outputs, -1)
    losses, best = [], torch.full((runs,), torch.inf)
    while len(losses) <= LONGEST:
        losses.append(r.square().sum(1) / (2 * N))
        best = torch.minimum(best, losses[-1])
        if best.max() <= TARGET and losses[-1].mean() <= TARGET:
            break
        batch = torch.rand(runs, N, generator=draw).topk(b, 1).indices
        picked = r.view(runs, N, outputs).gather(1, batch[..., None].expand(-1, -1, outputs))
        if b < WHOLE:
            for k, own in enumerate(batch.unbind()):
                r[k].sub_(picked[k].flatten() @ rows[own].view(b * outputs, -1), alpha=eta * N / b)
        else:
            masked = torch.zeros(runs, N, outputs).scatter_(1, batch[..., None].expand(-1, -1, outputs), picked)
            r.sub_(masked.view(runs, -1) @ kernel, alpha=eta * N / b)
    return torch.stack(losses)


def steps_of(losses: torch.Tensor) -> tuple[float, float, float]:
    """N of the typical run, its standard error relative to it, and N of the mean loss."""
    t, paths = np.arange(len(losses)), losses.double().numpy()
    logs = np.log([steps_to_target(t, path, TARGET) for path in paths.T])
    error = float(logs.std(ddof=1) / len(logs) ** 0.5)
    return float(np.exp(logs.mean())), error, steps_to_target(t, paths.mean(1), TARGET)


def tuned(
    kernel: torch.Tensor, residual: torch.Tensor, b: int, most: float, start: int, of_mean: float
) -> tuple[float, float, float, float]:
    """N of the typical run at its best stepsize, its error, N of the mean loss, and that stepsize.

    The stepsizes are those of `GRID`, in units of `most`, sought from the place `start` on; the mean loss is that of
    the stepsize `of_mean`.
    """
    few = {-1: np.inf, len(GRID): np.inf}

    def found(k: int) -> float:
        if k not in few:
            few[k] = np.nan_to_num(steps_of(linearized_runs(kernel, residual, most * GRID[k], b, FEW))[0], nan=np.inf)
        return few[k]

    best = start
    while found(better := min((best - 1, best + 1), key=found)) < found(best):
        best = better
    eta, runs = most * GRID[best], RUNS if b < WHOLE else RUNS // 4
    typical, error, mean = steps_of(linearized_runs(kernel, residual, eta, b, runs))
    if abs(np.log(of_mean / eta)) > 1e-6:
        mean = steps_of(linearized_runs(kernel, residual, of_mean, b, runs))[2]
    return typical, error, mean, eta


def main(width: int, networks: int) -> None:
    torch.set_num_threads(1)
    dataset = data.load("mnist", n_train=N, n_test=0)
    names = ("forecast, mean loss", "exact, mean loss", "forecast, typical run", "exact, typical run")
    table: dict[str, list[list[float]]] = {name: [] for name in names}
    for seed in range(networks):
        network = models.build(MODEL, width, dataset.input_shape, dataset.outputs, seed=seed)
        found = asdict(ntk_statistics(network, dataset.x, dataset.y, spectrum=64))
        made: Forecast = forecast(found, SIZES, LONGEST, TARGET)
        rows = made.by_batch
        print(
            f"width {width}, seed {seed}: forecast b_N {made.typical.value:.4g}, mean {made.mean.value:.4g}", flush=True
        )
        kernel = dense_kernel(network, dataset.x).float()
        with torch.no_grad():
            residual = (network(dataset.x) - dataset.y).float()
        exact = []
        for b, eta, most, of_mean in rows[["batch_size", "eta", "eta_max", "eta_mean"]].itertuples(index=False):
            start = int(np.abs(GRID - eta / most).argmin())
            exact.append(tuned(kernel, residual, b, most, start, of_mean))
            typical, error, mean, best = exact[-1]
            row = rows[rows["batch_size"] == b].iloc[0]
            print(
                f"  b = {b:3d}: typical run, forecast {row['N']:.4g}, exact {typical:.4g} (standard error "
                f"{100 * error:.1f} %); mean loss, forecast {row['N_mean']:.4g}, exact {mean:.4g}; best stepsize "
                f"{best / row['eta_max']:.2f} of the largest stable, forecast {eta / row['eta_max']:.2f}",
                flush=True,
            )
        typical, _, mean, _ = zip(*exact, strict=True)
        for name, values in zip(names, (rows["N_mean"], mean, rows["N"], typical), strict=True):
            table[name].append(list(values))
    for name, steps in table.items():
        fit = critical_batch(np.array(SIZES), np.array(steps), "N")
        print(
            f"width {width}, {name}: b_N {fit.value:.4g} [{fit.low:.4g}, {fit.high:.4g}], q {fit.q:.2f}, {fit.reason}"
        )
        print("  N " + " ".join(f"{value:.4g}" for value in np.exp(np.log(steps).mean(0))), flush=True)


if __name__ == "__main__":
    width, networks = (*map(int, sys.argv[1:]), *(2048, 3)[len(sys.argv) - 1 :])
    main(width, networks)
