"""The command of the fault harness; see the package's docstring."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.bench import Bench
from faults.plans import WHEEL, on_ray
from faults.planted import DEFECTS


def main() -> int:
    """The command. Returns the exit code: 1 where a draw failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--draws", type=int, default=200, help="how many draws strike")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, nargs="+", help="these draws alone, in words")
    parser.add_argument("--only", choices=["inline", "ray"], help="draws in process, or under Ray, alone")
    parser.add_argument("--planted", action="store_true", help="plant defects, and count the draws until each is found")
    options = parser.parse_args()
    with Bench() as bench:
        if options.planted:
            return planted(bench)
        if options.seed:
            failed = 0
            for seed in options.seed:
                draw = bench.draw(seed)
                failed += bool(draw.problems)
                print(draw, flush=True)
            return int(failed > 0)
        return table(bench, options)


def table(bench: Bench, options: argparse.Namespace) -> int:
    """Make draws, and count them by class."""
    counts, struck, failed = Counter(), Counter(), Counter()
    wanted = [options.first + k for k in range(options.draws)]
    while wanted:
        seed = wanted.pop(0)
        if options.only and on_ray(seed) != (options.only == "ray"):
            continue
        draw = bench.draw(seed)
        name = draw.fault.name
        counts[name] += 1
        struck[name] += bool(draw.struck)
        failed[name] += bool(draw.problems)
        if draw.problems:
            print(draw, flush=True)
        if not draw.struck:  # another one of its class takes its place
            wanted.append(seed + options.draws * len(WHEEL))
    print(f"{'class':24} {'draws':>6} {'struck':>6} {'failed':>6}")
    for name in counts:
        print(f"{name:24} {counts[name]:6} {struck[name]:6} {failed[name]:6}")
    print(f"{'all':24} {counts.total():6} {struck.total():6} {failed.total():6}")
    return int(failed.total() > 0)


def planted(bench: Bench) -> int:
    """Plant defects, and count the draws until each is found. Returns 1 where one is not within 50."""
    missed = 0
    for name in DEFECTS:
        found = find(bench, name)
        missed += found is None
        print(f"{name}: " + ("not found in 50 draws" if found is None else f"found in draw {found}"), flush=True)
    return int(missed > 0)


def find(bench: Bench, defect: str, most: int = 50) -> int | None:
    """The number of the draw, in process, that finds a planted defect and passes without it."""
    seeds = [seed for seed in range(10 * most) if not on_ray(seed)][:most]
    for number, seed in enumerate(seeds, 1):
        with bench.planted(defect):
            found = bench.draw(seed).problems
        if found and not bench.draw(seed).problems:
            return number
    return None


if __name__ == "__main__":
    sys.exit(main())
