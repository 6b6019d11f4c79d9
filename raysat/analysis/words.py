"""Numbers and names for a reader, and the reservations that hold for a whole table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

import pandas as pd

from raysat.analysis.reading import READING, SETTING
from raysat.spec.goals import symbol
from raysat.spec.labels import beyond_theory, transform_in
from raysat.text import number, percent

Row = Mapping | pd.Series

THEORY_CAVEAT = (
    "Under theory(c) the stepsize is made from beta(b), so that N(b) follows beta(b) nearly by construction: b_N near "
    "b_star checks the code, not the theory."
)

NOTHING = "No trial has ended yet: there is nothing to analyze."


def network(row: Row) -> str:
    """Return the network and its data: `mnist (center, n = 1,000), mlp(activation=relu, depth=3), mse, float32`."""
    try:
        options = json.loads(row["model_options"])
        short = {name: number(value, 4) if isinstance(value, float) else value for name, value in options.items()}
        options = ", ".join(f"{name}={value}" for name, value in sorted(short.items()))
    except (TypeError, ValueError, AttributeError):
        options = ""
    model = f"{row['model']}({options})" if options else row["model"]
    data = f"{row['dataset']} ({row['preprocessing']}, n = {row['n']:,})"
    return f"{data}, {model}, {row['loss']}, {row['dtype']}"


def setting(row: Row) -> str:
    """The setting of a group in one line: network, sampling, T, and the training if it is not plain SGD."""
    training = row.get("training", "sgd")
    predicted = "plain SGD without augmentation" if transform_in(training) else "plain SGD"
    other = "" if training == "sgd" else f", {training} (the prediction is for {predicted})"
    return f"{network(row)}, {row['sampling']}, T = {iterations(row)}{other}"


def short_settings(table: pd.DataFrame) -> dict[tuple, str]:
    """A name for each setting of a table: the data set, the model, and the columns in which the settings differ."""
    rows = table.reindex(columns=list(SETTING)).drop_duplicates().to_dict("records")
    facts = []
    for row in rows:
        try:
            options = dict(json.loads(row["model_options"]))
        except (TypeError, ValueError):
            options = {}
        hidden = {"model_options", "depth", "activation", "iterations_least"}  # depth and activation are in the options
        facts.append({name: value for name, value in row.items() if name not in hidden} | options)
    # compared as text, since options may be lists, which have no hash
    every = list(dict.fromkeys(name for fact in facts for name in fact))
    varied = [name for name in every if len({str(fact.get(name)) for fact in facts}) > 1]
    return {
        key_of(row, SETTING): ", ".join(
            [f"{fact['dataset']}", f"{fact['model']}"]
            + [f"{name} = {fact[name]}" for name in varied if name not in ("dataset", "model") and name in fact]
        )
        for row, fact in zip(rows, facts, strict=True)
    }


def target_symbol(metric: str) -> str:
    """What stands before a target on a page: `L ≤`, `test accuracy ≥`."""
    return symbol(metric).replace("<=", "≤").replace(">=", "≥")


def target_label(row: Row) -> str:
    """The target of a row on a page: `L ≤ 0.3`, `test accuracy ≥ 0.9`."""
    return f"{target_symbol(row['metric'])} {row['target']:g}"


def key_of(row: Row, columns: Sequence[str] = READING) -> tuple:
    """A reading's values as a dictionary's key, with None in place of nan, which does not equal itself."""
    return tuple(None if pd.isna(row[name]) else row[name] for name in columns)


def iterations(row: Row) -> str:
    """T, or its range under a budget of samples: `300`, `10 to 640`."""
    # rows that did not pass `comparable` have a single T
    least, most = row.get("iterations_least", row["iterations"]), row["iterations"]
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"


def method(row: Row) -> str:
    """The stepsize policy and, for a grid, how it was tuned: `theory(1)`, `grid (stable)`."""
    return f"{row['stepsize']} ({row['tuning']})" if row["tuning"] else row["stepsize"]


def bounds(low: float, high: float) -> str:
    """An interval: `[8.2, 10.3]`; empty if there is none."""

    def short(end: float) -> str:
        # one decimal on either side of 10
        return number(end, 2 if end < 10 else 3)

    return "" if math.isnan(low) or math.isnan(high) else f"[{short(low)}, {short(high)}]"


def estimate(row: Row, name: str) -> tuple[str, str]:
    """A critical batch size of `summary` and its interval, as text; the interval is empty if there is none."""
    return number(row[name]), bounds(row[f"{name}_low"], row[f"{name}_high"])


def scatter(rms: float) -> str:
    """The scatter about a fit, its `rms_log_residual`, as text; empty if nothing was fitted.

    Example:
        >>> scatter(0.0432), scatter(0.001)
        ('scatter 4 %', 'scatter < 1 %')
    """
    if not math.isfinite(100 * rms):
        return ""
    return "scatter < 1 %" if rms < 0.01 else f"scatter {percent(rms) if rms >= 10 else f'{100 * rms:.0f} %'}"


def about_h(row: Row) -> str:
    """The reservation that holds for every b_h of a setting."""
    return f"h, and with it b_h, depends on the number of iterations, here T = {iterations(row)}; b_N does not."


def no_interpolation(row: Row) -> str:
    """Return why a reading's points have no `h_interp`."""
    if why := beyond_theory(row["training"]):
        return f"no interpolation: {why}"
    if row["iterations_least"] < row["iterations"]:
        return "no interpolation: T differs between batch sizes"
    return "no interpolation: h(1) or h(n) is missing"


ABOUT_SCATTER = "Scatter is that of h or N about its fit, root mean square."


def about_intervals(seeds: int) -> str:
    """Describe the intervals, and their limits if there is one seed."""
    if seeds == 1:
        return (
            "Intervals are of 95 %, from the scatter about the fit, because there is one seed: they do not show how "
            "seeds differ, and without a fit there is none."
        )
    if not seeds:
        return "There are no intervals: no seed has a value."
    return f"Intervals are of 95 %, by Student's t over {seeds} seeds."
