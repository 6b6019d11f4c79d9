"""Measure the time of an all-reduce between processes (`raysat.sgd.allreduce`), as a command.

    $ python -m raysat.allreduce measured.json --ranks 2 4      between processes of this machine
    $ torchrun --nnodes 4 --nproc-per-node 8 ... -m raysat.allreduce measured.json --backend nccl      of a cluster

`raysat.communication --measured` reads the file.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import torch

from raysat.messages.command import command, program
from raysat.sgd.allreduce import BACKENDS, REPEATS, SIZES, WARMUP, measure, measure_here, write
from raysat.storage.files import location


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return the exit code: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog=program("raysat.allreduce"), description=str(__doc__).splitlines()[0])
    parser.add_argument("file", metavar="FILE.json", help="what is written, a path or an address")
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[2], help="numbers of processes, one run each; torchrun has its own [2]"
    )
    parser.add_argument("--backend", choices=BACKENDS, default="gloo", help="gloo on CPUs, nccl on GPUs [gloo]")
    options = parser.parse_args(arguments)
    path = location(options.file)
    if torch.distributed.is_torchelastic_launched():
        measure_here(path, SIZES, options.backend, int(os.environ["LOCAL_RANK"]), REPEATS, WARMUP)
        return 0
    measured = [one for ranks in options.ranks for one in measure(ranks, backend=options.backend)]
    write(path, measured)
    print(f"{len(measured)} times: {path}, for python -m raysat.communication RESULTS/NAME --measured {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
