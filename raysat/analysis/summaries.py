"""The headline of a sweep: one row for each reading, and the table printed at its end."""

from __future__ import annotations

import math

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raysat.analysis.efficiency import what_to_use
from raysat.analysis.measure import STATISTICS
from raysat.analysis.reading import READING, SETTING, policy
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


def summary(fits: pd.DataFrame) -> pd.DataFrame:
    """Make one row for each reading: predictions, headline b_h and b_N with intervals, the target of b_N, `notes`.

    `b_h_scatter` and `b_N_scatter` are the fits' `rms_log_residual`, `b_h_q` and `b_N_q` their q. `unpredicted` says
    why there are no predictions, `approximated` how the predicted network differs from the trained one. `notes` is a
    tuple of sentences: refused fits with reasons, and reservations about the numbers next to them.
    """
    rows = []
    # the headline rows of a reading are its b_h, which has no target, and then its b_N, whose target is kept
    for _, group in fits[fits["headline"].astype(bool)].groupby(list(READING), dropna=False, sort=False):
        row = group.iloc[0][[*READING, "n_diverged", "n_failed", "unpredicted", "approximated", *STATISTICS]].to_dict()
        row["seeds"] = int(group["seeds"].max())
        notes = []
        for fit in group.to_dict("records"):
            name = fit["quantity"]
            row |= {name: fit["value"], f"{name}_low": fit["low"], f"{name}_high": fit["high"], "target": fit["target"]}
            row |= {f"{name}_scatter": fit["rms_log_residual"], f"{name}_q": fit["q"]}
            if row["tuning"] and not math.isnan(fit["value"]) and not math.isnan(fit["eta_beta_max"]):
                ends = f"{number(fit['eta_beta_min'])} to {number(fit['eta_beta_max'])}"
                notes.append(f"{name}: best stepsizes {ends} over beta(b), at most {number(fit['eta_k_op_max'])}/k_op.")
            notes += [f"{name}: {fit['reason']}."] * bool(fit["reason"])
        if policy(row["stepsize"]) == "theory":
            notes.append(THEORY_CAVEAT)
        notes += [f"No prediction: {row['unpredicted']}."] * bool(row["unpredicted"])
        notes += [f"The prediction is an approximation: {row['approximated']}."] * bool(row["approximated"])
        lost = [f"{row[f'n_{what}']} {what}" for what in ("diverged", "failed") if row[f"n_{what}"]]
        if lost:
            notes.append(f"Trials left out: {', '.join(lost)}.")
        rows.append(row | {"notes": tuple(notes)})
    found = [f"{name}{end}" for name in ("b_h", "b_N") for end in ("", "_low", "_high", "_scatter", "_q")]
    columns = [*READING, "seeds", "n_diverged", "n_failed", *STATISTICS, *found, "target", "unpredicted"]
    columns += ["approximated", "notes"]
    return pd.DataFrame(rows, columns=columns)


def print_summary(analysis: Analysis, console: Console) -> None:
    """Print the summary at the end of a sweep: recommendations, and one table a setting with its footnotes."""
    table = summary(analysis.fits)
    if table.empty:
        console.print(NOTHING)
        return
    said = recommendations(analysis.fits, analysis.points)
    for one in said:
        console.print(Text(one.setting, style="bold")) if len(said) > 1 else None
        console.print(Text(one.sentence), "")
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
            # long labels take two lines, so that the table fits a terminal
            label = method(row) if len(method(row)) < 15 else method(row).replace("(", "\n(", 1)
            cells = [str(row["width"]), label, *(number(row[name]) for name in ("gamma", "k_op", "b_star"))]
            cells += [
                "\n".join(filter(None, [*estimate(row, name), scatter(row[f"{name}_scatter"])]))
                for name in ("b_h", "b_N")
            ]
            shown.add_row(*map(Text, [*cells, number(row["target"]), marks]))
        console.print(Text(setting(records[0]), style="bold"))
        console.print(shown)
        for k, note in enumerate(notes, 1):
            console.print(Text(f"{k}  {note}"))
        seeds = max(row["seeds"] for row in records)
        console.print(Text(f"{about_h(records[0])} {about_intervals(seeds)} {ABOUT_SCATTER}"), "")
    choices, sentences = what_to_use(analysis.choices)
    of_settings = choices.groupby(list(SETTING), dropna=False, sort=False)
    for (_, rows), sentence in zip(of_settings, sentences, strict=True):
        if len(sentences) > 1:
            console.print(Text(setting(rows.iloc[0]), style="bold"))
        console.print(Text(sentence), "")
