"""The adaptive sweep against the full one: is b_N the same, and what does each cost? MNIST, n = 1,000, width 512.

    python -W ignore benchmarks/adaptive.py [FILE] [--set KEY=VALUE ...] [--inline]

It needs MNIST (RAYSAT_DATA) and takes some three minutes on two cores. First the adaptive sweep is run, then, in the
same folder, what is missing of the full one. Operations are those of the steps and evaluations that were done.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pandas as pd

from raysat.analysis import analyze, load
from raysat.analysis.summaries import summary
from raysat.analysis.words import estimate, method
from raysat.driver import sweepfile
from raysat.driver.plan import Plan, plan
from raysat.sweep import main as run

FILE = Path(__file__).parents[1] / "sweeps" / "mnist.py"
SMALL = {
    "n_train": "1000",
    "widths": "[512]",
    "batch_sizes": "[1,2,4,8,16,32,64,256]",
    "stepsizes": "[theory()]",
    "iterations": "1000",
}


def operations(laid_out: Plan, trials: pd.DataFrame, curves: pd.DataFrame) -> float:
    """Floating-point operations of all trials: steps, and evaluations of the training and test loss."""
    flops = trials["width"].map({width: flops for (_, width), flops in laid_out.flops.items()})  # of one model
    evaluations = trials["cell_id"].map(curves.groupby("cell_id").size()) - 1  # that of w_0 comes with the statistics
    samples = trials["evaluation_samples"] + trials["n_test"]
    steps = trials["iterations_done"] * trials["batch_size"] * flops.map(lambda one: one.step)
    return float((steps + evaluations * samples * flops.map(lambda one: one.forward)).sum())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", nargs="?", type=Path, help="a sweep file [sweeps/mnist.py, made small]")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--inline", action="store_true", help="run in this process, without Ray")
    options = parser.parse_args()
    file = options.file or FILE
    settings = ([] if options.file else [f"{key}={value}" for key, value in SMALL.items()]) + options.set
    laid_out = plan(sweepfile.override(sweepfile.load(file), settings), file.parent)
    with tempfile.TemporaryDirectory() as results:
        cost = {}
        for adaptive in (True, False):
            words = [word for setting in (*settings, f"adaptive={adaptive}") for word in ("--set", setting)]
            if run([str(file), "--results", results, *words, *["--inline"] * options.inline]):
                raise SystemExit("the sweep failed")
            _, trials, curves = load(Path(results) / laid_out.sweep.name)
            cost[adaptive] = operations(laid_out, trials, curves)
            print(f"\n{'adaptive' if adaptive else 'full'}: {len(trials)} cells, {cost[adaptive]:.3g} operations")
            for row in summary(analyze(trials, curves, laid_out.sweep.targets).fits).to_dict("records"):
                sizes = sorted(set(trials.loc[trials["width"] == row["width"], "batch_size"]))
                print(
                    f"  width {row['width']}, {method(row)}: b_N {' '.join(estimate(row, 'b_N'))} "
                    f"at L <= {row['target']:.2g}, b = {', '.join(map(str, sizes))}"
                )
        print(f"\nThe adaptive sweep took {100 * cost[True] / cost[False]:.0f} % of the full one's operations.")


if __name__ == "__main__":
    main()
