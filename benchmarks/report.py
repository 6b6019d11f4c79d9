"""The report of a large sweep, forecast included: its size and its time. Bars: 300 trials under 5 MB, in under 20 s.

python benchmarks/report.py [--trials 300]
"""

import argparse
import io
import math
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich.console import Console

from raysat.report import finish
from raysat.spec.cells import Model
from raysat.spec.stepsizes import grid, theory
from raysat.spec.sweep import Sweep
from raysat.storage.store import Store

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
WIDTHS = (250, 500, 1000)
STEPSIZES = (theory(1.0), *grid([0.1, 0.2, 0.4, 0.8]))
GAMMA, K_OP, N, T = 6.0, 0.6, 1000, 4000
NODES = np.geomspace(1e-4 * K_OP, K_OP, 64)
TIMES = [0, *np.unique(np.geomspace(1, T, 30).round()).astype(int).tolist()]


def write(root: Path, trials: int) -> None:
    """A results folder of made trials: loss exp(-h t) with h = h_inf / (1 + b_c/b), and some noise; and of spectra."""
    seeds = max(1, trials // (len(SIZES) * len(WIDTHS) * len(STEPSIZES)))
    sweep = Sweep(
        name="made",
        dataset="digits",
        models=[Model("mlp", (("depth", 3),))],
        widths=WIDTHS,
        batch_sizes=SIZES,
        stepsizes=STEPSIZES,
        iterations=T,
        seeds=seeds,
    )
    store = Store(root)
    store.open(sweep, {}, {"n": N})
    noise = np.random.default_rng(0)
    for width in WIDTHS:
        for seed in range(seeds):
            store.write_ntk(_network(width, seed) | _spectrum() | {"iteration": 0})
        for stepsize in STEPSIZES:
            for b in SIZES:
                for seed in range(seeds):
                    store.write_trial(*_trial(width, stepsize, b, seed, noise))


def _network(width, seed):
    return {
        **{"init_id": f"{width}-{seed}", "dataset": "digits", "preprocessing": "center", "n": N, "model": "mlp"},
        **{"model_options": '{"depth": 3}', "depth": 3, "width": width, "dtype": "float32", "seed": seed},
        **{"loss": "mse", "loss_init": 1.0, "gamma": GAMMA, "k_op": K_OP, "b_star": GAMMA / K_OP},
        **{"b_star_thm33": 4 * GAMMA / K_OP, "noise_scale": 30.0},
    }


def _spectrum():
    """As many nodes as spectrum=64 has: a power law, with a residual of mass 2 L(w_0) = 2."""
    masses, shares = NODES**0.5, NODES**-0.5
    return {
        **{"k_samples": N, "n_outputs": 10, "residual_nodes": NODES, "residual_weights": 2 * N * masses / masses.sum()},
        **{"density_nodes": NODES, "density_weights": shares / shares.sum(), "method": "gram"},
    }


def _trial(width, stepsize, b, seed, noise):
    beta = GAMMA / b + (b - 1) / b * K_OP
    eta = stepsize.value if stepsize.policy == "grid" else 1 / beta
    rate = 1e-3 * eta / (1 + 12 / b) * (1 + 0.05 * noise.normal())
    key = f"{width}-{stepsize.policy}-{eta:.3g}-{b}-{seed}"
    losses = np.exp(-rate * np.array(TIMES)) * np.exp(0.02 * noise.normal(size=len(TIMES)))
    losses[0] = 1.0
    row = {
        **_network(width, seed),
        **{"cell_id": key, "status": "completed", "sampling": "without_replacement", "batch_size": b},
        **{"stepsize": stepsize.label, "eta": eta, "beta": beta, "eta_beta": eta * beta, "eta_limit": 2 / K_OP},
        **{"iterations": T, "iterations_done": T, "h": -math.log(losses[-1]) / T, "finished_at": datetime.now(UTC)},
        **{"steps_per_second": 1e4 / b**0.5, "device": "cpu", "threads": 1, "gpus": 0.0},
    }
    curve = [
        {"cell_id": key, "iteration": t, "samples": t * b, "seconds": 1e-4 * t * b**0.5, "train_loss": loss}
        for t, loss in zip(TIMES, losses.tolist(), strict=True)
    ]
    return row, curve


def main() -> None:
    """Make a folder, then its report, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=300, help="about how many trials [300]")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, parser.parse_args().trials)
        started, computed = time.perf_counter(), time.process_time()
        page = finish(root, Console(file=io.StringIO()))
        seconds, computed = time.perf_counter() - started, time.process_time() - computed
        count = len(Store(root).read("trials"))
        print(f"{count} trials: {page.stat().st_size / 1e6:.2f} MB in {seconds:.1f} s, {computed:.1f} s of CPU")


if __name__ == "__main__":
    main()
