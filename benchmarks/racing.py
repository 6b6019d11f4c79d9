"""What racing saves, and what it changes: one sweep of tuned stepsizes with `race` on and off. MNIST, n = 1,000.

    RAYSAT_DATA=... python -W ignore benchmarks/racing.py [FILE] [--set KEY=VALUE ...]

It is sweeps/critical_batch.py made small, in this process and one trial at a time. Operations are those of the steps
and evaluations that were done, also in units of a sample's step. Winners are compared for each batch size, seed and
reading; between two stepsizes N may differ where the race tries fewer of them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from raysat.analysis import analyze, load
from raysat.analysis.measure import best_by_steps
from raysat.analysis.reading import comparable, readings, usable
from raysat.analysis.words import bounds, number
from raysat.driver import sweepfile
from raysat.driver.plan import Plan, plan
from raysat.sweep import main as run

FILE = Path(__file__).parents[1] / "sweeps" / "critical_batch.py"
SMALL = {"widths": "[512]", "seeds": "1", "batch_sizes": "[1,4,16,64,256]"}


def operations(laid_out: Plan, trials: pd.DataFrame, curves: pd.DataFrame) -> tuple[float, float]:
    """Floating-point operations of the steps and of the evaluations of all trials."""
    flops = trials["width"].map({width: flops for (_, width), flops in laid_out.flops.items()})  # of one model
    evaluations = trials["cell_id"].map(curves.groupby("cell_id").size()) - 1  # that of w_0 comes with the statistics
    samples = trials["evaluation_samples"] + trials["n_test"]
    steps = trials["iterations_done"] * trials["batch_size"] * flops.map(lambda one: one.step)
    return float(steps.sum()), float((evaluations * samples * flops.map(lambda one: one.forward)).sum())


def winners(trials: pd.DataFrame, curves: pd.DataFrame, target: float) -> pd.DataFrame:
    """N and eta of the best trial of each width, reading, batch size and seed."""
    paths = {
        cell_id: (path["iteration"].to_numpy(), path["train_loss"].to_numpy(dtype=float))
        for cell_id, path in curves.sort_values("iteration").groupby("cell_id")
    }
    trials = comparable(trials)
    parts = [
        best_by_steps(usable(reading), paths, target).assign(tuning=reading["tuning"].iloc[0])
        for _, group in trials.groupby(["width", "stepsize", "training"])
        for reading in readings(group)
    ]
    index = ["width", "tuning", "batch_size", "seed"]
    return pd.concat(parts).set_index(index)[["value", "eta"]].sort_index()


def swept(file: Path, settings: list[str], results: str, race: bool, laid_out: Plan) -> Mapping:
    """Run the sweep and look at it."""
    words = [word for setting in (*settings, f"race={race}") for word in ("--set", setting)]
    begun, said = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stdout(said):
        if run([str(file), "--results", results, "--inline", "--quiet", *words]):
            raise SystemExit(f"the sweep failed: {said.getvalue()[-2000:]}")
    seconds = time.perf_counter() - begun
    _, trials, curves = load(Path(results) / laid_out.sweep.name)
    target = min(laid_out.sweep.targets, default=laid_out.sweep.target_loss)
    fits = analyze(trials, curves, laid_out.sweep.targets).fits
    return {
        "trials": trials,
        "operations": operations(laid_out, trials, curves),
        "seconds": seconds,
        "of trials": float(trials["seconds"].sum()),
        "winners": winners(trials, curves, target),
        "fits": fits[(fits["quantity"] == "b_N") & fits["headline"].astype(bool)],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", nargs="?", type=Path, help="a sweep file [sweeps/critical_batch.py, made small]")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    file = options.file or FILE
    settings = ([] if options.file else [f"{key}={value}" for key, value in SMALL.items()]) + options.set
    laid_out = plan(sweepfile.override(sweepfile.load(file), settings), file.parent)
    made = {}
    for race in (True, False):
        with tempfile.TemporaryDirectory() as results:
            made[race] = swept(file, settings, results, race, laid_out)
    for race, one in made.items():
        show(f"race={race}", one, next(iter(laid_out.flops.values())).step)
    compare(made[True], made[False])


def show(name: str, made: Mapping, step: float) -> None:
    """Print what a sweep took, and its b_N."""
    steps, evaluations = made["operations"]
    counts = ", ".join(f"{count} {status}" for status, count in made["trials"]["status"].value_counts().items())
    print(f"\n{name}: {len(made['trials'])} trials ({counts})")
    print(f"  {steps:.3g} operations in steps, {evaluations:.3g} in evaluations", end="")
    print(f": {(steps + evaluations) / step:,.0f} samples' steps")
    print(f"  {made['of trials']:.1f} s in trials, {made['seconds']:.1f} s in all")
    for fit in made["fits"].to_dict("records"):
        about = f"width {fit['width']}, {fit['tuning'] or fit['stepsize']}"
        print(f"  {about}: b_N = {number(fit['value'])} {bounds(fit['low'], fit['high'])}")


def compare(raced: Mapping, alone: Mapping) -> None:
    """Print both sweeps' winners, and what the race took of the other."""
    both = raced["winners"].join(alone["winners"], lsuffix=" raced", rsuffix=" alone", how="outer")
    ratio = both["value raced"] / both["value alone"]
    print(f"\n{both.assign(ratio=ratio).to_string(float_format='{:.5g}'.format)}\n")
    same = int((both["eta raced"] == both["eta alone"]).sum())
    worst = max(abs(math.log(one)) for one in ratio.dropna())
    print(f"{same} of {len(both)} winners are the same; N is within {100 * math.expm1(worst):.2g} %.")
    for name, word in (("of trials", "seconds of trials"), ("seconds", "seconds in all")):
        print(f"{raced[name] / alone[name]:.2f} of the {word}")
    print(f"{sum(raced['operations']) / sum(alone['operations']):.2f} of the operations")


if __name__ == "__main__":
    main()
