"""The answer in words: one or two sentences for each setting, with the interval and the caveats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from raysat.analysis import ANSWER, THEORY_CAVEAT, estimate, method, number, policy, setting
from raysat.spec.goals import METRICS, TRAIN_LOSS, Target

EVIDENCE = ("grid", "grid_relative")
"""The policies that measure a critical batch size, because stepsizes are tuned at each batch size. Under `theory` b_N
follows beta(b) nearly by construction, and one stepsize for all batch sizes hides saturation."""

_ORDER = (*EVIDENCE, "theory", "fixed_fraction", "fixed")
_READINGS = ("stable", "free", "")


@dataclass(frozen=True)
class Answer:
    """The answer of a sweep for one setting.

    Attributes:
        setting: The setting, in words.
        sentences: The measured critical batch size, or why there is none; then the predicted one.
        caveats: Reservations about both.
        row: The row of `raysat.analysis.summary` on which it is based.
        measured: Whether it is a critical batch size measured with tuned stepsizes.
    """

    setting: str
    sentences: tuple[str, ...]
    caveats: tuple[str, ...]
    row: Mapping
    measured: bool = False

    @property
    def heading(self) -> str:
        """The setting, and the metric of the targets if it is not the training loss."""
        return f"{self.setting}{aimed_at(self.row['metric'])}"


def aimed_at(metric: str) -> str:
    """Return what a heading adds for a metric: nothing for the training loss."""
    return "" if metric == TRAIN_LOSS else f"; to a {METRICS[metric]}"


def answers(table: pd.DataFrame) -> list[Answer]:
    """Make one answer for each setting and metric.

    It is based on tuned stepsizes, if there are any; among these on the largest width, because the theory is one of
    wide networks; then on the policy that comes first in `EVIDENCE`, and on its stable reading, about which the theory
    makes a statement. If that reading has no b_N, the next one that has is used, and the caveats say why those before
    it have none.

    Args:
        table: The result of `raysat.analysis.summary`.
    """
    return [_answer(rows) for _, rows in table.groupby(list(ANSWER), dropna=False, sort=False)]


def _answer(rows: pd.DataFrame) -> Answer:
    known = {name: place for place, name in enumerate(_ORDER)}
    rank = [known.get(policy(label), len(known)) for label in rows["stepsize"]]
    # columns to sort by, each with the best first; a label's policy that is not in `_ORDER` comes last
    ordered = rows.assign(
        untuned=[place >= len(EVIDENCE) for place in rank],
        missing=rows["b_N"].isna(),
        rank=rank,
        narrow=-rows["width"],
        reading=rows["tuning"].map(_READINGS.index),
    )
    preferred = ordered.sort_values(["untuned", "narrow", "rank", "reading"]).to_dict("records")
    # `min` keeps the order: the first tuned row with a b_N; if there is none, the first tuned row
    at = min(range(len(preferred)), key=lambda k: (preferred[k]["untuned"], preferred[k]["missing"]))
    best = preferred[at]
    where = _where(best)
    if best["untuned"]:
        said = ["This sweep does not measure a critical batch size: it has no stepsizes tuned for each batch size."]
        end = "measure one" if math.isnan(best["b_star"]) else "put that to the test"
        said.append(f"{_predicted(best)}; add grid(auto=True) to its stepsizes to {end}.")
        return Answer(setting(best), tuple(said), (*_untuned(best, where), *_approximated(best)), best)
    reasons = _reasons(best)
    if best["missing"]:
        said = [f"No critical batch size can be given ({where}). {' '.join(reasons)}", f"{_predicted(best)}."]
        return Answer(setting(best), tuple(said), tuple(_approximated(best)), best)
    passed_over = [
        f"No critical batch size can be given for {_where(row)}. {' '.join(_reasons(row))}" for row in preferred[:at]
    ]
    # N(b_N)/N_inf is 2^(1/q), by the law
    what = (
        f"a batch of b_N = {number(best['b_N'])} samples takes {number(2 ** (1 / best['b_N_q']), 2)} times the "
        "iterations of the largest ones"
    )
    among = "Among stepsizes that are stable in theory the" if best["tuning"] == "stable" else "The"
    measured = (
        f"{among} critical batch size is {with_interval(best, 'b_N')}: {what}, to {_aim(best)} ({where}: "
        "best stepsize of each batch size)."
    )
    said = [measured, f"{_predicted(best)}{_apart(best)}."]
    caveats = (*passed_over, *_approximated(best), *_other_reading(best, rows), *reasons, *_seeds(best))
    return Answer(setting(best), tuple(said), caveats, best, True)


def _aim(row: Mapping) -> str:
    return Target.in_row(row).words


def _where(row: Mapping) -> str:
    return (f"width {row['width']}, " if row["width"] else "") + method(row)


def _reasons(row: Mapping) -> list[str]:
    # in `summary` a note about a fit begins with its quantity
    return [note for note in row["notes"] if note.startswith("b_N")]


def _predicted(row: Mapping) -> str:
    """Return the prediction of the theory, without a full stop."""
    if math.isnan(row["b_star"]):
        return f"Theory predicts no b_star here: {row['unpredicted'] or 'there are no statistics at initialization'}"
    return f"Theory predicted b_star = {number(row['b_star'])} before a step was trained"


def _approximated(row: Mapping) -> list[str]:
    return [f"The prediction is an approximation: {row['approximated']}."] * bool(row["approximated"])


def _untuned(best: Mapping, where: str) -> list[str]:
    if math.isnan(best["b_N"]):
        return _reasons(best)
    hides = "One stepsize for every batch size hides saturation."
    why = THEORY_CAVEAT if policy(best["stepsize"]) == "theory" else hides
    return [f"Measured without tuning: b_N = {with_interval(best, 'b_N')} at {_aim(best)} ({where}). {why}"]


def _other_reading(best: Mapping, rows: pd.DataFrame) -> list[str]:
    same = (rows["width"] == best["width"]) & (rows["stepsize"] == best["stepsize"])
    others = rows[same & (rows["tuning"] != best["tuning"]) & rows["b_N"].notna()].to_dict("records")
    free = "With stepsizes tuned freely, beyond the range that the theory covers,"
    among = "Among stepsizes at which the linearized network is stable, the only ones that the theory covers,"
    return [
        f"{free if row['tuning'] == 'free' else among} b_N is {with_interval(row, 'b_N')} at {_aim(row)}."
        for row in others
    ]


def _apart(row: Mapping) -> str:
    """Return the prediction over the measurement, and whether the interval contains it; empty without a prediction."""
    if math.isnan(row["b_star"]):
        return ""
    factor = f", {number(row['b_star'] / row['b_N'])} times the measured value"
    if math.isnan(row["b_N_low"]):
        return factor
    inside = row["b_N_low"] <= row["b_star"] <= row["b_N_high"]
    return f"{factor}, {'inside' if inside else 'outside'} its interval"


def _seeds(row: Mapping) -> list[str]:
    return ["One seed: the interval does not show how seeds differ."] if row["seeds"] < 2 else []


def with_interval(row: Mapping, name: str) -> str:
    """Format a critical batch size with its interval: `12 [11, 13]`."""
    return " ".join(filter(None, estimate(row, name)))
