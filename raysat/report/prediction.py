"""Measurements next to their predictions from before training, in one table for each setting."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from html import escape

import pandas as pd

from raysat.analysis import (
    ABOUT_SCATTER,
    READING,
    SETTING,
    about_h,
    about_intervals,
    key_of,
    method,
    network,
    number,
    scatter,
    setting,
    target_symbol,
)
from raysat.analysis.predictors import BY_CONSTRUCTION, PREDICTORS
from raysat.analysis.words import bounds
from raysat.report.html import Section, footnoted, paragraphs

STATISTICS = ("gamma", "k_op")
"""The statistics whose ratio is b_star: columns of `ntk` and of the comparison, shown in one column of the table."""

NETWORK = (
    *("dataset", "preprocessing", "n", "model", "model_options", "depth", "activation", "loss", "dtype", "width"),
)
"""The columns, common to `ntk` and `trials`, that identify a network whose critical batch size is predicted."""

ABOUT = (
    "A row is a critical batch size: b_N from the iterations to a target, b_h from the convergence exponent. "
    "Measured: with its 95 % interval, and how far the values lie from the fitted law. Predicted: from the network at "
    "initialization, in samples; in parentheses over what was measured, so that 1 is a prediction that came true. The "
    "forecast is the same trials, with the same stepsizes, by typical runs of SGD on the linearized network, "
    "tuned and fitted in the same way. A dash: there is no such number; the notes say why."
)

LATER = "forecast: it needs the stepsizes of the trials; until they have ended, use python -m raysat.forecast FILE."

Row = tuple[list[str], list[str]]
"""A row of the table: its cells, already HTML, and its notes."""


def predictions(comparison: pd.DataFrame, summary: pd.DataFrame, ntk: pd.DataFrame) -> Section:
    """Make the section of measurements and predictions.

    Args:
        comparison: `Analysis.comparison`.
        summary: The result of `raysat.analysis.summary`.
        ntk: The `ntk` table.
    """
    return Section("predictions", TITLE, tables(comparison, summary, ntk))


TITLE = "Measured and predicted"


def columns() -> tuple[str, ...]:
    """Return the heads of the table's columns."""
    predicted = (f"predicted: {predictor.label}" for predictor in PREDICTORS.values())
    return ("width", "stepsizes", "quantity", "measured, in samples", *predicted, ", ".join(STATISTICS))


def tables(comparison: pd.DataFrame, summary: pd.DataFrame, ntk: pd.DataFrame) -> str:
    """Show all predictions of each headline b_N and b_h, measured or not, and of networks without an ended trial.

    Args:
        comparison: `Analysis.comparison`.
        summary: The result of `raysat.analysis.summary`.
        ntk: The `ntk` table.
    """
    headline = comparison[comparison["headline"].astype(bool)]
    made: dict[str, list[Row]] = {}
    about: dict[str, str] = {}
    for _, readings in summary.groupby(list(SETTING), dropna=False, sort=False):
        records = readings.to_dict("records")
        name, seeds = setting(records[0]), max(row["seeds"] for row in records)
        about[name] = f"{about_h(records[0])} {about_intervals(seeds)} {ABOUT_SCATTER}"
        made[name] = [row for k in range(len(readings)) for row in _of_reading(readings.iloc[k : k + 1], headline)]
    for name, row in _unmeasured(comparison, ntk):
        made.setdefault(name, []).append(row)
    parts = [paragraphs([ABOUT], "soft")] * bool(made)
    for k, (name, rows) in enumerate(made.items(), 1):
        label = f"{TITLE}: {name}"
        parts.append(
            f"<h3>{escape(name)}</h3>" + footnoted(columns(), rows, {"stepsizes", "quantity"}, label, f"note-{k}")
        )
        parts.append(paragraphs([about[name]] if name in about else [], "soft"))
    return "\n".join(parts)


def _of_reading(reading: pd.DataFrame, headline: pd.DataFrame) -> Iterator[Row]:
    """Yield the rows of a reading and metric: b_N, then b_h if this row of the summary has it."""
    said = reading.iloc[0].to_dict()
    same = [*READING, "metric"]
    of_N = headline[headline["quantity"] == "b_N"].merge(reading[same], on=same)
    of_h = headline[headline["quantity"] == "b_h"].merge(reading.loc[reading["leads"], list(READING)], on=list(READING))
    for quantity, rows in (("b_N", of_N), ("b_h", of_h)):
        if rows.empty:
            continue
        # a note that begins with a quantity belongs to its row only, any other note to both rows
        others = [note for note in said["notes"] if note.startswith(("b_N: ", "b_h: "))]
        notes = [note for note in said["notes"] if note not in others or note.startswith(quantity)]
        yield _row(rows, said, notes)


def _row(own: pd.DataFrame, reading: Mapping, notes: list[str]) -> Row:
    """Format a critical batch size with its predictions.

    Args:
        own: The rows of the comparison, one for each predictor.
        reading: The row of the summary.
        notes: The notes on the measurement.
    """
    # columns in the order of `PREDICTORS`, as the heads are; a missing predictor is an error, not a shift of the others
    fit, by_predictor = own.iloc[0], own.set_index("predictor").loc[list(PREDICTORS)]
    quantity = fit["quantity"]
    if not math.isnan(fit["target"]):
        quantity += f", {target_symbol(fit['metric'])} {number(fit['target'])}"
    found = [number(fit["value"]), bounds(fit["low"], fit["high"]), scatter(fit["rms_log_residual"])]
    cells = [[str(fit["width"] or "none")], [method(reading)], [quantity]]
    cells.append(["not measured", found[2]] if math.isnan(fit["value"]) else found)
    for predicted, ratio in zip(by_predictor["predicted"], by_predictor["ratio"], strict=True):
        cells.append([number(predicted), "" if math.isnan(ratio) else f"({number(ratio)})"])
    cells.append([number(fit[name]) for name in STATISTICS])
    remarks = _remarks(by_predictor["remark"], {BY_CONSTRUCTION, reading["unpredicted"]})  # both are in the notes
    return ["<br>".join(map(escape, filter(None, lines))) for lines in cells], [*notes, *remarks]


def _remarks(by_predictor: pd.Series, said: set[str]) -> Iterator[str]:
    """Yield each remark on predictions once, with the predictors that it concerns, except those in `said`."""
    names: dict[str, list[str]] = {}
    for predictor, remarks in by_predictor.items():
        for remark in filter(None, remarks.split("; ")):
            names.setdefault(remark, []).append(PREDICTORS[str(predictor)].label)
    for remark, of in names.items():
        if remark not in said:
            yield f"{'all predictors' if len(of) == len(PREDICTORS) else ', '.join(of)}: {remark}."


def _unmeasured(comparison: pd.DataFrame, ntk: pd.DataFrame) -> Iterator[tuple[str, Row]]:
    """Yield networks with statistics but without an ended trial: for each the heading and its row."""
    measured = {key_of(row, NETWORK) for row in comparison[list(NETWORK)].drop_duplicates().to_dict("records")}
    for _, own in ntk[ntk["iteration"] == 0].groupby(list(NETWORK), dropna=False, sort=False):
        first = own.iloc[0].to_dict()
        if key_of(first, NETWORK) in measured:
            continue
        # means over seeds; the forecast, a predictor that needs trials, is no column of `ntk`
        mean = {name: number(own[name].astype(float).mean()) for name in (*PREDICTORS, *STATISTICS) if name in own}
        why = own["method_reason"].iloc[0] if own["b_star"].isna().all() else ""
        notes = [f"No prediction: {why}."] if why else [LATER]
        values = [mean.get(name, number(math.nan)) for name in PREDICTORS]
        cells = [str(first["width"] or "none"), "any", "b_N, b_h", "not measured", *values]
        yield network(first), ([*map(escape, cells), "<br>".join(mean[name] for name in STATISTICS)], notes)
