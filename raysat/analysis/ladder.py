"""N(b) and b_N at a ladder of many target losses, from w_0 to the deepest at which the best stepsize is certain.

Each rung is measured as the headline is (`raysat.analysis.measure`), in the readings of the group on which the
setting's recommendation is based; all others have their own targets only. The ladder ends where the stored curves no
longer determine which stepsize is the best: a trial that was stopped at a target might also be the first to reach a
lower one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from raysat.analysis.measure import FITS, POINTS, Measurement, measure
from raysat.analysis.reading import READING, SETTING, Paths, by_evidence, readings, usable
from raysat.analysis.tables import Analysis, prepared
from raysat.analysis.targets import attained, deepest, first_ended
from raysat.spec.goals import TRAIN_LOSS, Target
from raysat.storage.schema import BEATEN

RUNGS, FEWEST_RUNGS, MEASURED = 16, 6, 32
"""Levels of a ladder besides the sweep's own targets. Default: 16; if the loss falls by a factor of 100, they are a
third apart. With several settings there are fewer, because each level takes some 30 ms: 32 in all, but at least 6 for
each setting."""

ENDS = (*SETTING, "deepest", "early")


@dataclass(frozen=True)
class Ladder:
    """The rows of `Analysis` about N, at the sweep's own targets and at the levels between.

    Attributes:
        points: As `Analysis.points`, for N alone.
        fits: As `Analysis.fits`, for b_N alone. `headline` marks the same rows; `own`, a new column, those at the
            sweep's own targets.
        ends: One row a setting: `deepest`, the lowest loss of its ladder, and `early`, whether the ladder ends there
            because trials were stopped at a target; otherwise it is the deepest loss that every batch size reaches.
    """

    points: pd.DataFrame
    fits: pd.DataFrame
    ends: pd.DataFrame

    @classmethod
    def own(cls, analysis: Analysis) -> Ladder:
        """The ladder of the sweep's own targets alone."""
        points = analysis.points[analysis.points["quantity"] == "N"]
        fits = analysis.fits[analysis.fits["quantity"] == "b_N"].assign(own=True)
        return cls(points, fits, pd.DataFrame(columns=list(ENDS)))


def ladder(
    trials: pd.DataFrame,
    curves: pd.DataFrame,
    analysis: Analysis,
    ntk: pd.DataFrame | None = None,
    rungs: int = RUNGS,
) -> Ladder:
    """Measure N and b_N at a ladder of targets.

    Args:
        trials: The `trials` table.
        curves: The `curves` table.
        analysis: The results at the sweep's own targets, which are used unchanged.
        ntk: The `ntk` table.
        rungs: Levels besides the sweep's own targets.
    """
    own = Ladder.own(analysis)
    if TRAIN_LOSS not in set(own.fits["metric"]):
        return own
    trials, by_metric = prepared(trials, curves, ntk)
    paths = by_metric[TRAIN_LOSS]
    points, fits, ends = [], [], []
    settings = trials.groupby(list(SETTING), dropna=False, sort=False)
    rungs = min(rungs, max(FEWEST_RUNGS, MEASURED // max(settings.ngroups, 1)))
    for _, of_setting in settings:
        *read, group = _leading(of_setting)
        raced = bool((read[0]["status"] == BEATEN).any())  # then depths depend on when trials were cut
        levels = _levels(deepest(read[0], paths, decided=raced), rungs)
        for k, reading in enumerate(read):
            # the targets at which this reading is measured already
            at = own.fits[own.fits["metric"] == TRAIN_LOSS].merge(reading[list(READING)].iloc[:1], on=list(READING))
            known = set(at["target"].dropna())
            trials = _followed(reading, paths)
            low = deepest(reading, paths)["deepest"].max()  # every seed and batch size comes as far as this
            new = [level for level in levels if level not in known and level >= low]
            made = _decided(reading, group, paths, new) if new else []
            for measured in made:
                points += measured.points
                fits.append(measured.fit | {"headline": False, "own": False})
            if k == 0:
                # below the loss at which the first trial was stopped, another might have been the first
                early = first_ended(trials)
                floor = max(low, early["lowest"].max() if len(early) else 0)
                there = {one.about["target"] for one in made} | {level for level in known if level >= floor}
                end = {"deepest": min(there, default=math.nan), "early": len(early) > 0}
                ends.append(reading[list(SETTING)].iloc[0].to_dict() | end)
    return Ladder(
        points=_joined(own.points, points, POINTS),
        fits=_joined(own.fits, fits, (*FITS, "own")),
        ends=pd.DataFrame(ends, columns=list(ENDS)),
    )


def _leading(trials: pd.DataFrame) -> list[pd.DataFrame]:
    """The readings of the group that a setting's recommendation comes from, best evidence first; then the group."""
    groups = [group for _, group in trials.groupby(["width", "stepsize"])]
    read = [(one, k) for k, group in enumerate(groups) for one in readings(group)]
    heads = pd.DataFrame([one[list(READING)].iloc[0].to_dict() for one, _ in read])
    order = by_evidence(heads).index
    at = read[order[0]][1]
    return [*(read[k][0] for k in order if read[k][1] == at), groups[at]]


def _followed(reading: pd.DataFrame, paths: Paths) -> pd.DataFrame:
    """Select the measured trials, each with the smallest loss on its curve (`lowest`)."""
    trials = usable(reading)
    own = [paths.get(cell_id, (np.zeros(1), np.full(1, math.inf))) for cell_id in trials["cell_id"]]
    return trials.assign(lowest=[losses.min() for _, losses in own])


def _levels(ends: pd.DataFrame, rungs: int) -> list[float]:
    """Levels evenly spaced in log L from the smallest initial loss to the deepest that every batch size reaches."""
    start, end = ends["loss_init"].min(), attained(ends)
    if not 0 < end < start < math.inf:
        return []
    # the initial loss itself, which every trial has reached at t = 0, is no target
    levels = map(_rounded_up, np.geomspace(start, end, rungs + 1)[1:].tolist())
    return [level for level in dict.fromkeys(levels) if level < start]


def _decided(reading: pd.DataFrame, group: pd.DataFrame, paths: Paths, levels: Sequence[float]) -> list[Measurement]:
    """Measure N at those levels at which no trial that was stopped earlier could have been the best."""
    made = measure(reading, group, {TRAIN_LOSS: paths}, [Target(TRAIN_LOSS, level) for level in levels])
    return [one for one in made if one.about["quantity"] == "N" and not one.best["undecided"].any()]


def _rounded_up(value: float) -> float:
    """The smallest number of three significant digits that is not below `value`."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.3g}")  # 1e-9: a rounding error is no reason to round up


def _joined(own: pd.DataFrame, rows: Sequence[Mapping], columns: Sequence[str]) -> pd.DataFrame:
    """Join the rows at the sweep's own targets and those at the levels between."""
    return pd.concat([own, pd.DataFrame(rows, columns=list(columns)).astype(own.dtypes)]) if rows else own
