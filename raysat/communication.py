"""From one machine to many: what the all-reduce of the gradients costs, and how many workers a batch is worth.

    $ python -m raysat.communication RESULTS/mnist --ranks 2     measure here, fit, predict, draw communication.png

Two measurements are put together: the sweep's N(b) and its seconds an iteration, and the time T(s, p) of an all-reduce
(`raysat.allreduce`). A step of p workers that share a batch of b takes `launch + (b/p) sample + T(s, p)` seconds, s
being the bytes of the gradient, and a run takes N(b) of them.

Assumptions: workers are equally fast; no part of the all-reduce is hidden behind the backward pass, so that a speed-up
is a lower bound; N depends on b alone, as it does for synchronous SGD; and those of `raysat.allreduce`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.optimize import nnls

from raysat.allreduce import Link, fit, measure
from raysat.analysis import analyze, load
from raysat.files import location, write_aside
from raysat.validation import InputError

WORTH = 0.5
"""The efficiency, speed-up over workers, below which more workers are said not to pay: half of what they cost is lost.
As for b_N: at b = b_N a step has half the effect a sample."""


@dataclass(frozen=True)
class Work:
    """What a run takes on one worker, whatever the link.

    Attributes:
        n_inf: N at large b, iterations to the target.
        b_n: b_N of `N(b) = n_inf (1 + b_n/b)`.
        launch: Seconds of a step beside its samples.
        sample: Seconds of one sample in a step.
        size: Bytes of the gradient.
        largest: Largest batch to be considered.
    """

    n_inf: float
    b_n: float
    launch: float
    sample: float
    size: int
    largest: int

    def iterations(self, b: float) -> float:
        """N(b)."""
        return self.n_inf * (1 + self.b_n / b)

    def seconds(self, b: float, workers: int, link: Link) -> float:
        """Time to the target of `workers` that share batches of b: `N(b) (launch + b/p sample + T(s, p))`."""
        return self.iterations(b) * (self.launch + b / workers * self.sample + link.seconds(self.size, workers))

    def best_batch(self, workers: int, link: Link) -> float:
        """The batch that ends soonest: `sqrt(b_n (launch + T) p / sample)`, at least p and at most `largest`.

        There the derivative of `(1 + b_n/b)(c + b sample/p)` in b is zero, c being what a step costs beside samples.
        """
        fixed = self.launch + link.seconds(self.size, workers)
        free = math.sqrt(self.b_n * fixed * workers / self.sample) if self.sample > 0 else math.inf
        return float(min(max(free, workers), self.largest))


def prediction(work: Work, link: Link, workers: Sequence[int], b: float | None = None) -> pd.DataFrame:
    """Speed-up and cost against the number of workers, at one batch or at the best one of each.

    Args:
        work: What a run takes on one worker.
        link: The connection.
        workers: Numbers of workers p.
        b: The batch; None for the best one of each p.

    Returns:
        A row for each p at which every worker has a sample: `workers`, `batch_size`, `iterations`, `seconds`,
        `speed_up` over one worker (at b, or at its own best batch), `efficiency` (speed-up over p), `cost` (worker
        seconds p x seconds) and `communication` (the share of a step that is the all-reduce).
    """
    alone = work.seconds(work.best_batch(1, link) if b is None else b, 1, link)
    rows = []
    for p in workers:
        size = work.best_batch(p, link) if b is None else b
        if size < p:
            continue
        seconds = work.seconds(size, p, link)
        step = seconds / work.iterations(size)
        row = (p, size, work.iterations(size), seconds, alone / seconds, alone / seconds / p, p * seconds)
        rows.append((*row, link.seconds(work.size, p) / step))
    names = ("workers", "batch_size", "iterations", "seconds", "speed_up", "efficiency", "cost", "communication")
    return pd.DataFrame(rows, columns=list(names))


@dataclass(frozen=True)
class Verdict:
    """Where more workers stop paying, among those of a prediction.

    Attributes:
        fastest: The number of workers that ends soonest.
        worth: The largest number up to which the efficiency stays at least `WORTH`.
    """

    fastest: int
    worth: int


def verdict(table: pd.DataFrame) -> Verdict:
    """Where more workers stop paying, of the result of `prediction`, ascending in workers."""
    lost = table.index[table["efficiency"] < WORTH]
    kept = table if lost.empty else table.loc[: lost[0]].iloc[:-1]
    return Verdict(
        fastest=int(table.loc[table["seconds"].idxmin(), "workers"]),
        worth=int(kept["workers"].max()) if len(kept) else 1,
    )


def figure(work: Work, link: Link, workers: Sequence[int], sizes: Sequence[int]) -> Figure:
    """Speed-up over one worker, and cost, against the number of workers: a line a batch size, and the best batches."""
    drawn = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = drawn.subplots(1, 2)
    base = work.seconds(work.best_batch(1, link), 1, link)
    for b in (*sizes, None):
        table = prediction(work, link, workers, b)
        look = {"color": "black", "linewidth": 2} if b is None else {"linewidth": 1}
        name = "best b of each p" if b is None else f"b = {b}"
        left.plot(table["workers"], base / table["seconds"], marker="o", markersize=3, label=name, **look)
        right.plot(table["workers"], table["cost"] / base, marker="o", markersize=3, label=name, **look)
    left.plot(workers, workers, color="0.6", linestyle=":", label="linear")
    for panel, y in ((left, "speed-up over one worker at its best b"), (right, "cost: worker-seconds, relative")):
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.set(xlabel="workers p", ylabel=y)
        panel.grid(visible=True, color="0.9", linewidth=0.6)
    left.legend(fontsize=7, frameon=False)
    drawn.suptitle(
        f"N(b) = {work.n_inf:.3g} (1 + {work.b_n:.3g}/b), {work.size / 1e6:.3g} MB of gradients, "
        f"alpha = {1e6 * link.alpha:.3g} µs, {link.bandwidth / 1e9:.3g} GB/s",
        fontsize=10,
    )
    return drawn


def work_of(trials: pd.DataFrame, curves: pd.DataFrame) -> Work:
    """What a sweep measured: its b_N of the largest width, and the seconds of an iteration against b.

    Raises:
        InputError: The sweep has no b_N, or no steps were timed.
    """
    fits = analyze(trials, curves).fits
    fits = fits[(fits["quantity"] == "b_N") & fits["headline"] & fits["value"].notna()]
    if fits.empty:
        raise InputError("the sweep has no b_N yet, of which N(b) is made: run more batch sizes, or look at its table.")
    row = fits.sort_values("width").iloc[-1]
    timed = trials[(trials["width"] == row["width"]) & (trials["steps_per_second"] > 0)]
    by_size = 1 / timed.groupby("batch_size")["steps_per_second"].median()
    if len(by_size) < 2:
        raise InputError("seconds an iteration need trials of at least two batch sizes: run more.")
    rows = np.stack([np.ones(len(by_size)), by_size.index.to_numpy(float)], 1) / by_size.to_numpy()[:, None]
    (launch, sample), _ = nnls(rows, np.ones(len(by_size)))
    bytes_each = 8 if timed["dtype"].iloc[0] == "float64" else 4
    size = bytes_each * int(timed["parameters"].iloc[0])
    largest = int(timed["n"].iloc[0])
    return Work(float(row["asymptote"]), float(row["value"]), float(launch), float(sample), size, largest)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m raysat.communication", description=__doc__.splitlines()[0])
    parser.add_argument("root", metavar="RESULTS/NAME", help="the sweep's results folder, or its address")
    parser.add_argument("--ranks", type=int, default=2, help="processes between which the all-reduce is measured [2]")
    parser.add_argument("--backend", choices=("gloo", "nccl"), default="gloo", help="gloo on CPUs, nccl on GPUs [gloo]")
    parser.add_argument("--workers", type=int, default=256, help="largest number of workers to predict [256]")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        root = location(options.root)
        _, trials, curves = load(root)
        work = work_of(trials, curves)
        measured = measure(options.ranks, backend=options.backend)
        link = fit(measured)
    except InputError as error:
        print(f"raysat: {error}", file=sys.stderr)
        return 2
    workers = [2**k for k in range(options.workers.bit_length())]
    table = prediction(work, link, workers)
    title = f"Predicted from {root.name} and {options.ranks} ranks under {options.backend}"
    shown = Table(title=title, box=box.SIMPLE_HEAD, padding=0)
    for name in table.columns:
        shown.add_column(name.replace("_", " "), justify="right")
    for row in table.itertuples(index=False):
        shown.add_row(*(f"{value:.3g}" for value in row))
    console.print(shown)
    told = verdict(table)
    console.print(
        f"alpha = {1e6 * link.alpha:.3g} µs, bandwidth = {link.bandwidth / 1e9:.3g} GB/s, from {len(measured)} sizes.\n"
        f"Fastest with {told.fastest} workers; beyond {told.worth} the efficiency is below {WORTH:g}: more do not pay."
    )
    sizes = [4**k for k in range(1, 9) if 4**k <= work.largest]
    drawn = figure(work, link, workers, sizes)
    (root / "figures").mkdir(exist_ok=True)
    path = root / "figures" / "communication.png"
    write_aside(path, partial(drawn.savefig, dpi=150, format="png"))
    record = pd.DataFrame([asdict(one) for one in measured])
    write_aside(root / "communication.parquet", record.to_parquet)
    console.print(f"Figure: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
