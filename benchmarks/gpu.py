"""Checks raysat on a GPU and times it: what was only ever run on CPUs, in at most eight minutes.

    bash benchmarks/gpu.sh --output gpu.md               # all parts, in order of value
    bash benchmarks/gpu.sh --list                        # their names, and the seconds that each may take
    bash benchmarks/gpu.sh --only statistics memory --minutes 3
    bash benchmarks/gpu.sh --cpu                         # the same code at tiny sizes, without a GPU

It needs torch and numpy alone: `gpu.sh` sets PYTHONPATH, the data are made, and there is no Ray. The table is Markdown,
each row of which is written as soon as it is known. Each part is a process of its own, so that one that fails, hangs or
spoils the GPU's context is one row, and the next goes on. The exit code is 1 where a check failed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import gpu_checks
import gpu_speed
import torch
from gpu_bench import FAILED, SKIPPED, Bench, Row, last_line

Tell = Callable[[Row], object]
FORK = multiprocessing.get_context("fork")
"""Forked, a part begins at once, for all is imported. Nothing here may touch the GPU before: a fork could not then."""

PATIENCE = 2
"""A part is ended when it has taken so many times its share. Default: 2; the shares are estimates."""


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
        run: Does it.
        seconds: Its share of the time. A guess until a GPU was at hand.
        what: A line that says what it does.
    """

    run: Callable[[Bench], None]
    seconds: float
    what: str


PARTS = {
    "statistics": Part(gpu_checks.statistics, 90, "gamma, k_op and noise scale on CUDA against those of the CPU"),
    "engines": Part(gpu_speed.engines, 110, "graph against eager autograd, and the share of the measured product rate"),
    "precision": Part(gpu_speed.precision, 40, "h of a short training in full precision, TF32 and bfloat16"),
    "memory": Part(gpu_checks.memory, 30, "batches that do not fit: the halving of micro-batches, and its result"),
    "packing": Part(gpu_speed.packing, 60, "four trials at once against one after the other"),
    "stacked": Part(gpu_speed.stacked, 45, "seeds as one computation against each by itself"),
    "nccl": Part(gpu_checks.nccl, 30, "the engine of several ranks, with one"),
    "trial": Part(gpu_checks.trial, 45, "whole trials, from statistics to rows, against those of the CPU"),
}


class Table:
    """The table, on stdout and in a file: each row as soon as it is known.

    Args:
        path: The file; None for stdout alone.
    """

    def __init__(self, path: Path | None) -> None:
        self.file = path.open("w", encoding="utf-8") if path else None
        self.verdicts: list[str] = []

    def write(self, *lines: object) -> None:
        """Put lines where a reader finds them, whatever becomes of this process."""
        for to in filter(None, (sys.stdout, self.file)):
            print(*lines, sep="\n", file=to, flush=True)

    def add(self, row: Row) -> None:
        """Put a row, and count its verdict."""
        self.verdicts.append(row.verdict)
        self.write(row)


def isolated(task: Callable[[Tell], object], hear: Tell, seconds: float) -> str:
    """Do a task in a process of its own, hearing what it tells.

    Args:
        task: Is given whom to tell.
        hear: Hears it.
        seconds: After so many the process is ended.

    Returns:
        Why it ended before its end, in words; empty where it did not.
    """
    ours, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_begin, args=(task, theirs))
    process.start()
    theirs.close()
    end = time.monotonic() + seconds
    try:
        while ours.poll(max(0.0, end - time.monotonic())):
            hear(ours.recv())
        process.kill()
        process.join()
        return f"ended after {seconds:.0f} s, with rows of what it had done till then"
    except (EOFError, OSError):
        process.join()
        return f"its process ended with exit code {process.exitcode}" if process.exitcode else ""


def _begin(task: Callable[[Tell], object], pipe: Connection) -> None:
    task(pipe.send)


def do(name: str, device: str, tell: Tell) -> None:
    """Do a part, of which a failure is one row."""
    if device == "cpu":
        torch.set_num_threads(1)
    begun = time.perf_counter()
    try:
        PARTS[name].run(Bench(name, torch.device(device), tell))
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        tell(Row(name, "the part itself", last_line(error), "", FAILED))
    tell(Row(name, "seconds", f"{time.perf_counter() - begun:.1f}", ""))


def machine(device: str, tell: Callable[[str], object]) -> None:
    """Tell what the machine is, in a line; nothing where there is no GPU and one is wanted."""
    software = f"torch {torch.__version__}, Python {platform.python_version()}"
    if device == "cpu":
        tell(f"{platform.machine()} CPU at tiny sizes, whose figures say nothing; {software}")
    elif torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        tell(f"{found.name}, {found.total_memory / 2**30:.0f} GiB; {software}, CUDA {torch.version.cuda}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="the parts, and nothing else")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="NAME", help="these parts alone")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together (default: 8)")
    parser.add_argument("--cpu", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--output", type=Path, help="a file for the table, besides stdout")
    options = parser.parse_args(arguments)
    if options.list:
        for name, part in PARTS.items():
            print(f"{name:<12}{part.seconds:>4.0f} s  {part.what}")
        return 0
    begun, device = time.monotonic(), "cpu" if options.cpu else "cuda"
    titles: list[str] = []
    trouble = isolated(partial(machine, device), titles.append, 60)
    if not titles:
        why = f" ({trouble})" if trouble else ""
        print(f"PyTorch finds no GPU here{why}: add --cpu, or run it where there is one.", file=sys.stderr)
        return 2
    table = Table(options.output)
    table.write(*titles, "", "| part | what | found | wanted | verdict |", "| --- | --- | --- | --- | --- |")
    for name in options.only or PARTS:
        need, left = PARTS[name].seconds, 60 * options.minutes - (time.monotonic() - begun)
        if left < need:
            why = f"it may take {need:.0f} s, and {max(left, 0):.0f} of {60 * options.minutes:.0f} are left"
            table.add(Row(name, "the whole part", why, "", SKIPPED))
        elif trouble := isolated(partial(do, name, device), table.add, min(left, PATIENCE * need)):
            table.add(Row(name, "the part itself", trouble, "", FAILED))
    failed, checks = table.verdicts.count(FAILED), len([verdict for verdict in table.verdicts if verdict])
    table.add(Row("all", "seconds", f"{time.monotonic() - begun:.1f}"))
    table.write("", f"Of {checks} checks {failed} failed and {table.verdicts.count(SKIPPED)} were skipped.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
