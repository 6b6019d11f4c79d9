"""The whole of `sweeps/digits.py`, from the command to the report, beside the seconds of its own trials.

    python -W ignore benchmarks/quickstart.py --runs 5

Each run is a process of its own into an empty folder, some half a minute on two cores. The share of the trials is the
sum of their own seconds, statistics and report not counted, over the cores; what is beyond it is Python's and Ray's
start, the statistics, handing trials over, and the analysis with figures and report.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import raysat

FILE = Path(__file__).parents[1] / "sweeps" / "digits.py"
FACTOR, START = 1.25, 8.0
"""What a run is held against: this many times the trials' share, and seconds for Ray to start."""


def measure() -> tuple[float, float]:
    """Wall time of a run, and the trials' share of it, in seconds."""
    with TemporaryDirectory(prefix="raysat-") as folder:
        begun = time.perf_counter()
        command = [sys.executable, "-m", "raysat.sweep", FILE, "--results", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - begun
        trials = raysat.load(Path(folder) / FILE.stem).trials
    return wall, trials["seconds"].sum() / len(os.sched_getaffinity(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    print(f"| wall | trials' share | beyond | {FACTOR} x share + {START:g} s | over |")
    print("| ---: " * 5 + "|")
    over = []
    for _ in range(runs):
        wall, share = measure()
        bound = FACTOR * share + START
        over.append(wall - bound)
        numbers = (wall, share, wall - share, bound, over[-1])
        print("|", " | ".join(f"{number:.1f}" for number in numbers), "|", flush=True)
    print(f"\nMedian of what a run is over: {statistics.median(over):.1f} s.")


if __name__ == "__main__":
    main()
