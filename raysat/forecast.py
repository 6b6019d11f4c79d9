"""Forecast how large a batch is worth using, from the statistics at initialization alone, without training.

    $ python -m raysat.forecast sweeps/mnist.py --set widths=[512]
    $ python -m raysat.forecast sweeps/mnist.py --target 0.3 --output forecast

It prints the batch size to use and a row for each batch size, and writes a figure and a page. The numbers come from
`raysat.saturation.forecast`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raysat.analysis import network
from raysat.driver import sweepfile
from raysat.driver.plan import Plan, plan
from raysat.errors import InputError, positive
from raysat.messages.command import command, program
from raysat.messages.terminal import Terminal
from raysat.saturation.forecast import Forecast, forecast
from raysat.spec import Sweep
from raysat.spec.cells import Initialization
from raysat.spec.goals import TRAIN_LOSS
from raysat.spec.training import PLAIN
from raysat.storage.files import location
from raysat.trial.initial import compute_statistics
from raysat.trial.job import Job

STEPS = 64
"""Products with K for the residual's spectral measure. Default: 64; on MNIST doubling it changes no forecast loss by
0.1 %."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: compute the statistics of a sweep's first seed in this process, and forecast from them."""
    parser = argparse.ArgumentParser(
        prog=program("raysat.forecast"),
        description="Say how large a batch is worth using, from the network at initialization alone: nothing is "
        "trained. A figure and a page are written too.",
    )
    parser.add_argument("file", type=Path, help="a sweep file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a field of the sweep")
    parser.add_argument(
        "--target", type=float, metavar="LOSS", help="the loss that N(b) counts to [the sweep's smallest]"
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="where the page and the figure are written [results/NAME-forecast]"
    )
    options = parser.parse_args(arguments)
    if options.target is not None:
        positive("--target", options.target)
    _main(options, Terminal())
    return 0


def _main(options: argparse.Namespace, console: Console) -> None:
    sweep = sweepfile.override(sweepfile.load(options.file), options.set)
    _check(sweep)
    iterations = sweep.iterations
    assert iterations is not None  # checked above
    sweep = replace(sweep, seeds=sweep.each_seed[:1], spectrum=sweep.spectrum or STEPS)
    laid_out = plan(replace(sweep, batch_sizes=(min(sweep.batch_sizes),)), options.file.parent)
    if any(cell.training.transform for cell in laid_out.cells):
        raise InputError(
            f"{sweep.dataset!r} has a transform, and the forecast is of fixed training samples: forecast from a data "
            "set without one."
        )
    n = int(laid_out.data["n"])
    sizes = [b for b in sweep.batch_sizes if b <= n]
    above = ", ".join(f"{b:,}" for b in sorted(set(sweep.batch_sizes) - set(sizes)))
    notes = [f"Left out: b = {above}, for there are {n:,} training samples."] * bool(above)
    losses = [one.level for one in sweep.measured if one.metric == TRAIN_LOSS]
    target = options.target or min(losses, default=None)
    replacement = sweep.sampling == "with_replacement"
    made = {
        _named(row): forecast(row, sizes, iterations, target, replacement=replacement)
        for row in _statistics(sweep, laid_out, console)
    }
    from raysat.report import foreseen  # imported here, because it loads matplotlib: bad input is reported before

    for name, one in made.items():
        show(name, one, console)
    for note in (*foreseen.explained(), *notes, foreseen.HOW):
        console.print(Text(note))
    folder = location(options.output or str(Path("results") / f"{sweep.name}-forecast"))
    path = foreseen.save(made, sweep.name, notes, folder)
    console.print(Text(f"Page and figure: {path}"), soft_wrap=True)


def _check(sweep: Sweep) -> None:
    """Raise `InputError` if the recursion does not describe the sweep's training."""
    if sweep.loss != "mse":
        raise InputError(f"loss={sweep.loss!r}: the recursion is that of the squared error; set loss='mse'.")
    if sweep.iterations is None or set(sweep.trainings) != {PLAIN}:
        raise InputError("the forecast is of plain SGD under iterations=: set both, and leave out trainings.")
    if sweep.sampling == "epochs":
        raise InputError(
            "sampling='epochs': the recursion is that of batches drawn independently; set sampling to "
            "'without_replacement' or 'with_replacement'."
        )


def _named(row: Mapping[str, object]) -> str:
    return f"{network(row)}, width {row['width']}" if row["width"] else network(row)


def _statistics(sweep: Sweep, laid_out: Plan, console: Console) -> Iterator[Mapping[str, object]]:
    """Yield the row of `ntk` of each initialization, the smallest width first; a terminal shows the progress."""
    inits = {cell.init.init_id: cell.init for cell in laid_out.cells}
    for k, init in enumerate(sorted(inits.values(), key=lambda init: init.width), 1):
        name = f"{k}/{len(inits)}  statistics of {init.name}"
        with console.status(Text(name)) as status:

            def on_progress(samples: int, _: object, init: Initialization = init, name: str = name) -> None:
                status.update(Text(f"{name}: sample {samples:,} of {init.n:,}"))

            job = Job(
                sweep=sweep.name,
                init=init,
                sources=laid_out.sources,
                threads=os.cpu_count() or 1,
                on_progress=on_progress,
            )
            row = compute_statistics(job)
            if row["gamma"] is None:
                raise InputError(f"{init.name} has no statistics to forecast from: {row['method_reason']}.")
            status.update(Text(f"{init.name}: drawing typical runs"))
            yield row


def show(name: str, made: Forecast, console: Console) -> None:
    """Print a forecast: the batch size to use, each kind of critical batch size, and a row for each batch size."""
    from raysat.report.foreseen import COLUMNS, cells, details, sentence

    console.print(Text(sentence(made), style="bold"))
    console.print(Text(f"{name}. {details(made)}"))
    for remark in made.remarks:
        console.print(Text(remark))
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for head, *_ in COLUMNS.values():
        shown.add_column(head, justify="right")
    for row in cells(made):
        shown.add_row(*row)
    console.print(shown)


if __name__ == "__main__":
    sys.exit(main())
