"""The headline table from the results of sweeps/critical_batch.py: b_N in three readings beside the predictions.

    python -W ignore benchmarks/critical_batch.py results/critical_batch

A best stepsize is sought among all that were tried, among those below 2/k_op, where gradient descent on the linearized
network converges, and among those below `eta_limit`, where linearized SGD does so in mean square: the readings `free`
and `stable` of the analysis, and one between. At small b `eta_limit` is several times lower, for noise is what grows.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from raysat.analysis import load
from raysat.analysis.reading import best_of, usable
from raysat.saturation.critical import critical_batch
from raysat.saturation.forecast import forecast
from raysat.saturation.targets import steps_to_target
from raysat.storage.store import Store

PREDICTED = ("gamma", "k_op", "b_star", "b_star_thm33", "noise_scale")

FORECAST_ITERATIONS = 3_000
"""Enough for the forecast to reach the target at b = 1."""


def measured(trials: pd.DataFrame, curves: pd.DataFrame, target: float) -> pd.DataFrame:
    """The usable trials with their N."""
    paths = {
        cell_id: (path["iteration"].to_numpy(), path["train_loss"].to_numpy(dtype=float))
        for cell_id, path in curves.sort_values("iteration").groupby("cell_id")
    }
    trials = usable(trials)
    trials = trials.assign(N=[steps_to_target(*paths[cell_id], target) for cell_id in trials["cell_id"]])
    return trials[trials["N"].notna()]


def show(reading: str, trials: pd.DataFrame) -> None:
    """Print b_N of the best trials, and where they lie."""
    best = best_of(trials, "N")
    table = best.pivot(index="seed", columns="batch_size", values="N")
    fit = critical_batch(table.columns.to_numpy(), table.to_numpy(), "N")
    by_size = best.assign(k=best["eta"] * best["k_op"], limit=best["eta"] / best["eta_limit"]).groupby("batch_size")
    print(f"  {reading}: b_N {fit.value:.3g} [{fit.low:.3g}, {fit.high:.3g}], scatter {fit.rms_log_residual:.2g}")
    rows = {
        "N": np.exp(np.log(table).mean()),
        "eta_beta": by_size["eta_beta"].median(),
        "eta_k_op": by_size["k"].median(),
    }
    rows["eta over eta_limit"] = by_size["limit"].median()
    print(pd.DataFrame(rows).T.to_string(float_format="{:.3g}".format))


def main(root: Path) -> None:
    record, trials, curves = load(root)
    target = min(record["sweep"]["targets"])
    trials, statistics = measured(trials, curves, target), Store(root).statistics()
    for width, group in trials.groupby("width"):
        seeds = group.groupby("seed")[list(PREDICTED)].first()
        print(f"width {width}, L <= {target}; mean of {len(seeds)} seeds: {seeds.mean().round(2).to_dict()}")
        sizes = sorted(set(group["batch_size"]))
        made = [forecast(statistics[key], sizes, FORECAST_ITERATIONS, target) for key in group["init_id"].unique()]
        found = (f"{one.typical.value:.3g} ({one.mean.value:.3g})" for one in made)
        print(f"  forecast: b_N of a typical run (of the mean loss) {', '.join(found)} by seed; means over seeds")
        tables = pd.concat(one.by_batch for one in made)[["batch_size", "N", "eta", "N_mean", "eta_max"]]
        print(np.exp(np.log(tables).groupby(tables["batch_size"]).mean()).T.to_string(float_format="{:.3g}".format))
        show("tuned freely", group)
        show("below 2/k_op", group[group["eta"] * group["k_op"] < 2])
        show("below eta_limit", group[group["eta"] < group["eta_limit"]])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
