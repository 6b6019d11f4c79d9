"""The command line: the page of a sweep, or of a folder of several."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from raysat.analysis.command import target_option, targets_of
from raysat.errors import InputError
from raysat.messages.command import command, program
from raysat.messages.terminal import Terminal
from raysat.report import compare, finish
from raysat.storage.files import location, output_option
from raysat.storage.store import Store, storage_errors


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Analyze a sweep and write its figures and page; of a folder of several sweeps, write the page of comparison."""
    parser = argparse.ArgumentParser(
        prog=program("raysat.report"),
        description="Write the fits, the figures and the report of a sweep, or compare the sweeps of a folder.",
    )
    parser.add_argument(
        "root", metavar="RESULTS[/NAME]", help="a sweep's results folder or its address, or the folder of several"
    )
    output_option(parser)
    target_option(parser)
    options = parser.parse_args(argv)
    root = location(options.root)
    with storage_errors(root):
        of_one = Store(root).sweep_file.exists()
    targets = targets_of(options)
    if of_one:
        finish(root, Terminal(), options.output, targets)
    elif targets:
        raise InputError("--target is for one sweep; name its folder, or leave the targets to each sweep's own.")
    else:
        compare(root, Terminal(), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
