"""What was predicted before a step was trained, beside what was measured of it, or word that nothing was yet."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape

import pandas as pd

from raysat.analysis import SETTING, method, network, number, setting
from raysat.analysis.words import bounds
from raysat.report.html import Section, footnoted, paragraphs

PREDICTOR = {
    "b_star": "b_star",
    "b_star_thm33": "4\N{NO-BREAK SPACE}gamma/k_op",
    "noise_scale": "noise scale",
    "forecast": "forecast",
}
"""The predictors of `raysat.analysis.predictors` as the heads of the table."""

COLUMNS = ("width", "stepsizes", "quantity", "measured", *PREDICTOR.values())

NETWORK = (
    *("dataset", "preprocessing", "n", "model", "model_options", "depth", "activation", "loss", "dtype", "width"),
)
"""The columns that `ntk` and `trials` have in common of what is predicted."""

ABOUT = (
    "In parentheses: predicted over measured. The forecast is the same trials, with the same stepsizes, by the "
    "expected loss of SGD on the linearized network, tuned and fitted in the same way."
)

LATER = "forecast: it takes the stepsizes of the trials; before they have ended, python -m raysat.forecast FILE has it."

Row = tuple[list[str], list[str]]
"""Of a row of the table its cells, HTML already, and its notes."""


def predictions(comparison: pd.DataFrame, ntk: pd.DataFrame) -> Section:
    """Every predictor of each headline b_N and b_h, measured or not, and of the networks of which nothing has ended.

    Args:
        comparison: `Analysis.comparison`.
        ntk: The `ntk` table.
    """
    title = "What was predicted before a step was trained"
    tables: dict[str, list[Row]] = {}
    rows = comparison[comparison["headline"].astype(bool)]
    for _, of_setting in rows.groupby(list(SETTING), dropna=False, sort=False):
        tables[setting(of_setting.iloc[0])] = list(_measured(of_setting))
    for name, row in _unmeasured(comparison, ntk):
        tables.setdefault(name, []).append(row)
    parts = [
        f"<h3>{escape(name)}</h3>"
        + footnoted(COLUMNS, cells, {"stepsizes", "quantity"}, f"{title}: {name}", f"predicted-{k}")
        for k, (name, cells) in enumerate(tables.items(), 1)
    ]
    return Section("predictions", title, "\n".join([*parts, paragraphs([ABOUT], "soft")]) if parts else "")


def _measured(rows: pd.DataFrame) -> Iterator[Row]:
    """A row for each fit of one setting."""
    for _, own in rows.groupby(["width", "stepsize", "tuning", "quantity"], sort=False):
        fit, said = own.iloc[0], own.set_index("predictor").loc[list(PREDICTOR)]
        quantity = fit["quantity"] if math.isnan(fit["target"]) else f"{fit['quantity']}, L ≤ {number(fit['target'])}"
        found = [number(fit["value"]), bounds(fit["low"], fit["high"])]
        cells = [[str(fit["width"] or "none")], [method(fit)], [quantity]]
        cells.append(["not measured"] if math.isnan(fit["value"]) else found)
        for predicted, ratio in zip(said["predicted"], said["ratio"], strict=True):
            cells.append([number(predicted), "" if math.isnan(ratio) else f"({number(ratio)})"])
        notes = [f"{fit['quantity']}: {fit['reason']}."] * bool(fit["reason"])
        yield ["<br>".join(map(escape, filter(None, lines))) for lines in cells], [*notes, *_remarks(said["remark"])]


def _remarks(by_predictor: pd.Series) -> Iterator[str]:
    """What is remarked on predictors, each remark once, with those it is of."""
    names: dict[str, list[str]] = {}
    for predictor, remarks in by_predictor.items():
        for remark in filter(None, remarks.split("; ")):
            names.setdefault(remark, []).append(PREDICTOR[str(predictor)])
    for remark, of in names.items():
        yield f"{'all predictors' if len(of) == len(PREDICTOR) else ', '.join(of)}: {remark}."


def _unmeasured(comparison: pd.DataFrame, ntk: pd.DataFrame) -> Iterator[tuple[str, Row]]:
    """The networks whose statistics are known and of which no trial has ended: the heading of each, and its row."""
    key = lambda row: tuple(None if pd.isna(row[name]) else row[name] for name in NETWORK)  # noqa: E731
    measured = {key(row) for row in comparison[list(NETWORK)].drop_duplicates().to_dict("records")}
    for _, own in ntk[ntk["iteration"] == 0].groupby(list(NETWORK), dropna=False, sort=False):
        first = own.iloc[0].to_dict()
        if key(first) in measured:
            continue
        values = [number(own[name].astype(float).mean()) for name in PREDICTOR if name != "forecast"]
        why = own["method_reason"].iloc[0] if own["b_star"].isna().all() else ""
        notes = [f"No prediction: {why}."] if why else [LATER]
        cells = [str(first["width"] or "none"), "any", "b_N, b_h", "not measured", *values, number(math.nan)]
        yield network(first), (list(map(escape, cells)), notes)
