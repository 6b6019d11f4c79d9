"""The targets to which N counts where a sweep names none: loss levels that all readings which are compared share.

b_N depends on the target, so that widths, stepsize policies and trainings can be compared at one target only. It is as
deep as all of them reach: of each width and training the reading of the best evidence (`by_evidence`) has a say, unless
it stays far behind the ones that lead, of which recommendations are: one that fails would else make it shallow for all.
"""

from __future__ import annotations

import math

import pandas as pd

from raysat.analysis.reading import GROUP, SETTING, Paths, by_evidence, readings, usable
from raysat.saturation.targets import attainable, choose_targets
from raysat.storage.schema import TARGET_REACHED

COMPARED = tuple(name for name in SETTING if name not in ("training", "iterations", "iterations_least"))
"""The columns that readings which are compared have in common: one architecture on one data set."""

HALF_WAY = 0.5
"""A reading that goes less than this share of the way of those that recommendations are of, in log L, has no say.
Default: a half."""


def deepest(reading: pd.DataFrame, paths: Paths, *, decided: bool = False) -> pd.DataFrame:
    """Of each (seed, batch size) the smallest loss that any of its trials reaches, as `deepest`, beside `loss_init`.

    Args:
        reading: The trials of a reading.
        paths: The loss along each trial.
        decided: Whether to go no further than it is decided which trial is first: one that was ended at its target may
            be the first to reach a lower loss too, if it was ended as early as any. In a race, only of those that were
            is it certain that they are there.
    """
    trials = usable(reading)
    least = [paths[key][1].min(initial=math.inf) if key in paths else math.inf for key in trials["cell_id"]]
    trials = trials.assign(deepest=least)
    found = trials.groupby(["seed", "batch_size"], as_index=False).agg(
        deepest=("deepest", "min"), loss_init=("loss_init", "first")
    )
    if decided and len(first := first_ended(trials)):
        found["deepest"] = found["deepest"].clip(lower=first["deepest"].max())
    return found


def attained(ends: pd.DataFrame) -> float:
    """Return how deep a target of all (seed, batch size) may lie, given what `deepest` says of them."""
    initial, least = (ends[name].to_numpy(dtype=float) for name in ("loss_init", "deepest"))
    return float(attainable(initial, least).max(initial=0))


def first_ended(trials: pd.DataFrame) -> pd.DataFrame:
    """Of each (seed, batch size) the trials that were ended at their target, at the earliest evaluation."""
    ended = trials[trials["status"] == TARGET_REACHED]
    return ended[ended["iterations_done"] == ended.groupby(["seed", "batch_size"])["iterations_done"].transform("min")]


def shared(trials: pd.DataFrame, paths: Paths) -> pd.Series:
    """The targets that each trial's readings count to: tuples, descending; empty where none serves.

    Args:
        trials: The `trials` table, comparable (`raysat.analysis.reading.comparable`).
        paths: The loss along each trial.
    """
    found = pd.Series(index=trials.index, dtype=object)
    for _, compared in trials.groupby(list(COMPARED), dropna=False):
        ends, leading = [], []
        for _, of_training in compared.groupby("training", dropna=False):
            made = [one for _, group in of_training.groupby(list(GROUP), dropna=False) for one in readings(group)]
            heads = pd.DataFrame([one.iloc[0] for one in made]).reset_index(drop=True)
            ranked = [(heads["width"][k], deepest(made[k], paths, decided=True)) for k in by_evidence(heads).index]
            best: dict[object, pd.DataFrame] = {}
            for width, end in ranked:
                if len(end):
                    best.setdefault(width, end)
            ends += best.values()
            leading += list(best.values())[:1]
        levels = _levels(ends, leading)
        found[compared.index] = [levels] * len(compared)
    return found


def _levels(ends: list[pd.DataFrame], leading: list[pd.DataFrame]) -> tuple[float, ...]:
    """The levels that readings share, given how deep each goes, and those that lead."""
    most = max((_way(end) for end in leading), default=0.0)
    counted = [end for end in ends if _way(end) > 0 and _way(end) >= HALF_WAY * most]
    if not counted:
        return ()
    together = pd.concat(counted)
    return choose_targets(together["loss_init"].to_numpy(dtype=float), together["deepest"].to_numpy(dtype=float))


def _way(end: pd.DataFrame) -> float:
    """Return how far a reading goes, in log L; 0 where it is not known."""
    first, last = float(end["loss_init"].min()), attained(end)
    return math.log(first / last) if 0 < last < first < math.inf else 0.0
