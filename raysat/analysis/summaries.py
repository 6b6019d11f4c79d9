"""The headline of a sweep: one row for each reading, and the table printed at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raysat.analysis.efficiency import what_to_use
from raysat.analysis.measure import STATISTICS
from raysat.analysis.reading import ANSWER, READING, SETTING, policy
from raysat.analysis.recommendation import recommendations
from raysat.analysis.tables import Analysis
from raysat.analysis.words import (
    ABOUT_SCATTER,
    NOTHING,
    THEORY_CAVEAT,
    about_h,
    about_intervals,
    estimate,
    method,
    number,
    scatter,
    setting,
)
from raysat.spec.goals import TRAIN_LOSS, Target, symbol

LOST = ("diverged", "failed", "infeasible")
"""Why trials are in no fit; the column of each begins with `n_`."""

FOUND = {"": "value", "_low": "low", "_high": "high", "_scatter": "rms_log_residual", "_q": "q"}
"""What the summary has of a fit: the end of its column, and the column of the fits."""


def summary(fits: pd.DataFrame) -> pd.DataFrame:
    """Make one row for each reading and metric: predictions, b_h and b_N with intervals, the target of b_N, `notes`.

    b_N is that of the metric's headline target; b_h, which is of the training loss, is in the first row of a reading,
    which is the one that `leads`.

    `b_h_scatter` and `b_N_scatter` are the fits' `rms_log_residual`, `b_h_q` and `b_N_q` their q. `unpredicted` says
    why there are no predictions, `approximated` how the predicted network differs from the trained one. `notes` is a
    tuple of sentences: refused fits with reasons, and reservations about the numbers next to them.
    """
    rows = []
    # the headline rows of a reading are its b_h, which has no target, and then its b_N, whose target is kept
    for _, group in fits[fits["headline"].astype(bool)].groupby(list(READING), dropna=False, sort=False):
        of_h, *_ = group[group["quantity"] == "b_h"].to_dict("records")
        for k, of_N in enumerate(group[group["quantity"] == "b_N"].to_dict("records")):
            rows.append(_row(of_N, {} if k else of_h) | {"leads": not k})
    found = [f"{name}{end}" for name in ("b_h", "b_N") for end in ("", "_low", "_high", "_scatter", "_q")]
    columns = [*READING, "seeds", *(f"n_{what}" for what in LOST), *STATISTICS, *found, "metric", "target", "leads"]
    return pd.DataFrame(rows, columns=[*columns, "unpredicted", "approximated", "notes"])


def _row(of_N: Mapping, of_h: Mapping) -> dict[str, Any]:
    """The row of a metric of a reading, of the fit of b_N and, if it shows b_h, that of b_h."""
    shared = (*READING, *(f"n_{what}" for what in LOST), "unpredicted", "approximated", *STATISTICS)
    row: dict[str, Any] = {name: of_N[name] for name in (*shared, "metric", "target")}
    row["seeds"] = max(int(fit["seeds"]) for fit in (of_h, of_N) if fit)
    notes = []
    for name, fit in (("b_h", of_h), ("b_N", of_N)):
        row |= {f"{name}{end}": fit.get(column, math.nan) for end, column in FOUND.items()}
        if not fit:
            continue
        if row["tuning"] and not math.isnan(fit["value"]) and not math.isnan(fit["eta_beta_max"]):
            ends = f"{number(fit['eta_beta_min'])} to {number(fit['eta_beta_max'])}"
            notes.append(f"{name}: best stepsizes {ends} over beta(b), at most {number(fit['eta_k_op_max'])}/k_op.")
        notes += [f"{name}: {fit['reason']}."] * bool(fit["reason"])
    if policy(row["stepsize"]) == "theory" and row["metric"] == TRAIN_LOSS:
        notes.append(THEORY_CAVEAT)
    notes += [f"No prediction: {row['unpredicted']}."] * bool(row["unpredicted"])
    notes += [f"The prediction is an approximation: {row['approximated']}."] * bool(row["approximated"])
    lost = [f"{row[f'n_{what}']} {what}" for what in ("diverged", "failed") if row[f"n_{what}"]]
    if lost:
        notes.append(f"Trials left out: {', '.join(lost)}.")
    if row["n_infeasible"]:
        aim = Target.in_row(row).inequality
        notes.append(f"Infeasible: {row['n_infeasible']} trials ran to their end without reaching {aim}.")
    return row | {"notes": tuple(notes)}


def _narrow(text: str) -> str:
    """A target's symbol, in lines of a word if it is long."""
    return text if len(text) < 6 else text.replace(" ", "\n")


def print_summary(analysis: Analysis, console: Console) -> None:
    """Print the summary at the end of a sweep: recommendations, and one table a setting with its footnotes."""
    table = summary(analysis.fits)
    if table.empty:
        console.print(NOTHING)
        return
    said = recommendations(analysis.fits, analysis.points)
    several = len({one.setting for one in said}) > 1
    for one in said:
        console.print(Text(one.setting, style="bold")) if several else None
        console.print(Text(one.sentence), "")
    for _, rows in table.groupby(list(SETTING), dropna=False, sort=False):
        records = rows.to_dict("records")
        notes = list(dict.fromkeys(note for row in records for note in row["notes"]))
        shown = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False)
        shown.add_column("width", justify="right", no_wrap=True)
        shown.add_column("stepsize", no_wrap=True)
        for name in ("gamma", "k_op", "b_star", "b_h", "b_N"):
            shown.add_column(name, justify="right", no_wrap=True)
        symbols = {metric: _narrow(symbol(metric)) for metric in dict.fromkeys(rows["metric"])}
        head = "target" if len(symbols) > 1 else next(iter(symbols.values()))
        shown.add_column(head, justify="right", no_wrap=True)
        shown.add_column("notes")
        for row in records:
            marks = " ".join(str(notes.index(note) + 1) for note in row["notes"])
            # long labels take two lines, so that the table fits a terminal
            label = method(row) if len(method(row)) < 15 else method(row).replace("(", "\n(", 1)
            cells = [str(row["width"]), label, *(number(row[name]) for name in ("gamma", "k_op", "b_star"))]
            cells += [
                "\n".join(filter(None, [*estimate(row, name), scatter(row[f"{name}_scatter"])]))
                for name in ("b_h", "b_N")
            ]
            before = f"{symbols[row['metric']]} " * (len(symbols) > 1)
            shown.add_row(*map(Text, [*cells, before + number(row["target"]), marks]))
        console.print(Text(setting(records[0]), style="bold"))
        console.print(shown)
        for k, note in enumerate(notes, 1):
            console.print(Text(f"{k}  {note}"))
        seeds = max(row["seeds"] for row in records)
        console.print(Text(f"{about_h(records[0])} {about_intervals(seeds)} {ABOUT_SCATTER}"), "")
    choices, sentences = what_to_use(analysis.choices)
    several = choices[list(SETTING)].drop_duplicates().shape[0] > 1
    answers = choices.groupby(list(ANSWER), dropna=False, sort=False)
    for (_, rows), sentence in zip(answers, sentences, strict=True):
        if several:
            console.print(Text(setting(rows.iloc[0]), style="bold"))
        console.print(Text(sentence), "")
