"""The whole loss curve of SGD, for any batch size and stepsize, from the statistics at initialization alone.

    $ python -m raysat.forecast sweeps/mnist.py --set widths=[512]

The curves are those of `raysat.saturation.recursion`, which says how they are derived and when they fail; from them
follow h(b), N(b; eps) and the critical batch sizes, which are refused in words where measured ones would be
(`raysat.saturation.critical`).
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raysat.analysis import number
from raysat.driver import sweepfile
from raysat.driver.plan import plan
from raysat.errors import InputError
from raysat.messages.command import command, program
from raysat.messages.terminal import Terminal
from raysat.saturation.critical import critical_batch
from raysat.saturation.formulas import beta
from raysat.saturation.recursion import Spectrum, largest_stable, loss_curves, noise_factor
from raysat.saturation.targets import steps_to_target
from raysat.spec.training import PLAIN
from raysat.text import duration
from raysat.trial.initial import compute_statistics
from raysat.trial.job import Job

STEPS = 64
"""Products with K for the residual's spectral measure. Default: 64; on MNIST doubling it changes no forecast loss by
0.1 %."""

GRID = 2.0 ** np.arange(-4, 0, 0.25)
"""The stepsizes among which the best is sought, as fractions of the largest stable one: powers of 2^(1/4)."""


def tuned_steps(
    spectrum: Spectrum, b: Int[np.ndarray, " k"], eps: float, iterations: int, *, replacement: bool = False
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """N(b; eps) with each batch size's best stepsize of `GRID`, and which one that is, over the largest stable one.

    Args:
        spectrum: The spectrum.
        b: Batch sizes.
        eps: The target loss.
        iterations: How far to look; N is NaN where the target lies further.
        replacement: How batches are drawn.
    """
    phi = np.array([noise_factor(int(size), spectrum.n, replacement=replacement) for size in b])
    most = np.array([largest_stable(spectrum, value) for value in phi])
    curves = loss_curves(spectrum, (most[:, None] * GRID).ravel(), np.repeat(phi, len(GRID)), iterations)
    t = np.arange(iterations + 1)
    steps = np.array([steps_to_target(t, curve, eps) for curve in curves]).reshape(len(b), -1)
    best = np.where(np.isnan(steps), math.inf, steps).argmin(1)
    found = steps[np.arange(len(b)), best]
    return found, np.where(np.isnan(found), math.nan, GRID[best])


@dataclass(frozen=True)
class Forecast:
    """What the statistics at initialization say of a sweep.

    Attributes:
        by_batch: One row a batch size: `eta_max`, the largest stable stepsize; `eta_theory` = 1/beta(b) with `h_theory`
            and `N_theory`; `eta_best` and `N_best`, tuned among the stable ones.
        b_star: gamma / k_op.
        b_N: Fit of N_best; nan where `remarks` say why.
        b_N_theory: Fit of N_theory; likewise.
        b_h_theory: Fit of h_theory, at T iterations; likewise.
        target: The loss to which N belongs.
        iterations: T.
        remarks: Why a critical batch size is refused, and where the best stepsizes lie at an end of those tried.
    """

    by_batch: pd.DataFrame
    b_star: float
    b_N: float
    b_N_theory: float
    b_h_theory: float
    target: float
    iterations: int
    remarks: tuple[str, ...]


def forecast(
    row: Mapping[str, Any],
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
    with np.errstate(divide="ignore"):
        h = np.log(curves[:, 0] / curves[:, -1]) / iterations
    n_best, share = tuned_steps(spectrum, b, target, iterations, replacement=replacement)
    eta_max = np.array([largest_stable(spectrum, value) for value in phi])
    table = {"batch_size": b, "eta_max": eta_max, "eta_theory": eta, "h_theory": h, "N_theory": n_theory}
    missed = f"in T = {iterations:,} iterations L <= {number(target)} is not reached"
    b_N, b_N_why = _fit(b, n_best, "N", missed)
    b_N_theory, b_N_theory_why = _fit(b, n_theory, "N", missed)
    b_h_theory, b_h_theory_why = _fit(b, h, "h", "the loss grows beyond all bounds")
    refused = {"b_N": b_N_why, "b_N under 1/beta(b)": b_N_theory_why, "b_h under 1/beta(b)": b_h_theory_why}
    return Forecast(
        by_batch=pd.DataFrame(table | {"eta_best": share * eta_max, "N_best": n_best}),
        b_star=gamma / k_op,
        b_N=b_N,
        b_N_theory=b_N_theory,
        b_h_theory=b_h_theory,
        target=target,
        iterations=iterations,
        remarks=(*(f"No {name}: {why}." for name, why in refused.items() if why), *_at_ends(b, share)),
    )


def _fit(
    b: Int[np.ndarray, " k"], values: Float[np.ndarray, " k"], quantity: Literal["h", "N"], missed: str
) -> tuple[float, str]:
    """A critical batch size, or nan and why there is none; `missed` says what it means that a value is none."""
    if not (known := np.isfinite(values)).all():
        return math.nan, f"{missed} at b = {', '.join(map(str, b[~known]))}"
    fit = critical_batch(b, values[None], quantity)
    return fit.value, fit.reason


def _at_ends(b: Int[np.ndarray, " k"], share: Float[np.ndarray, " k"]) -> Iterator[str]:
    """Where the best stepsize may lie beyond those that were tried."""
    for end, name in ((GRID[0], "smallest"), (GRID[-1], "largest")):
        if (share == end).any():
            sizes = ", ".join(map(str, b[share == end]))
            yield (
                f"At b = {sizes} the best stepsize is the {name} tried, {end:.2g} of the largest stable one: N may be "
                "smaller beyond it."
            )


def show(name: str, made: Forecast, console: Console) -> None:
    """Print a forecast: the critical batch sizes in each sense, and a row a batch size."""
    b_N, b_N_theory, b_h_theory = map(number, (made.b_N, made.b_N_theory, made.b_h_theory))
    console.print(Text(name, style="bold"))
    if not math.isnan(made.b_N):
        console.print(
            f"Use b up to about {number(made.b_N, 2)}: beyond, larger batches cease to save iterations in proportion. "
            "This is a forecast from the initialization alone, with the best stable stepsizes.",
            highlight=False,
        )
    console.print(
        f"b_star {number(made.b_star)}; b_N {b_N} with the best stable stepsizes; under 1/beta(b) b_N {b_N_theory} "
        f"and, at T = {made.iterations:,}, b_h {b_h_theory}. Target: L <= {number(made.target)}.",
        highlight=False,
    )
    for remark in made.remarks:
        console.print(remark, highlight=False)
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for column in made.by_batch:
        shown.add_column(str(column), justify="right")
    for row in made.by_batch.to_dict("records"):
        shown.add_row(
            str(row["batch_size"]), *(number(value, 4) for name, value in row.items() if name != "batch_size")
        )
    console.print(shown)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command: the statistics of a sweep's first seed, in this process, and what follows from them."""
    parser = argparse.ArgumentParser(
        prog=program("raysat.forecast"), description="Forecast a sweep from the statistics at initialization alone."
    )
    parser.add_argument("file", type=Path, help="a sweep file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a field of the sweep")
    parser.add_argument("--target", type=float, help="the loss that N(b) counts to")
    options = parser.parse_args(arguments)
    console = Terminal()
    _main(options, console)
    return 0


def _main(options: argparse.Namespace, console: Console) -> None:
    sweep = sweepfile.override(sweepfile.load(options.file), options.set)
    if sweep.loss != "mse":
        raise InputError(f"loss={sweep.loss!r}: the recursion is that of the squared error; set loss='mse'.")
    if sweep.iterations is None or set(sweep.trainings) != {PLAIN}:
        raise InputError("the forecast is of plain SGD under iterations=: set both, and leave out trainings.")
    if sweep.sampling == "epochs":
        raise InputError(
            "sampling='epochs': the recursion is that of batches drawn independently; set sampling to "
            "'without_replacement' or 'with_replacement'."
        )
    iterations = sweep.iterations
    sweep = replace(sweep, seeds=sweep.each_seed[:1], spectrum=sweep.spectrum or STEPS)
    laid_out = plan(sweep, options.file.parent)
    target = options.target or (min(sweep.targets) if sweep.targets else None)
    seen = set()
    for cell in sorted(laid_out.cells, key=lambda cell: cell.init.width):
        if cell.init.init_id in seen:
            continue
        seen.add(cell.init.init_id)
        job = Job(sweep=sweep.name, init=cell.init, sources=laid_out.sources, threads=os.cpu_count() or 1)
        row = compute_statistics(job)
        if row["gamma"] is None:
            raise InputError(f"{cell.init.name} has no statistics to forecast from: {row['method_reason']}.")
        made = forecast(row, sweep.batch_sizes, iterations, target, replacement=sweep.sampling == "with_replacement")
        show(f"{cell.init.name}, {duration(row['seconds'])}", made, console)
    console.print(
        "From the network at initialization, linearized, with delocalized eigenvectors: see the head of "
        "raysat/saturation/recursion.py for when that fails."
    )


if __name__ == "__main__":
    sys.exit(main())
