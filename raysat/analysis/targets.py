"""The targets to which N counts where a sweep names none: loss levels that all readings which are compared share.

b_N depends on the target, so that widths, stepsize policies and trainings can be compared at one target only. It is as
deep as all of them reach: of each width and training the reading of the best evidence (`by_evidence`) has a say, unless
it stays far behind the deepest of them, which one training that fails would else make shallow for all.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from raysat.analysis.reading import GROUP, SETTING, Paths, by_evidence, readings, usable
from raysat.saturation.targets import choose_targets

COMPARED = tuple(name for name in SETTING if name not in ("training", "iterations", "iterations_least"))
"""The columns that readings which are compared have in common: one architecture on one data set."""

HALF_WAY = 0.5
"""A reading that goes less than this share of the way to the deepest one, in log L, has no say. Default: a half."""


def deepest(reading: pd.DataFrame, paths: Paths) -> pd.DataFrame:
    """Of each (seed, batch size) the smallest loss that any of its trials reaches, as `deepest`, beside `loss_init`."""
    trials = usable(reading)
    least = [paths[key][1].min(initial=math.inf) if key in paths else math.inf for key in trials["cell_id"]]
    groups = trials.assign(deepest=least).groupby(["seed", "batch_size"], as_index=False)
    return groups.agg(deepest=("deepest", "min"), loss_init=("loss_init", "first"))


def shared(trials: pd.DataFrame, paths: Paths) -> pd.Series:
    """The targets that each trial's readings count to: tuples, descending; empty where none serves.

    Args:
        trials: The `trials` table, comparable (`raysat.analysis.reading.comparable`).
        paths: The loss along each trial.
    """
    found = pd.Series(index=trials.index, dtype=object)
    for _, compared in trials.groupby(list(COMPARED), dropna=False):
        ends = []
        for _, own in compared.groupby(["width", "training"], dropna=False):
            made = [reading for _, group in own.groupby(list(GROUP), dropna=False) for reading in readings(group)]
            heads = pd.DataFrame([reading.iloc[0] for reading in made]).reset_index(drop=True)
            ranked = (deepest(made[k], paths) for k in by_evidence(heads).index)
            if (leading := next((table for table in ranked if len(table)), None)) is not None:
                ends.append(leading)
        levels = _levels(ends)
        found[compared.index] = [levels] * len(compared)
    return found


def _levels(ends: list[pd.DataFrame]) -> tuple[float, ...]:
    """The levels that readings share."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ways = [float(np.log(end["loss_init"].min() / end["deepest"].max())) for end in ends]
    most = max((way for way in ways if math.isfinite(way)), default=0.0)
    counted = [end for end, way in zip(ends, ways, strict=True) if way >= HALF_WAY * most and way > 0]
    if not counted:
        return ()
    together = pd.concat(counted)
    return choose_targets(together["loss_init"].to_numpy(dtype=float), together["deepest"].to_numpy(dtype=float))
