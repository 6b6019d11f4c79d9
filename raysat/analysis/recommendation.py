"""Which batch size to use: an answer for each setting and metric, in one sentence, or the reason why there is none.

The terminal, the report, notebooks and `raysat.load(...).recommendation` begin with this sentence. It comes from the
best evidence (`raysat.analysis.reading.by_evidence`): stepsizes tuned freely at each batch size, because that is how a
user trains, and the largest of several widths. The stable reading, about which the theory makes a statement, is shown
next to it.

The batch size is b_N, where perfect scaling meets the plateau: below it a larger batch saves iterations nearly in
proportion, above it hardly any. The answer is the nearest batch size that was run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from raysat.analysis.reading import ANSWER, READING, by_evidence, policy
from raysat.analysis.words import bounds, number, setting
from raysat.saturation.fits import law
from raysat.spec.goals import TRAIN_LOSS, Target, rises
from raysat.spec.phases import in_label

GAIN = 0.05
"""The excess of N over its plateau, as a fraction, at the batch size beyond which nothing is said to be gained.
Default: 0.05, about the scatter of N."""


@dataclass(frozen=True)
class Recommendation:
    """The batch size to use in one setting.

    Attributes:
        setting: The setting in which it was measured.
        sentence: The answer, or why there is none and what would give one.
        batch_size: The batch size; nan if there is none.
        low: Lower end of the 95 % interval of b_N, in samples.
        high: Upper end.
        target: The target: the value of the metric.
        metric: The metric, a column of `curves`.
    """

    setting: str
    sentence: str
    batch_size: float = math.nan
    low: float = math.nan
    high: float = math.nan
    target: float = math.nan
    metric: str = TRAIN_LOSS

    def __str__(self) -> str:
        return self.sentence


def recommendations(fits: pd.DataFrame, points: pd.DataFrame) -> list[Recommendation]:
    """Make one recommendation for each setting and metric.

    Args:
        fits: `Analysis.fits`.
        points: `Analysis.points`.
    """
    headline = fits[fits["headline"].astype(bool) & (fits["quantity"] == "b_N")]
    groups = headline.groupby(list(ANSWER), dropna=False, sort=False)
    return [_recommended(by_evidence(rows).iloc[:1], points) for _, rows in groups]


def _recommended(best: pd.DataFrame, points: pd.DataFrame) -> Recommendation:
    fit = best.iloc[0].to_dict()
    where, aim = setting(fit), {"target": fit["target"], "metric": fit["metric"]}
    own = points[points["quantity"] == "N"].merge(best[[*READING, "metric", "target"]])
    run = np.sort(own.loc[own["value"].notna(), "batch_size"].to_numpy(dtype=float))
    if why := _against(fit, run):
        to = "" if math.isnan(fit["target"]) else f" for {Target.in_row(fit).words}"
        return Recommendation(where, f"No batch size can be recommended yet{to}: {why}", **aim)
    b_N, q = fit["value"], fit["q"]
    # the nearest in log b, on which the law depends through b/b_N; N is the law's, since its values scatter
    b = float(run[np.abs(np.log(run / b_N)).argmin()])
    at, least = (float(law(np.array([size]), fit["asymptote"], b_N, q)[0]) for size in (b, run[0]))
    saves, costs = least / at, b * at / (run[0] * least)
    said = f"Use b = {b:.0f} (b_N = {' '.join(filter(None, [number(b_N), bounds(fit['low'], fit['high'])]))})"
    if b == run[0]:
        said += ", the smallest run: a larger batch costs samples nearly in proportion"
    else:
        said += f": {number(saves, 2)} times fewer iterations than b = {run[0]:.0f}"
        said += f" for {number(costs, 2)} times the samples"
    end = b_N / math.expm1(q * math.log1p(GAIN)) ** (1 / q)  # there (1 + (b_N/b)^q)^(1/q) is 1 + GAIN
    # the first batch size run at which the law is within GAIN of its plateau; none if all are below it
    beyond = next((size for size in run if size >= end), None)
    if beyond is not None:
        said += f"; beyond b = {beyond:.0f} less than {100 * GAIN:.0f} % of the iterations are saved"
    seeds = f"{fit['seeds']} seed{'s' * (fit['seeds'] != 1)}"
    width = f"width {fit['width']}, " * bool(fit["width"])
    epochs = b * at / fit["n"]
    said += f". To {Target.in_row(fit).words}, {number(epochs, 2)} epochs, {width}{seeds}, stepsizes tuned at each b."
    lower = "higher" if rises(fit["metric"]) else "lower"
    said += f" That is less than an epoch away: a {lower} target says more of a whole training." * (epochs < 1)
    return Recommendation(where, said, b, fit["low"], fit["high"], **aim)


def _against(fit: Mapping, run: Float[np.ndarray, " b"]) -> str:
    """Return why there is no recommendation, and what to do; empty if there can be one."""
    if not policy(fit["stepsize"]).startswith("grid"):
        return (
            f"stepsizes were not tuned at each batch size ({fit['stepsize']}). Run it again with "
            "stepsizes=[grid(auto=True)]."
        )
    if in_label(fit["training"]):
        return "batches grow along the run, so that samples are not b N(b). Run it with one batch size a run."
    if math.isnan(fit["value"]):
        return f"{fit['reason']}."
    # an interval around all batch sizes run tells nothing; nan, the ends of no interval, fails both comparisons
    if not (fit["low"] > run[0] or fit["high"] < run[-1]):
        known = bounds(fit["low"], fit["high"]) or "without an interval"
        return f"b_N = {number(fit['value'])} {known} may be any of the batch sizes run: more seeds would tell."
    edges = [part for part in fit["reason"].split("; ") if part.endswith("widen the grid")]
    if edges:
        return f"{'; '.join(edges)}, as stepsizes=[grid(auto=True)] does by itself for its target."
    return ""
