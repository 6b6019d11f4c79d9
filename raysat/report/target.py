"""The sliders with which a reader moves the target: the levels of each setting, and the recommendation at each."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from raysat.analysis import ANSWER, READING, SETTING, by_evidence, key_of, number, setting, target_symbol
from raysat.analysis.ladder import Ladder
from raysat.analysis.recommendation import recommendations
from raysat.spec.goals import METRICS, TRAIN_LOSS, rises

BUDGETS = ("iterations", "samples", "epochs")
"""The fields of a sweep that may set the length of a trial; one of them does."""


def sliders(record: Mapping, ladder: Ladder, names: Mapping[tuple, str]) -> list[dict[str, Any]]:
    """Make a slider for each setting and metric with several targets.

    Args:
        record: The content of `sweep.json`.
        ladder: The analysis at many targets.
        names: The name of each setting in the figures' controls (`raysat.analysis.short_settings`).

    Returns:
        For each setting and metric: `about` (the setting in full), `at` (its name in the controls), `metric` (its name
        there), `symbol` (what is before a level), `levels` (from easy to hard), `start` (the index of the headline's),
        `own` (those of the sweep's own targets), `said` (the recommendation at each), `end` (why there are no harder
        levels) and `command` (the one that measures them).
    """
    return [slider for slider in _each(record, ladder, names) if len(slider["levels"]) > 1]


def _each(record: Mapping, ladder: Ladder, names: Mapping[tuple, str]) -> Iterator[dict[str, Any]]:
    for _, fits in ladder.fits.groupby(list(ANSWER), dropna=False, sort=False):
        metric = fits["metric"].iloc[0]
        leading = by_evidence(fits[fits["headline"].astype(bool)]).iloc[:1]
        rungs = fits.merge(leading[list(READING)], on=list(READING)).dropna(subset="target")
        rungs = rungs.sort_values("target", ascending=rises(metric), ignore_index=True)
        points = ladder.points.merge(leading[[*READING, "metric"]], on=[*READING, "metric"])
        of_loss = metric == TRAIN_LOSS
        ends = ladder.ends.merge(leading[list(SETTING)], on=list(SETTING)).to_dict("records") if of_loss else []
        row = leading.iloc[0].to_dict()
        yield {
            "about": setting(row),
            "at": names[key_of(row, SETTING)],
            "metric": METRICS[metric],
            "symbol": target_symbol(metric),
            "levels": rungs["target"].tolist(),
            "start": int(rungs["headline"].argmax()) if len(rungs) else 0,
            "own": rungs.index[rungs["own"]].tolist(),
            "said": [_said(record, rungs.iloc[k : k + 1], points) for k in range(len(rungs))],
            **(_end(record, ends[0]) if ends else {"end": "", "command": ""}),
        }


def _said(record: Mapping, rung: pd.DataFrame, points: pd.DataFrame) -> str:
    """Return the recommendation at a level."""
    (one,) = recommendations(rung.assign(headline=True), points)
    searched = any(stepsize["policy"] == "grid_auto" for stepsize in record["sweep"].get("stepsizes", ()))
    row = rung.iloc[0]
    # an automatic grid was widened until the best stepsize for the sweep's own targets was inside it, for no other
    if searched and "widen the grid" in row["reason"] and not row["own"] and not math.isnan(row["value"]):
        command = _command(record, targets=rung["target"].tolist())
        return f"{one.sentence} Stepsizes were sought for another target: {command} tries those that are missing."
    return one.sentence


def _end(record: Mapping, end: Mapping) -> dict[str, str]:
    """Return why a ladder goes no lower, and the command that measures further down."""
    # a factor of 2 below, rounded to one digit
    lower = float(f"{end['deepest'] / 2:.1g}")
    sweep = record["sweep"]
    name = f"{sweep.get('name', 'sweep')}-{lower:g}"  # a new folder: settings that all cells of one share cannot change
    if end["early"]:
        why = (
            f"No target below {end['deepest']:g}: trials were stopped at their target, and one of them might be "
            "the first to reach a lower one. To measure further down:"
        )
        ended = {"target": "None"} if sweep.get("target") else {}
        return {"end": why, "command": _command(record, **ended, target_loss=lower, targets=[lower], name=name)}
    budget = next((one for one in BUDGETS if sweep.get(one)), BUDGETS[0])
    why = (
        f"No target below {end['deepest']:g}: not every batch size comes further in the "
        f"{number(sweep.get(budget))} {budget} of a trial. To measure further down:"
    )
    more = {budget: 2 * sweep[budget]} if sweep.get(budget) else {}
    return {"end": why, "command": _command(record, **more, targets=[lower], name=name)}


def _command(record: Mapping, **fields: float | str | Sequence[float]) -> str:
    """Return the command that started the sweep, with some fields changed."""
    given = [f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in fields.items()]
    before = record.get("command") or [record.get("file") or "SWEEP.py"]
    return shlex.join(["raysat", "run", *before, *(word for one in given for word in ("--set", one))])
