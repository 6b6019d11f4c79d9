"""The command `python -m raysat.analysis RESULTS/NAME`: analyze a results folder and print the table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.text import Text

from raysat.analysis.summaries import print_summary
from raysat.analysis.tables import analyze_folder, load, save
from raysat.messages.command import command, program
from raysat.messages.terminal import Terminal
from raysat.spec.goals import Target
from raysat.storage.files import location, output_option, written


def target_option(parser: argparse.ArgumentParser) -> None:
    """Add `--target` to a parser."""
    words = (
        "what N(b) counts to: training losses, or texts such as 'test_accuracy >= 0.9' [those of the sweep, or else "
        "training losses that all compared readings share]"
    )
    parser.add_argument("--target", type=_number_or_text, nargs="+", default=[], metavar="TARGET", help=words)


def _number_or_text(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


def targets_of(options: argparse.Namespace) -> tuple[Target, ...]:
    """Return the values of `--target`.

    Raises:
        InputError: One is no target.
    """
    return tuple(Target.of("--target", target) for target in options.target)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """The command line: analyze a results folder and print the table."""
    parser = argparse.ArgumentParser(
        prog=program("raysat.analysis"), description="Fit the critical batch sizes of a sweep and print them."
    )
    parser.add_argument("root", metavar="RESULTS/NAME", help="the sweep's results folder, or its address")
    output_option(parser)
    target_option(parser)
    options = parser.parse_args(argv)
    root = location(options.root)
    output = location(options.output or root)
    analysis = analyze_folder(root, *load(root), targets_of(options))
    console = Terminal()
    print_summary(analysis, console)
    with written(output):
        output.mkdir(parents=True, exist_ok=True)
        save(analysis, output)
    console.print(
        Text(f"Fits and predictions: {output / 'analysis.parquet'}. Figures and report: python -m raysat.report {root}")
    )
    return 0
