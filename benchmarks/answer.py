"""How often the answer of the first command holds: its interval for b_N, with other seeds, beside b_N of many seeds.

    python -W ignore benchmarks/answer.py [--repetitions 20] [--seeds 40] [--sweep sweeps/quickstart.py]

Each repetition is the sweep with three seeds of its own, in a process of its own, without Ray. The value that is to be
held is b_N of other seeds, as many as `--seeds`, at the same batch sizes and stepsizes, to the same target. Some forty
minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from raysat.analysis import analyze
from raysat.storage.store import Store

EACH = 3
"""Seeds of a repetition, as in the sweep."""


def run(sweep: str, folder: Path, *settings: str) -> Path:
    """Run the sweep with some fields replaced. Returns its results folder."""
    chosen = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "raysat.sweep", sweep, "--inline", "--quiet", "--results", str(folder), *chosen]
    subprocess.run(command, check=True, capture_output=True)
    return next(path.parent for path in folder.glob("*/sweep.json"))


def headline(root: Path, target: float) -> pd.Series:
    """The freely tuned b_N of a results folder to a target."""
    store = Store(root)
    fits = analyze(store.read("trials"), store.read("curves"), [target], store.read("ntk")).fits
    return fits[(fits["quantity"] == "b_N") & (fits["tuning"] == "free")].iloc[0]


def said(fit: pd.Series) -> str:
    """A fit in a line."""
    value, low, high, q = (f"{fit[name]:.3g}" for name in ("value", "low", "high", "q"))
    return f"b_N {value} [{low}, {high}], q {q}" + (f"; {fit['reason']}" if fit["reason"] else "")


def main() -> None:
    """Print a line for each repetition, and how many hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--sweep", default="sweeps/quickstart.py")
    options = parser.parse_args()
    held, known = 0, 0
    with TemporaryDirectory() as scratch:
        others = list(range(1000, 1000 + options.seeds))
        many = run(options.sweep, Path(scratch, "many"), f"seeds={others}", "interval_ratio=1.2")
        target = min(json.loads((many / "sweep.json").read_text())["sweep"]["targets"])
        truth = headline(many, target)
        print(f"{options.seeds} seeds: {said(truth)}", flush=True)
        for k in range(options.repetitions):
            seeds = list(range(EACH * k, EACH * (k + 1)))
            fit = headline(run(options.sweep, Path(scratch, str(k)), f"seeds={seeds}"), target)
            holds = bool(fit["low"] <= truth["value"] <= fit["high"])
            held, known = held + holds, known + bool(fit["value"] > 0)
            line = (
                f"{k:2} seeds {seeds}: b_N {fit['value']:.3g} [{fit['low']:.3g}, {fit['high']:.3g}], q {fit['q']:.2g}"
            )
            print(f"{line}{'' if holds else ', does not hold it'}{fit['reason'] and '; ' + fit['reason']}", flush=True)
    print(f"{held} of {options.repetitions} hold it; {known} give a number")


if __name__ == "__main__":
    main()
