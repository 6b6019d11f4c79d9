"""Compare the final results of the trainings of a sweep (`raysat.analysis.ablation`), as a command.

    $ python -m raysat.ablation RESULTS/generalization     prints the table and writes ablation.parquet and a figure

Files are written to the results folder, or to that of `--output`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from raysat.analysis import load, usable
from raysat.analysis.ablation import ablation, show
from raysat.errors import InputError
from raysat.messages.command import command, program
from raysat.messages.terminal import Terminal
from raysat.plots.ablation import figure
from raysat.storage.files import location, output_option, write_aside, written


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return the exit code: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog=program("raysat.ablation"), description=str(__doc__).splitlines()[0])
    parser.add_argument("root", metavar="RESULTS/NAME", help="the sweep's results folder, or its address")
    output_option(parser)
    options = parser.parse_args(arguments)
    root = location(options.root)
    output = location(options.output or root)
    _, trials, curves = load(root)
    if usable(trials).empty:
        raise InputError(f"{root} has no trial that ended well: run the sweep first.")
    console = Terminal()
    table = ablation(trials, curves)
    show(table, console)
    path = output / "figures" / "ablation.png"
    with written(output):
        (output / "figures").mkdir(parents=True, exist_ok=True)
        write_aside(output / "ablation.parquet", table.to_parquet)
        write_aside(path, partial(figure(trials, curves).savefig, dpi=150, format="png"))
    console.print(f"Table: {output / 'ablation.parquet'}. Figure: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
