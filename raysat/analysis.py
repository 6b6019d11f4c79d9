"""From a sweep's tables to tidy results: measured critical batch sizes beside the predicted ones.

    $ python -m raysat.analysis RESULTS/mnist     prints the table and writes RESULTS/mnist/analysis.parquet

A *group* is what a critical batch size is measured in: all trials that differ only in batch size, seed and, under a
grid, stepsize. Of a grid the best stepsize of each (seed, batch size) counts, in two readings: `free`, among all
stepsizes, and `stable`, among those below 2/k_op. The theory speaks of the second only.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raysat.files import write_aside
from raysat.fits import (
    CriticalBatch,
    choose_targets,
    critical_batch,
    geometric_mean,
    interval,
    resample_seeds,
    steps_to_target,
)
from raysat.schema import COMPLETED, DIVERGED, FAILED, SCHEMA_VERSION, TARGET_REACHED
from raysat.spec import InputError
from raysat.store import Store
from raysat.theory import h_interpolated

SETTING = (
    *("dataset", "preprocessing", "n", "model", "model_options", "depth", "activation", "loss", "dtype", "sampling"),
    "iterations",
)
"""The columns of `trials` that one table or figure has in common."""

GROUP = (*SETTING, "width", "stepsize")
READING = (*GROUP, "tuning")
"""The columns that name one fit: a group, and how its stepsize was tuned: empty, `free` or `stable`."""

PREDICTORS = ("gamma", "k_op", "b_star", "b_star_thm33", "noise_scale")

STABLE = 2.0
"""Gradient descent on the linearized model converges for eta < 2/k_op. The limit is exact at b = n, and necessary at
every b, for the mean of linearized SGD is gradient descent."""

SMALL_RANGE = 1.5
"""Below this ratio of largest to smallest, h or N is said to vary little. Default: 1.5; the exponents in the paper's
MNIST figure span a ratio of about 1.33, at which any b_h lets them agree with the interpolated curve."""

FEW_SEEDS = 5
"""Below this a percentile interval over resampled seeds is too narrow: of three seeds there are ten resamples."""

POINTS = (
    *(*READING, "quantity", "target", "batch_size", "value", "low", "high", "seeds", "eta", "eta_beta", "eta_k_op"),
    *("h_interp", "h_interp_n"),
)
FITS = (
    *(*READING, "quantity", "target", "headline", "value", "low", "high", "asymptote", "rms_log_residual", "range"),
    *("seeds", "batch_sizes", "n_diverged", "n_failed", "eta_beta_min", "eta_beta_max", "eta_k_op_max", "reason"),
    *(name + end for name in PREDICTORS for end in ("", "_min", "_max")),
)

THEORY_CAVEAT = (
    "Under theory(c) the stepsize is made from beta(b), so that N(b) follows beta(b) nearly by construction: b_N near "
    "b_star checks the code, not the theory."
)

NOTHING = "No trial has ended yet: there is nothing to analyze."


@dataclass(frozen=True)
class Analysis:
    """The results of a sweep as two tidy tables.

    Attributes:
        points: One row for each reading, quantity (`h` or `N`), target and batch size. `value` is the geometric mean
            over seeds, `low` and `high` its 95 % interval; `eta` the median stepsize of the trials that counted,
            `eta_beta` and `eta_k_op` the same times beta(b) and k_op; `h_interp` the paper's predicted exponent
            (section 5), and `h_interp_n` the batch size whose h stood for h(n) in it.
        fits: One row for each reading, quantity (`b_h` or `b_N`) and target. `value`, `low` and `high` are the critical
            batch size in samples, `asymptote` is h or N at large b, `range` the largest mean over the smallest,
            `eta_beta_min` to `eta_beta_max` where the stepsizes that counted lie in units of 1/beta(b), `eta_k_op_max`
            the largest in units of 1/k_op, `reason` the reservations in words; the predictions at initialization are
            means over seeds, with `_min` and `_max`. `headline` marks one b_h and one b_N of each reading.
    """

    points: pd.DataFrame
    fits: pd.DataFrame


def policy(label: str) -> str:
    """The policy of a stepsize's label: `theory` of `theory(1)`."""
    return label.split("(")[0]


def analyze(trials: pd.DataFrame, curves: pd.DataFrame, targets: Sequence[float] = ()) -> Analysis:
    """Estimate and fit all that a sweep's tables support.

    Args:
        trials: The `trials` table.
        curves: The `curves` table.
        targets: Loss levels for N(b). Default: chosen for each reading by `raysat.fits.choose_targets`.
    """
    trials = trials.sort_values("finished_at", kind="stable")
    # The same cell twice, under two ids, where a user's own module changed between two runs: the later one holds.
    outdated = trials.duplicated([*GROUP, "seed", "batch_size", "eta"], keep="last") & trials["eta"].notna()
    paths = {
        cell_id: (path["iteration"].to_numpy(), path["train_loss"].to_numpy(dtype=float))
        for cell_id, path in curves.sort_values("iteration").groupby("cell_id")
    }
    points, fits = [], []
    for _, group in trials[~outdated].groupby(list(GROUP), dropna=False):
        for reading in readings(group):
            for rows, fit in _measure(reading, paths, targets):
                points += rows
                fits.append(fit)
    return Analysis(pd.DataFrame(points, columns=list(POINTS)), pd.DataFrame(fits, columns=list(FITS)))


def readings(group: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The trials of a group as they are read: once, or of a grid twice; named in a new column `tuning`."""
    if not policy(group["stepsize"].iloc[0]).startswith("grid"):
        yield group.assign(tuning="")
        return
    yield group.assign(tuning="free")
    beyond = group["eta"] * group["k_op"] >= STABLE  # false for a failed trial, whose eta is not known
    if not beyond.all():
        yield group[~beyond].assign(tuning="stable")


def best_of(trials: pd.DataFrame, score: str) -> pd.DataFrame:
    """Of each (seed, batch size) the trial of the smallest score: where stepsizes were tuned, the best one."""
    return trials.sort_values([score, "eta"], na_position="last").drop_duplicates(["seed", "batch_size"])


def usable(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials that are measured: neither diverged nor failed."""
    return trials[trials["status"].isin([COMPLETED, TARGET_REACHED])]


def _measure(reading: pd.DataFrame, paths: Mapping, targets: Sequence[float]) -> Iterator[tuple[list[dict], dict]]:
    """The points and the fit of each quantity and target of a reading."""
    head = {
        **reading[list(READING)].iloc[0].to_dict(),
        "n_diverged": int((reading["status"] == DIVERGED).sum()),
        "n_failed": int((reading["status"] == FAILED).sum()),
        **_predictions(reading),
    }
    trials = usable(reading)
    best = best_of(trials.assign(score=-trials["h"]), "score")
    yield _fit({**head, "quantity": "h", "target": math.nan, "headline": True}, best, reading)

    empty = np.zeros(0), np.zeros(0)
    trials = trials.assign(
        deepest=[paths.get(cell_id, empty)[1].min(initial=math.inf) for cell_id in trials["cell_id"]],
    )
    best = best_of(trials, "deepest")
    levels = tuple(targets) or choose_targets(
        best["loss_init"].to_numpy(dtype=float), best["deepest"].to_numpy(dtype=float)
    )
    reached = [level for level in levels if best["deepest"].max() <= level]
    headline = min(reached, default=max(levels, default=math.nan))
    for level in levels:
        steps = [steps_to_target(*paths.get(cell_id, empty), level) for cell_id in trials["cell_id"]]
        about = {**head, "quantity": "N", "target": level, "headline": level == headline}
        yield _fit(about, best_of(trials.assign(N=steps), "N"), reading)
    if not levels:
        none = CriticalBatch(reason="no loss level below the initial one is reached by all trials")
        yield [], {**head, "quantity": "b_N", "target": math.nan, "headline": True, **asdict(none)}


def _fit(about: dict, best: pd.DataFrame, reading: pd.DataFrame) -> tuple[list[dict], dict]:
    """The points and the fit of one quantity from the best trial of each (seed, batch size)."""
    quantity = about["quantity"]
    table = best.pivot(index="seed", columns="batch_size", values=quantity).astype(float)
    b, values = table.columns.to_numpy(), table.to_numpy()
    fit = critical_batch(b, values, quantity)
    if quantity == "N" and (missing := int(best["N"].isna().sum())):
        reason = f"{missing} of {len(best)} trials do not reach L <= {about['target']:g}"
        fit = CriticalBatch(seeds=fit.seeds, batch_sizes=fit.batch_sizes, reason=reason)
        values = np.where(np.isin(b, best.loc[best["N"].isna(), "batch_size"]), math.nan, values)
    reason = "; ".join(filter(None, [fit.reason, *_remarks(about, best, reading, fit)]))
    stepsizes = {
        "eta_beta_min": best["eta_beta"].min(),
        "eta_beta_max": best["eta_beta"].max(),
        "eta_k_op_max": (best["eta"] * best["k_op"]).max(),
    }
    fit = {**about, **stepsizes, **asdict(fit), "quantity": f"b_{quantity}", "reason": reason}
    return _points(about, best, b, values), fit


def _points(about: dict, best: pd.DataFrame, b: np.ndarray, values: np.ndarray) -> list[dict]:
    """A row for each batch size; nan where a value is not positive, or where not every seed reaches the target."""
    if not values.size:
        return []
    values = np.where((values > 0) | np.isnan(values), values, math.nan)
    mean = geometric_mean(values)
    low, high = interval(resample_seeds(values)) if len(values) > 1 else np.full((2, len(b)), math.nan)
    predicts = about["quantity"] == "h" and b[0] == 1
    return [
        {name: about[name] for name in (*READING, "quantity", "target")}
        | {"batch_size": int(size), "value": mean[k], "low": low[k], "high": high[k], "seeds": len(trials)}
        | {"eta": trials["eta"].median(), "eta_beta": trials["eta_beta"].median()}
        | {"eta_k_op": (trials["eta"] * trials["k_op"]).median(), "h_interp_n": int(b[-1])}
        | {"h_interp": h_interpolated(float(size), mean[0], mean[-1]) if predicts else math.nan}
        for k, (size, trials) in enumerate(best.groupby("batch_size"))
    ]


def _predictions(trials: pd.DataFrame) -> dict[str, float]:
    by_seed = trials.groupby("seed")[list(PREDICTORS)].first().astype(float)
    ends = {"": by_seed.mean(), "_min": by_seed.min(), "_max": by_seed.max()}
    return {name + end: statistic[name] for end, statistic in ends.items() for name in PREDICTORS}


def _remarks(about: dict, best: pd.DataFrame, reading: pd.DataFrame, fit: CriticalBatch) -> Iterator[str]:
    """What must be said beside a fit, refused or not."""
    quantity, percent = about["quantity"], f"{100 * (fit.range - 1):.2g} %"
    if fit.range < SMALL_RANGE and quantity == "h" and policy(about["stepsize"]).startswith("fixed"):
        yield f"under one stepsize for all b, h varies by only {percent}: agreement of h with h_interp says little"
    elif fit.range < SMALL_RANGE and "varies by" not in fit.reason:
        yield f"{quantity} varies by only {percent} over the batch sizes"
    if quantity == "h" and (best["status"] == TARGET_REACHED).any():
        yield "trials ended at the target loss, so that T, on which h depends, differs between batch sizes"
    if about["stepsize"] == "grid_relative" and best["eta_beta"].max() < 1.01 * best["eta_beta"].min():
        yield f"at every b the same multiple of 1/beta(b) is best: {quantity} follows beta(b) nearly by construction"
    if about["tuning"] == "free":
        if (largest := (best["eta"] * best["k_op"]).max()) >= STABLE:
            yield f"the best stepsizes reach {largest:.2g}/k_op: from 2/k_op the linearized model, and the theory, end"
        widest = reading.groupby(["seed", "batch_size"])["eta"].agg(["min", "max"])
        tried = best.join(widest, on=["seed", "batch_size"])
        for end, name in (("max", "largest"), ("min", "smallest")):
            if sizes := sorted(set(tried.loc[tried["eta"] == tried[end], "batch_size"])):
                yield f"the best stepsize is the {name} tried at b = {', '.join(map(str, sizes))}: widen the grid"


def load(root: Path) -> tuple[dict, pd.DataFrame, pd.DataFrame]:
    """The record, the trials and the curves of a results folder.

    Raises:
        InputError: The folder is not a results folder, or of another schema version.
    """
    store = Store(root)
    record = store.record()
    if record is None:
        raise InputError(f"{root} holds no sweep (no readable sweep.json): give a results folder, RESULTS/NAME.")
    if record.get("schema") != SCHEMA_VERSION:
        raise InputError(
            f"{root} has schema version {record.get('schema')}, this raysat reads {SCHEMA_VERSION}: "
            "use the raysat that wrote it, or run the sweep anew."
        )
    return record, store.read("trials"), store.read("curves")


def analyze_and_save(root: Path, record: Mapping, trials: pd.DataFrame, curves: pd.DataFrame) -> Analysis:
    """Analyze what `load` has read, for the targets of the sweep, and write the fits to `analysis.parquet`."""
    analysis = analyze(trials, curves, tuple(record["sweep"].get("targets") or ()))
    write_aside(root / "analysis.parquet", analysis.fits.to_parquet)
    return analysis


def setting(row: Mapping) -> str:
    """What a group was measured on, in one line: data, model, sampling, T.

    Example:
        `mnist (center, n = 1,000), mlp(activation=relu, depth=3), mse, float32, without_replacement, T = 300`
    """
    try:
        options = json.loads(row["model_options"])
        short = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in options.items()}
        options = ", ".join(f"{name}={value}" for name, value in sorted(short.items()))
    except (TypeError, ValueError, AttributeError):
        options = ""
    model = f"{row['model']}({options})" if options else row["model"]
    data = f"{row['dataset']} ({row['preprocessing']}, n = {row['n']:,})"
    rest = f"{row['loss']}, {row['dtype']}, {row['sampling']}, T = {row['iterations']:,}"
    return f"{data}, {model}, {rest}"


def method(row: Mapping) -> str:
    """The stepsize policy and, of a grid, how it was tuned: `theory(1)`, `grid (stable)`."""
    return f"{row['stepsize']} ({row['tuning']})" if row["tuning"] else row["stepsize"]


def summary(fits: pd.DataFrame) -> pd.DataFrame:
    """One row for each reading: predictions, headline b_h and b_N with intervals, the target of b_N, `notes`.

    `notes` is a tuple of sentences: what was refused and why, and what the numbers beside it do not show.
    """
    rows = []
    for _, group in fits[fits["headline"].astype(bool)].groupby(list(READING), dropna=False, sort=False):
        row = group.iloc[0][[*READING, "n_diverged", "n_failed", *PREDICTORS]].to_dict()
        row["seeds"] = int(group["seeds"].max())
        notes = []
        for fit in group.to_dict("records"):
            name = fit["quantity"]
            row |= {name: fit["value"], f"{name}_low": fit["low"], f"{name}_high": fit["high"], "target": fit["target"]}
            if row["tuning"] and fit["batch_sizes"]:
                ends = f"{number(fit['eta_beta_min'])} to {number(fit['eta_beta_max'])}"
                notes.append(f"{name}: best stepsizes {ends} over beta(b), at most {number(fit['eta_k_op_max'])}/k_op.")
            notes += [f"{name}: {fit['reason']}."] * bool(fit["reason"])
        if policy(row["stepsize"]) == "theory":
            notes.append(THEORY_CAVEAT)
        lost = [f"{row[f'n_{what}']} {what}" for what in ("diverged", "failed") if row[f"n_{what}"]]
        if lost:
            notes.append(f"Trials left out: {', '.join(lost)}.")
        rows.append(row | {"notes": tuple(notes)})
    bounds = [f"{name}{end}" for name in ("b_h", "b_N") for end in ("", "_low", "_high")]
    columns = [*READING, "seeds", "n_diverged", "n_failed", *PREDICTORS, *bounds, "target", "notes"]
    return pd.DataFrame(rows, columns=columns)


def number(value: float) -> str:
    """Three digits: `0.609`, `24.9`, `1,234`; a dash for nan."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "∞"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def estimate(row: Mapping, name: str) -> tuple[str, str]:
    """A critical batch size of `summary` and its interval, as text; the interval is empty where there is none."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    short = lambda end: f"{end:.2g}" if end < 10 else number(end)  # noqa: E731
    return number(row[name]), "" if math.isnan(low) else f"[{short(low)}, {short(high)}]"


def about_h(iterations: int) -> str:
    """The reservation that holds for every b_h."""
    return f"h, and with it b_h, depends on the number of iterations, here T = {iterations:,}; b_N does not."


def about_intervals(seeds: int) -> str:
    """What the intervals are, and that they are too narrow where few seeds were resampled."""
    if seeds < 2:
        return "One seed: no intervals."
    few = "; with so few they are too narrow" if seeds < FEW_SEEDS else ""
    return f"Intervals are of 95 %, over {seeds} seeds{few}."


def print_summary(analysis: Analysis, console: Console) -> None:
    """Print what a person wants to see at the end of a sweep: one table a setting, and its footnotes."""
    table = summary(analysis.fits)
    if table.empty:
        console.print(NOTHING)
        return
    for _, rows in table.groupby(list(SETTING), dropna=False, sort=False):
        records = rows.to_dict("records")
        notes = list(dict.fromkeys(note for row in records for note in row["notes"]))
        shown = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False)
        shown.add_column("width", justify="right", no_wrap=True)
        shown.add_column("stepsize", no_wrap=True)
        for name in ("gamma", "k_op", "b_star", "b_h", "b_N", "L <="):
            shown.add_column(name, justify="right", no_wrap=True)
        shown.add_column("notes")
        for row in records:
            marks = " ".join(str(notes.index(note) + 1) for note in row["notes"])
            label = method(row) if len(method(row)) < 15 else method(row).replace("(", "\n(", 1)
            cells = [str(row["width"]), label, *(number(row[name]) for name in ("gamma", "k_op", "b_star"))]
            cells += ["\n".join(filter(None, estimate(row, name))) for name in ("b_h", "b_N")]
            shown.add_row(*map(Text, [*cells, number(row["target"]), marks]))
        console.print(Text(setting(records[0]), style="bold"))
        console.print(shown)
        for k, note in enumerate(notes, 1):
            console.print(Text(f"{k}  {note}"))
        seeds = max(row["seeds"] for row in records)
        console.print(Text(f"{about_h(records[0]['iterations'])} {about_intervals(seeds)}"), "")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: analyze a results folder and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m raysat.analysis", description="Fit the critical batch sizes of a sweep and print them."
    )
    parser.add_argument("root", type=Path, metavar="RESULTS/NAME", help="the sweep's results folder")
    root = parser.parse_args(argv).root
    try:
        analysis = analyze_and_save(root, *load(root))
    except InputError as error:
        print(f"raysat: {error}", file=sys.stderr)
        return 2
    console = Console()
    print_summary(analysis, console)
    console.print(Text(f"Fits: {root / 'analysis.parquet'}. Figures and report: python -m raysat.report {root}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
