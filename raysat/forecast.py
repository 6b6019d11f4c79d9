"""The whole loss curve of SGD, for any batch size and stepsize, from the statistics at initialization alone.

    $ python -m raysat.forecast sweeps/mnist.py --set widths=[512]

**Derivation.** Linearize the network at w_0. With `P_S` the projection on the outputs of a batch S of b of n samples,
one step takes the residual to `r - eta (n/b) K P_S r`. In K's eigenbasis (`lambda_j`, `u_j`) let `v_j = E (u_j^T r)^2`,
so that `L = 1/(2n) sum_j v_j`. The mean over S of the new coefficient is `(1 - eta lambda_j) u_j^T r`, and its variance
is that of a sum of b of the n numbers `z_i = u_ji^T r_i`, scaled by `eta lambda_j n/b`:

    v_j <- (1 - eta lambda_j)^2 v_j + eta^2 phi lambda_j^2 (n sum_i z_i^2 - (u_j^T r)^2),

`phi = (n-b)/(b(n-1))` for b distinct samples, `1/b` for independent draws. This is exact. What is not is the step

    n sum_i z_i^2  ~  (1/C) sum_k v_k,

**delocalization**: the mass of an eigenvector is spread evenly over the samples, and within a sample its direction is
independent of the residual's. The two approximations fail where the kernel moves (narrow networks, stepsizes near or
beyond 2/k_op, long runs) and where single samples have eigenvectors of their own (outliers, whose mass is not spread:
then small batches are noisier than forecast). At b = n, phi = 0, and the recursion is gradient descent on the
linearized network exactly.

**Matrix-free.** What noise has put into direction j is a function of lambda_j alone. So the sum over j splits into the
initial residual, `sum_j v_j(0) f(lambda_j)^t` with `f(lambda) = (1 - eta lambda)^2 - eta^2 phi lambda^2`, an integral
over the spectral measure of K and r, and an integral over the density of eigenvalues: a few dozen nodes each
(`raysat.ntk.spectrum`).
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from rich import box
from rich.console import Console
from rich.table import Table

from raysat import sweepfile
from raysat.fits import fit_saturation, steps_to_target
from raysat.plan import plan
from raysat.theory import beta
from raysat.trial import Job, compute_statistics
from raysat.validation import InputError

STEPS = 64
"""Products with K for each spectral measure. Default: 64; on MNIST doubling it changes no forecast loss by 0.1 %."""

GRID = 2.0 ** np.arange(-4, 0.26, 0.25)
"""The stepsizes among which the best is sought, as fractions of the largest stable one: powers of 2^(1/4)."""


@dataclass(frozen=True)
class Spectrum:
    """What of a network at initialization decides its linearized training.

    Attributes:
        n: Training samples.
        samples: Samples over which K was taken.
        nodes: Eigenvalues: of the residual's measure, then of the density. Shape: [q].
        residual: Mass of the residual at each node, by sample: its sum is `2 L(w_0)`; 0 at the density's nodes.
        density: Share of K's eigenvalues at each node, of sum 1; 0 at the residual's nodes.
        outputs: C.
    """

    n: int
    samples: int
    nodes: Float[np.ndarray, " q"]
    residual: Float[np.ndarray, " q"]
    density: Float[np.ndarray, " q"]
    outputs: int

    @classmethod
    def of(cls, row: Mapping[str, object]) -> Spectrum:
        """From a row of `ntk` (or the fields of `NTKStatistics`) that has the spectral measures.

        Raises:
            InputError: It has none.
        """
        if row.get("residual_nodes") is None or len(row["residual_nodes"]) == 0:
            raise InputError("the statistics have no spectral measures: set spectrum=64 (and loss='mse').")
        own, all_ = (np.asarray(row[f"{name}_nodes"], float) for name in ("residual", "density"))
        masses = np.asarray(row["residual_weights"], float) / int(row["k_samples"])
        shares = np.asarray(row["density_weights"], float)
        return cls(
            n=int(row["n"]),
            samples=int(row["k_samples"]),
            nodes=np.concatenate([own, all_]).clip(0),
            residual=np.concatenate([masses, np.zeros(len(all_))]),
            density=np.concatenate([np.zeros(len(own)), shares]),
            outputs=int(row["n_outputs"]),
        )


def noise_factor(b: int, n: int, *, replacement: bool = False) -> float:
    """phi: the variance of a batch's mean in units of one sample's, times `n/(n-1)` without replacement."""
    if replacement:
        return 1 / b
    return (n - b) / (b * (n - 1)) if n > 1 else 0.0


def loss_curves(
    spectrum: Spectrum, eta: Float[np.ndarray, " k"], phi: Float[np.ndarray, " k"], iterations: int
) -> Float[np.ndarray, "k t"]:
    """The expected losses L(w_0), ..., L(w_T) for several stepsizes and noise factors side by side.

    A curve that diverges is cut off at infinity.

    Args:
        spectrum: The spectrum.
        eta: Stepsizes.
        phi: Noise factors, from `noise_factor`.
        iterations: T.
    """
    step = eta[:, None] * spectrum.nodes  # (k, q)
    noise = phi[:, None] * step**2
    keep = (1 - step) ** 2 - noise
    put = noise * spectrum.density * spectrum.samples
    mass = np.tile(spectrum.residual, (len(eta), 1))
    losses = np.empty((len(eta), iterations + 1))
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(iterations + 1):
            total = mass.sum(1)
            losses[:, t] = total / 2
            mass = keep * mass + put * total[:, None]
    return np.where(np.isfinite(losses) & (losses >= 0), losses, math.inf)


def largest_stable(spectrum: Spectrum, phi: float) -> float:
    """The largest eta at which the expected loss does not grow without bound.

    With `1 - f = eta lambda (2 - eta lambda (1 - phi))` for each eigenvalue, what noise puts in and what decays balance
    where `(1/C) sum_j eta phi lambda_j / (2 - eta lambda_j (1 - phi)) = 1`; the left side rises with eta. The mean of
    SGD is gradient descent, so that it is never above 2/k_op.
    """
    limit = 2 / spectrum.nodes.max()
    shares = spectrum.samples * spectrum.density

    def gain(eta: float) -> float:
        return float((shares * eta * phi * spectrum.nodes / (2 - eta * spectrum.nodes * (1 - phi))).sum())

    if gain(limit * (1 - 1e-12)) < 1:
        return limit
    low, high = 0.0, limit
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gain(middle) < 1 else (low, middle)
    return low


def tuned_steps(
    spectrum: Spectrum, b: Int[np.ndarray, " k"], eps: float, iterations: int, *, replacement: bool = False
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """N(b; eps) with each batch size's best stepsize among the stable ones, and that stepsize.

    Args:
        spectrum: The spectrum.
        b: Batch sizes.
        eps: The target loss.
        iterations: How far to look; N is NaN where the target lies further.
        replacement: How batches are drawn.
    """
    phi = np.array([noise_factor(int(size), spectrum.n, replacement=replacement) for size in b])
    most = np.array([largest_stable(spectrum, value) for value in phi])
    etas = (most[:, None] * GRID[GRID < 1]).ravel()
    curves = loss_curves(spectrum, etas, np.repeat(phi, (GRID < 1).sum()), iterations)
    t = np.arange(iterations + 1)
    steps = np.array([steps_to_target(t, curve, eps) for curve in curves]).reshape(len(b), -1)
    best = np.where(np.isnan(steps), math.inf, steps).argmin(1)
    rows = np.arange(len(b))
    return steps[rows, best], np.where(np.isnan(steps[rows, best]), math.nan, etas.reshape(len(b), -1)[rows, best])


@dataclass(frozen=True)
class Forecast:
    """What the statistics at initialization say of a sweep.

    Attributes:
        by_batch: One row a batch size: `eta_max`, the largest stable stepsize; `eta_theory` = 1/beta(b) with `h_theory`
            and `N_theory`; `eta_best` and `N_best`, tuned among the stable ones.
        b_star: gamma / k_op.
        b_N: Fit of N_best.
        b_N_theory: Fit of N_theory.
        b_h_theory: Fit of h_theory, at T iterations.
        target: The loss to which N belongs.
        iterations: T.
    """

    by_batch: pd.DataFrame
    b_star: float
    b_N: float
    b_N_theory: float
    b_h_theory: float
    target: float
    iterations: int


def forecast(
    row: Mapping[str, object],
    batch_sizes: Sequence[int],
    iterations: int,
    target: float | None = None,
    *,
    replacement: bool = False,
) -> Forecast:
    """Forecast a sweep's critical batch sizes from a row of statistics.

    Args:
        row: A row of `ntk`, or the fields of `NTKStatistics`, with spectral measures.
        batch_sizes: Batch sizes.
        iterations: T.
        target: The loss that N counts to. Default: what b = 1 (the smallest b) reaches under 1/beta(b) in T iterations.
        replacement: How batches are drawn.
    """
    spectrum = Spectrum.of(row)
    gamma, k_op = float(row["gamma"]), float(row["k_op"])
    b = np.array(sorted(batch_sizes))
    phi = np.array([noise_factor(int(size), spectrum.n, replacement=replacement) for size in b])
    eta = 1 / np.array([beta(int(size), spectrum.n, gamma, k_op, replacement=replacement) for size in b])
    curves = loss_curves(spectrum, eta, phi, iterations)
    if target is None:
        target = float(curves[0].min())
    t = np.arange(iterations + 1)
    n_theory = np.array([steps_to_target(t, curve, target) for curve in curves])
    h = np.log(curves[:, 0] / curves[:, -1]) / iterations
    n_best, eta_best = tuned_steps(spectrum, b, target, iterations, replacement=replacement)
    eta_max = [largest_stable(spectrum, value) for value in phi]
    table = {"batch_size": b, "eta_max": eta_max, "eta_theory": eta, "h_theory": h, "N_theory": n_theory}
    with np.errstate(divide="ignore", invalid="ignore"):
        fits = [float(fit_saturation(b, np.where(y > 0, y, math.nan)).b_c) for y in (n_best, n_theory, 1 / h)]
    return Forecast(
        by_batch=pd.DataFrame(table | {"eta_best": eta_best, "N_best": n_best}),
        b_star=gamma / k_op,
        b_N=fits[0],
        b_N_theory=fits[1],
        b_h_theory=fits[2],
        target=target,
        iterations=iterations,
    )


def show(name: str, made: Forecast, console: Console) -> None:
    """Print a forecast: the critical batch sizes in each sense, and a row a batch size."""
    console.print(f"[bold]{name}[/]")
    console.print(
        f"b_star {made.b_star:.3g}; b_N {made.b_N:.3g} with the best stable stepsizes; under 1/beta(b) b_N "
        f"{made.b_N_theory:.3g} and, at T = {made.iterations:,}, b_h {made.b_h_theory:.3g}. "
        f"Target: L <= {made.target:.3g}."
    )
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for column in made.by_batch:
        shown.add_column(column, justify="right")
    for row in made.by_batch.to_dict("records"):
        shown.add_row(str(row["batch_size"]), *(f"{value:.4g}" for name, value in row.items() if name != "batch_size"))
    console.print(shown)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: the statistics of a sweep's first seed, in this process, and what follows from them."""
    parser = argparse.ArgumentParser(
        prog="python -m raysat.forecast", description="Forecast a sweep from the statistics at initialization alone."
    )
    parser.add_argument("file", type=Path, help="a sweep file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a field of the sweep")
    parser.add_argument("--target", type=float, help="the loss that N(b) counts to")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        _main(options, console)
    except InputError as error:
        print(f"raysat: {error}", file=sys.stderr)
        return 2
    return 0


def _main(options: argparse.Namespace, console: Console) -> None:
    sweep = sweepfile.override(sweepfile.load(options.file), options.set)
    if sweep.loss != "mse":
        raise InputError(f"loss={sweep.loss!r}: the recursion is that of the squared error; set loss='mse'.")
    sweep = replace(sweep, seeds=sweep.seeds[:1], spectrum=sweep.spectrum or STEPS)
    laid_out = plan(sweep, options.file.parent)
    target = options.target or (min(sweep.targets) if sweep.targets else None)
    seen = set()
    for cell in sorted(laid_out.cells, key=lambda cell: cell.init.width):
        if cell.init.init_id in seen:
            continue
        seen.add(cell.init.init_id)
        job = Job(sweep=sweep.name, init=cell.init, sources=laid_out.sources, threads=os.cpu_count() or 1)
        row = compute_statistics(job)
        made = forecast(
            row, sweep.batch_sizes, sweep.iterations, target, replacement=sweep.sampling == "with_replacement"
        )
        show(f"{cell.init.name}, {row['seconds']:.0f} s", made, console)
    console.print(
        "From the network at initialization, linearized, with delocalized eigenvectors: see the head of "
        "raysat/forecast.py for when that fails."
    )


if __name__ == "__main__":
    sys.exit(main())
