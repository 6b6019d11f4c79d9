"""From one machine to many: the cost of all-reducing the gradients, and how many workers a batch is worth.

    $ python -m raysat.communication RESULTS/mnist --ranks 2     measure here, fit, predict, draw communication.png
    $ python -m raysat.communication RESULTS/mnist --measured measured.json     measured elsewhere (raysat.allreduce)
    $ python -m raysat.communication RESULTS/mnist --prices H200=3.5             and in money: time against cost

Two measurements are combined: a sweep's N(b) and its seconds per iteration, and the time T(s, p) of an all-reduce
(`raysat.sgd.allreduce`). A step of p workers that share a batch of b takes `launch + (b/p) sample + T(s, p)` seconds, s
being the bytes of the gradient, and a run takes N(b) steps. `ASSUMPTIONS` lists what that leaves out.
"""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
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

from raysat.analysis import GROUP, READING, analyze, by_evidence, comparable, load, method, setting, usable
from raysat.analysis.reading import devices
from raysat.analysis.tables import prices as prices_in
from raysat.errors import InputError, whole
from raysat.messages.command import command, program
from raysat.messages.terminal import Terminal
from raysat.saturation.fits import law
from raysat.sgd.allreduce import BACKENDS, Link, Measurement, fit, measure, read
from raysat.spec.goals import Target, asked
from raysat.spec.prices import Prices, from_words, price_of
from raysat.storage.files import location, output_option, write_aside, written

WORTH = 0.5
"""The efficiency (speed-up over workers) below which more workers do not pay: half of their cost is lost. The same
convention as for b_N: at b = b_N a step has half the effect per sample."""

ASSUMPTIONS = (
    "Assumed: workers are equally fast, and as fast as one alone; no part of the all-reduce is hidden behind the "
    "backward pass; N depends on b alone, as it does for synchronous SGD; the all-reduce is a ring whose links are all "
    "the same and free for it."
)


@dataclass(frozen=True)
class Work:
    """The cost of a run on one worker, independent of the link.

    Attributes:
        n_inf: N at large b, iterations to the target.
        b_n: b_N of `N(b) = n_inf (1 + (b_n/b)^q)^(1/q)`.
        launch: Seconds of a step in addition to those of its samples.
        sample: Seconds of one sample in a step.
        size: Bytes of the gradient.
        largest: Largest batch to be considered.
        source: The measured sweep, in words.
        q: How sharply N(b) bends at b_N.
        price: What an hour of a worker costs; nan if not known.
        memory: What the memory of a worker holds, in words.
    """

    n_inf: float
    b_n: float
    launch: float
    sample: float
    size: int
    largest: int
    source: str = ""
    q: float = 1.0
    price: float = math.nan
    memory: str = ""

    @property
    def label(self) -> str:
        """All but the source: `N(b) = 40 (1 + 9/b), a step takes 1 ms + b 100 µs, 0.004 MB of gradients`."""
        power, root = (f"^{self.q:.3g}", f"^(1/{self.q:.3g})") if self.q != 1 else ("", "")
        ratio = f"({self.b_n:.3g}/b){power}" if power else f"{self.b_n:.3g}/b"
        said = f"N(b) = {self.n_inf:.3g} (1 + {ratio}){root}"
        step = f"{1e3 * self.launch:.3g} ms + b {1e6 * self.sample:.3g} µs"
        return f"{said}, a step takes {step}, {self.size / 1e6:.3g} MB of gradients"

    def iterations(self, b: float) -> float:
        """Return N(b)."""
        return float(law(np.array([float(b)]), float(self.n_inf), float(self.b_n), self.q)[0])

    def seconds(self, b: float, workers: int, link: Link) -> float:
        """Return the time to the target of `workers` sharing batches of b: `N(b) (launch + b/p sample + T(s, p))`."""
        return self.iterations(b) * (self.launch + b / workers * self.sample + link.seconds(self.size, workers))

    def best_batch(self, workers: int, link: Link) -> float:
        """Return the fastest batch size: `(b_n^q (launch + T) p / sample)^(1/(q + 1))`, from p to `largest`.

        There the derivative of `N(b) (c + b sample/p)` in b is zero, c being the cost of a step without its samples.
        """
        fixed = self.launch + link.seconds(self.size, workers)
        free = math.inf
        if self.sample > 0:
            free = (self.b_n**self.q * fixed * workers / self.sample) ** (1 / (self.q + 1))
        return float(min(max(free, workers), self.largest))


def prediction(work: Work, link: Link, workers: Sequence[int], b: float | None = None) -> pd.DataFrame:
    """Return speed-up and cost against the number of workers, at one batch size or at the best one of each.

    Args:
        work: What a run takes on one worker.
        link: The link between workers.
        workers: Numbers of workers p.
        b: The batch; None for the best one of each p.

    Returns:
        A row for each p at which every worker has a sample: `workers`, `batch_size`, `iterations`, `seconds`,
        `speed_up` over one worker (at b, or at its own best batch), `efficiency` (speed-up over p), `cost` (worker
        seconds p x seconds), `communication` (the share of a step that is the all-reduce), `money` (nan without a
        price) and `frontier`: whether no other row is as fast for less.
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
    table = pd.DataFrame(rows, columns=list(names))
    return table.assign(money=table["cost"] / 3600 * work.price, frontier=_frontier(table["seconds"], table["cost"]))


def _frontier(seconds: pd.Series, cost: pd.Series) -> list[bool]:
    """Return which of several runs no other one beats or equals in both time and cost."""
    at = np.lexsort((cost, seconds))  # the fastest first
    least = np.minimum.accumulate(cost.to_numpy()[at])
    best = np.empty(len(at), dtype=bool)
    best[at] = np.diff(least, prepend=math.inf) < 0  # cheaper than all that are faster
    return best.tolist()


@dataclass(frozen=True)
class Verdict:
    """The number of workers beyond which more do not pay, among those of a prediction.

    Attributes:
        fastest: The number of workers with the shortest time.
        worth: The largest number up to which the efficiency stays at least `WORTH`.
    """

    fastest: int
    worth: int


def verdict(table: pd.DataFrame) -> Verdict:
    """Return the number of workers beyond which more do not pay, from a `prediction` ascending in workers."""
    lost = table.index[table["efficiency"] < WORTH]
    kept = table if lost.empty else table.loc[: lost[0]].iloc[:-1]
    return Verdict(
        fastest=int(table["workers"].iloc[table["seconds"].argmin()]),
        worth=int(kept["workers"].max()) if len(kept) else 1,
    )


def figure(work: Work, link: Link, workers: Sequence[int], sizes: Sequence[int]) -> Figure:
    """Draw speed-up over one worker at its best batch, and cost, against workers, for each batch size and the best."""
    drawn = Figure(figsize=(9, 4.4), layout="constrained")
    left, right = drawn.subplots(1, 2)
    base = work.seconds(work.best_batch(1, link), 1, link)
    for b in (*sizes, None):
        table = prediction(work, link, workers, b)
        look = {"color": "black", "linewidth": 2} if b is None else {"linewidth": 1}
        name = "best b of each p" if b is None else f"b = {b}"
        left.plot(table["workers"], base / table["seconds"], marker="o", markersize=3, label=name, **look)
        right.plot(table["workers"], table["cost"] / base, marker="o", markersize=3, label=name, **look)
    left.plot(workers, workers, color="0.6", linestyle=":", label="linear")
    for panel, y in ((left, "speed-up over one worker"), (right, "cost: worker-seconds, relative")):
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.set(xlabel="workers p", ylabel=y)
        panel.grid(visible=True, color="0.9", linewidth=0.6)
    left.legend(fontsize=7, frameon=False)
    drawn.suptitle(f"{work.label}; {link.label}", fontsize=9, parse_math=False)
    caption = "\n".join(line for text in (work.source, ASSUMPTIONS) for line in textwrap.wrap(text, 150))
    drawn.supxlabel(caption, fontsize=7, parse_math=False)
    return drawn


def work_of(
    trials: pd.DataFrame, curves: pd.DataFrame, targets: Sequence[float | str | Target] = (), prices: Prices = ()
) -> Work:
    """Return b_N from a sweep's best evidence, and the seconds of an iteration of the trials behind it.

    Args:
        trials: The `trials` table. Asynchronous trials are left out: the model is of synchronous SGD.
        curves: The `curves` table.
        targets: Targets for N(b). Default: chosen by the analysis.
        prices: Of a device-hour, by device (`raysat.spec.prices`).

    Raises:
        InputError: A device has no price, the sweep has no b_N, or no steps were timed.
    """
    trials = trials[~(trials["learners"] > 1)]
    analysis = analyze(trials, curves, targets)
    fits = analysis.fits
    fits = fits[(fits["quantity"] == "b_N") & fits["headline"].astype(bool) & fits["value"].notna()]
    if fits.empty:
        raise InputError("the sweep has no b_N yet, of which N(b) is made: run more batch sizes, or look at its table.")
    plain_first = fits.sort_values("training", key=lambda training: training != "sgd", kind="stable")
    best = by_evidence(plain_first).iloc[:1]
    row, name = best.iloc[0], best[[*READING, "metric", "target"]]
    steps, costs = analysis.points.merge(name), analysis.costs.merge(name)
    spent = costs[costs["cost"] == "seconds"].set_index("batch_size")["value"]
    seconds = (spent / steps.set_index("batch_size")["value"]).dropna()
    if len(seconds) < 2:
        raise InputError("seconds an iteration need trials of at least two batch sizes: run more.")
    rows = np.stack([np.ones(len(seconds)), seconds.index.to_numpy(float)], 1) / seconds.to_numpy()[:, None]
    (launch, sample), _ = nnls(rows, np.ones(len(seconds)))
    own = usable(comparable(trials).merge(best[list(GROUP)]))
    width = f"width {row['width']}, " if row["width"] else ""
    return Work(
        n_inf=float(row["asymptote"]),
        b_n=float(row["value"]),
        q=float(row["q"]),
        launch=float(launch),
        sample=float(sample),
        size=int(own["parameters"].max()) * (8 if row["dtype"] == "float64" else 4),
        largest=int(row["n"]),
        source=f"{setting(row)}, {width}{method(row)}, {Target.in_row(row).inequality}",
        price=_price(own, prices),
        memory=_memory(own),
    )


def _price(trials: pd.DataFrame, prices: Prices) -> float:
    """Return what an hour of a trial costs; nan without prices. A worker has the devices that a trial had.

    Raises:
        InputError: A device has no price, or trials had devices of several prices.
    """
    if not prices:
        return math.nan
    of_each = zip(trials["device"].astype(object), devices(trials), strict=True)
    found = {(device, count * price_of(prices, device)) for device, count in of_each}
    unknown = sorted({str(device) for device, price in found if math.isnan(price)})
    if unknown:
        raise InputError(f"prices have none for {', '.join(unknown)}: add a part of that name with its price.")
    if len({price for _, price in found}) > 1:
        raise InputError("trials of this sweep ran on devices of several prices: a prediction needs them on one kind.")
    return found.pop()[1]


def _memory(trials: pd.DataFrame) -> str:
    """Say how large a batch one worker's memory holds at a time, by the micro-batches that were taken."""
    parted = trials.loc[trials["micro_batch"] < trials["batch_size"], "micro_batch"]
    if len(parted):
        return f"A worker's memory holds {int(parted.max())} samples at a time; it takes larger shares in parts."
    return f"A worker's memory holds every batch that was run, up to {int(trials['batch_size'].max())}, at a time."


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return the exit code: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog=program("raysat.communication"), description=str(__doc__).splitlines()[0])
    parser.add_argument("root", metavar="RESULTS/NAME", help="the sweep's results folder, or its address")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--ranks", type=int, nargs="+", default=[2], help="processes of this machine that all-reduce, one run each [2]"
    )
    where.add_argument(
        "--measured", nargs="+", metavar="FILE", help="times that python -m raysat.allreduce has written"
    )
    parser.add_argument("--backend", choices=BACKENDS, default="gloo", help="gloo on CPUs, nccl on GPUs [gloo]")
    parser.add_argument("--workers", type=int, default=256, help="largest number of workers to predict [256]")
    words = "prices of a device-hour, by a part of the device's name, or a YAML file of them [the sweep's own]"
    parser.add_argument("--prices", nargs="+", metavar="NAME=PRICE", help=words)
    output_option(parser)
    options = parser.parse_args(arguments)
    _main(options, Terminal())
    return 0


def _main(options: argparse.Namespace, console: Console) -> None:
    root, most = location(options.root), whole("--workers", options.workers, 1)
    record, trials, curves = load(root)
    prices = prices_in(record) if options.prices is None else from_words("--prices", options.prices)
    work = work_of(trials, curves, asked(record["sweep"]), prices)
    if options.measured:
        measured = [one for address in options.measured for one in read(location(address))]
    else:
        measured = [one for ranks in options.ranks for one in measure(ranks, backend=options.backend)]
    link = fit(measured)
    workers = [2**k for k in range(most.bit_length())]
    _tell(work, link, measured, workers, console)
    sizes = [4**k for k in range(1, 9) if 4**k <= work.largest]
    output = location(options.output or root)
    path = output / "figures" / "communication.png"
    with written(output):
        (output / "figures").mkdir(parents=True, exist_ok=True)
        write_aside(path, partial(figure(work, link, workers, sizes).savefig, dpi=150, format="png"))
        write_aside(output / "communication.parquet", pd.DataFrame([asdict(one) for one in measured]).to_parquet)
    console.print(f"Figure: {path}")


def _tell(work: Work, link: Link, measured: Sequence[Measurement], workers: Sequence[int], console: Console) -> None:
    """Print the prediction, its ingredients, and its assumptions."""
    table = prediction(work, link, workers)
    title = "Predicted, each p at its best b; cost in worker-seconds, all-reduce as a share of the time"
    shown = Table(title=title, box=box.SIMPLE_HEAD, padding=0)
    heads = ["workers", "b", "N(b)", "seconds", "speed-up", "efficiency", "cost", "all-reduce"]
    values = table.drop(columns="frontier")
    if math.isnan(work.price):
        values = values.drop(columns="money")
    else:
        heads.append("money")
    for name in heads:
        shown.add_column(name, justify="right")
    for row in values.itertuples(index=False):
        shown.add_row(*(f"{value:.3g}" for value in row))
    console.print(shown)
    said, ranks = verdict(table), sorted({one.ranks for one in measured})
    times = f"{len(measured)} times between {' and '.join(map(str, ranks))} ranks"
    console.print(
        f"From: {work.source}. {work.label}.\n"
        f"All-reduce: {link.label}, from {times}, each within a factor of {link.miss(measured):.2g}; with more ranks "
        "than these the table extrapolates.\n"
        f"{ASSUMPTIONS}\n"
        f"Fastest with {said.fastest} workers; beyond {said.worth} the efficiency is below {WORTH:g}: more do not pay."
        f"\n{frontier(table, work)} {work.memory}",
        highlight=False,
    )


def frontier(table: pd.DataFrame, work: Work) -> str:
    """Describe the runs that no other one beats in both time and cost.

    p workers cost p times their time, so that of each p the fastest batch size is also the cheapest.

    Args:
        table: A `prediction`.
        work: What it is of.
    """
    unpriced = math.isnan(work.price)
    best = table[table["frontier"]].sort_values("cost").to_dict("records")
    each = (
        f"{row['workers']:g} with b = {row['batch_size']:.3g} take {row['seconds']:.3g} s for "
        + (f"{row['cost']:.3g} worker-seconds" if unpriced else f"{row['money']:.3g}")
        for row in best
    )
    price = "" if unpriced else f" at {work.price:.3g} an hour of a worker"
    return f"Time against cost{price}, from the cheapest to the fastest: {'; '.join(each)}. No other number is better."


if __name__ == "__main__":
    sys.exit(main())
