"""Default targets to which N counts, if a sweep names none: loss levels that all compared readings share.

b_N depends on the target, so that widths, stepsize policies and trainings can only be compared at a common one: the
deepest that all of them reach. For each width and training the reading with the best evidence (`by_evidence`) counts,
unless it falls far behind the leading ones, on which recommendations are based; otherwise one reading that fails would
make the target shallow for all.
"""

from __future__ import annotations

import math

import pandas as pd

from raysat.analysis.reading import GROUP, SETTING, Paths, by_evidence, readings, usable
from raysat.saturation.targets import attainable, choose_targets
from raysat.storage.schema import TARGET_REACHED

COMPARED = tuple(name for name in SETTING if name not in ("training", "iterations", "iterations_least"))
"""The columns that compared readings share: one architecture on one data set."""

HALF_WAY = 0.5
"""A reading whose loss falls, in log L, by less than this fraction of the fall of the leading ones does not count.
Default: a half."""


def deepest(reading: pd.DataFrame, paths: Paths, *, decided: bool = False) -> pd.DataFrame:
    """For each (seed, batch size), the smallest loss that any of its trials reaches, as `deepest`, with `loss_init`.

    Args:
        reading: The trials of a reading.
        paths: The loss along each trial.
        decided: Whether to stop at the loss down to which the first trial is certain: a trial that was stopped at its
            target might also be the first to reach a lower loss, if none was stopped earlier. In a race, only these
            earliest trials are certain to arrive: others may have been cut.
    """
    trials = usable(reading)
    least = [paths[key][1].min(initial=math.inf) if key in paths else math.inf for key in trials["cell_id"]]
    trials = trials.assign(deepest=least)
    found = trials.groupby(["seed", "batch_size"], as_index=False).agg(
        deepest=("deepest", "min"), loss_init=("loss_init", "first")
    )
    # below the loss at which the first of a (seed, batch size) was stopped, no trial is certain to be the first
    if decided and len(first := first_ended(trials)):
        found["deepest"] = found["deepest"].clip(lower=first["deepest"].max())
    return found


def attained(ends: pd.DataFrame) -> float:
    """Return the lowest target that all (seed, batch size) reach, given the table of `deepest`."""
    initial, least = (ends[name].to_numpy(dtype=float) for name in ("loss_init", "deepest"))
    return float(attainable(initial, least).max(initial=0))


def first_ended(trials: pd.DataFrame) -> pd.DataFrame:
    """Select, for each (seed, batch size), the trials that were stopped at their target at the earliest evaluation."""
    ended = trials[trials["status"] == TARGET_REACHED]
    return ended[ended["iterations_done"] == ended.groupby(["seed", "batch_size"])["iterations_done"].transform("min")]


def shared(trials: pd.DataFrame, paths: Paths) -> pd.Series:
    """The targets of each trial's readings: tuples, descending; empty if there is no suitable target.

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
                    best.setdefault(width, end)  # the first one of a width has the best evidence
            ends += best.values()
            leading += list(best.values())[:1]
        levels = _levels(ends, leading)
        # a list of one tuple for each row: pandas would take a tuple alone for the values of the rows
        found[compared.index] = [levels] * len(compared)
    return found


def _levels(ends: list[pd.DataFrame], leading: list[pd.DataFrame]) -> tuple[float, ...]:
    """The levels that readings share, given the depth of each and of the leading ones."""
    most = max((_way(end) for end in leading), default=0.0)
    counted = [end for end in ends if _way(end) > 0 and _way(end) >= HALF_WAY * most]
    if not counted:
        return ()
    together = pd.concat(counted)
    return choose_targets(together["loss_init"].to_numpy(dtype=float), together["deepest"].to_numpy(dtype=float))


def _way(end: pd.DataFrame) -> float:
    """The fall of a reading's loss, in log L; 0 if it is not known."""
    first, last = float(end["loss_init"].min()), attained(end)
    return math.log(first / last) if 0 < last < first < math.inf else 0.0
