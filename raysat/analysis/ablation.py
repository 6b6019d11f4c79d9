"""The final results of each training method: a table of a sweep's trainings, batch sizes and models, with intervals.

It serves the questions of Hoffer, Hubara and Soudry 2017 (test accuracy and generalization gap of large batches and of
their remedies; distance that the weights travel) and of the theory of asynchronous SGD under a budget of samples (final
loss and mean squared gradient norm against batch size and learners). If stepsizes were tuned, the best one of each seed
counts, by the final training loss.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from raysat.analysis import number, policy, usable
from raysat.saturation.intervals import student_t

WAY = ("model", "model_options", "width", "stepsize", "batch_size", "learners", "training")
"""The columns of `trials` that identify a row of the table; its trials differ only in their seed."""

QUANTITIES = {
    "loss_final": "train loss",
    "train_accuracy": "train accuracy",
    "test_accuracy": "test accuracy",
    "gap": "gap",
    "gradient_square_mean": "mean ||grad L||^2",
    "slope": "slope",
    "seconds": "seconds",
}
"""The columns that are averaged over seeds, each with its name for a reader."""


def counted(trials: pd.DataFrame) -> pd.DataFrame:
    """Select the trials that count: for each row and seed the best of those that neither diverged nor failed.

    There are several if stepsizes were tuned: the best has the least final training loss. A stepsize occurs twice if a
    user's own module changed between two runs: the later trial counts.
    """
    latest = trials.sort_values("finished_at", kind="stable").drop_duplicates([*WAY, "seed", "eta"], keep="last")
    # by eta as well: of equal losses the smallest stepsize counts, whatever the order of the rows
    return usable(latest).sort_values(["loss_final", "eta"]).drop_duplicates([*WAY, "seed"])


def measured(trials: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Select the trials that count, and add the columns that are computed from their curves.

    Returns:
        `counted(trials)` with the columns `gap` (accuracy on the training samples minus that on the test samples),
        `gradient_square_mean` (over the whole run), and `slope`, `intercept` and `r_square` of the least-squares line
        `||w_t - w_0|| = intercept + slope log t` through the evaluations from t = 1 on (Hoffer et al. 2017, section 3).
        `seconds` is not known for asynchronous learners: the time measured is that of their simulation, one step after
        another.
    """
    kept = counted(trials)
    gap, seconds = kept["train_accuracy"] - kept["test_accuracy"], kept["seconds"].mask(kept["learners"] > 1)
    kept = kept.assign(gap=gap, seconds=seconds)
    paths = {cell_id: path.sort_values("iteration") for cell_id, path in curves.groupby("cell_id")}
    found = [_of_curve(paths.get(cell_id, curves.iloc[:0])) for cell_id in kept["cell_id"]]
    names = ("gradient_square_mean", "slope", "intercept", "r_square")
    return kept.assign(**{name: [row[k] for row in found] for k, name in enumerate(names)})


def _of_curve(path: pd.DataFrame) -> tuple[float, float, float, float]:
    known = len(path) and "gradient_square_mean" in path
    # the column is a running mean: its last value is that over the whole run
    mean = float(path["gradient_square_mean"].iloc[-1]) if known else math.nan
    path = path[path["iteration"] > 0]  # the line is in log t
    x, y = np.log(path["iteration"].to_numpy(float)), path["distance_from_init"].to_numpy(float)
    if len(x) < 3 or not np.isfinite(y).all() or np.ptp(y) == 0:  # r_square divides by the variance of y
        return mean, math.nan, math.nan, math.nan
    slope, intercept = np.polyfit(x, y, 1)
    residual = y - intercept - slope * x
    # the residuals of a least-squares line with an intercept have mean 0, so that their variance is their mean square
    return mean, float(slope), float(intercept), float(1 - residual.var() / y.var())


def ablation(trials: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Make one row for each training method: means over seeds with their intervals.

    Args:
        trials: The `trials` table.
        curves: The `curves` table.

    Returns:
        The columns `WAY`, `iterations`, `seeds` (with a trial that ended well), `lost` (seeds without one), `eta` (the
        median stepsize of the trials that count), `eta_min`, `eta_max`, `r_square` (the smallest, of the line through
        the distances), and for each of `QUANTITIES` its mean, `_low` and `_high`, the 95 % interval of the mean by
        Student's t; nan with one seed.
    """
    kept = measured(trials, curves)
    rows = []
    for key, everything in trials.groupby(list(WAY), dropna=False):
        # selected by id: a missing value in the key equals nothing, itself included
        of_way, asked = kept[kept["cell_id"].isin(everything["cell_id"])], everything["seed"].nunique()
        row = dict(zip(WAY, key, strict=True)) | {"iterations": int(everything["iterations"].max())}
        row |= {"seeds": len(of_way), "lost": asked - len(of_way), "r_square": of_way["r_square"].min()}
        row |= {"eta": of_way["eta"].median(), "eta_min": of_way["eta"].min(), "eta_max": of_way["eta"].max()}
        for name in QUANTITIES:
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), mean_and_interval(of_way[name]), strict=True))
        rows.append(row)
    made = ("iterations", "seeds", "lost", "eta", "eta_min", "eta_max", "r_square")
    names = (*WAY, *made, *(name + end for name in QUANTITIES for end in ("", "_low", "_high")))
    return pd.DataFrame(rows, columns=list(names))


def mean_and_interval(values: pd.Series) -> tuple[float, float, float]:
    """The mean, and its 95 % interval by Student's t, which holds for few values if they are nearly normal."""
    known = values.dropna().to_numpy(float)
    if not len(known):
        return math.nan, math.nan, math.nan
    mean = known.mean()
    if len(known) < 2:
        return mean, math.nan, math.nan
    # (mean - mu)/(s/sqrt(k)) of k normal values has Student's t distribution with k - 1 degrees of freedom
    half = student_t(len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known))
    return mean, mean - half, mean + half


def model_labels(table: pd.DataFrame) -> pd.Series:
    """Return labels of a table's models: the architecture, and the options in which they differ."""
    options = [json.loads(text or "{}") for text in table["model_options"]]
    names = {name for one in options for name in one}
    # by `repr`: 1, 1.0 and True are equal, and lists have no hash
    differing = sorted(name for name in names if len({repr(one.get(name)) for one in options}) > 1)
    said = [", ".join(f"{name}={one[name]}" for name in differing if name in one) for one in options]
    return table["model"] + pd.Series([f"({text})" if text else "" for text in said], table.index, dtype=str)


NAMES = ("model", "stepsize", "training")
"""The columns of `cells` that are text."""

TITLE = "Means over seeds ± half of the 95 % interval (Student's t)"


def cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Format the table, for each measured quantity: the columns and the rows. A single width is left out."""
    known = [name for name in QUANTITIES if table[name].notna().any()]
    several = ["width"] if table["width"].nunique() > 1 else []
    rows = []
    for row, label in zip(table.to_dict("records"), model_labels(table), strict=True):
        seeds = f"{row['seeds']}" + (f" ({row['lost']} lost)" if row["lost"] else "")
        way = (label, *(str(row[name]) for name in several), _stepsize(row), row["training"])
        counts = (str(row["batch_size"]), f"{row['iterations']:,}", seeds)
        rows.append([*way, *counts, *(_value(row, name) for name in known)])
    return ["model", *several, "stepsize", "training", "b", "T", "seeds", *(QUANTITIES[name] for name in known)], rows


def _stepsize(row: dict) -> str:
    """The policy, and for a grid its best stepsizes: `grid: 0.2`, `grid: 0.1 to 0.4`."""
    if not policy(row["stepsize"]).startswith("grid") or not row["seeds"]:
        return row["stepsize"]
    ends = dict.fromkeys(number(row[name]) for name in ("eta_min", "eta_max"))
    return f"{row['stepsize']}: {' to '.join(ends)}"


def remarks(table: pd.DataFrame) -> list[str]:
    """Return the notes below the table, one sentence each."""
    said = [_about_slope(table)]
    if table["stepsize"].map(policy).str.startswith("grid").any():
        said.append("grid: of each seed the stepsize of the least final training loss counts, which is named.")
    if (table["learners"] > 1).any():
        said.append(
            "seconds: left out for asynchronous learners, which are simulated one step after the other: the time that "
            "this takes is not theirs."
        )
    return list(filter(None, said))


def _about_slope(table: pd.DataFrame) -> str:
    """Return the definition of the slope and the quality of the fit; empty if there is none."""
    if not table["slope"].notna().any():
        return ""
    return (
        "slope: of ||w_t - w_0|| against log t, by least squares over all evaluations; the line explains at least "
        f"{100 * table['r_square'].min():.0f} % of the variance (the worst trial)."
    )


def show(table: pd.DataFrame, console: Console) -> None:
    """Print the table."""
    shown = Table(title=TITLE)
    columns, rows = cells(table)
    for name in columns:
        shown.add_column(name, justify="left" if name in NAMES else "right")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    for said in remarks(table):
        console.print(said)


def _value(row: dict, name: str) -> str:
    if math.isnan(row[name]):
        return "-"
    half = (row[f"{name}_high"] - row[f"{name}_low"]) / 2
    return number(row[name]) + ("" if math.isnan(half) else f" ± {half:.2g}")
