"""A sweep read at many targets: N(b) and b_N at a ladder of losses, from w_0 to the deepest that is decided.

Each rung is measured as the headline is (`raysat.analysis.measure`), in the readings of the group that the setting's
recommendation is of; all others have their own targets. The ladder ends where the stored curves no longer decide which
stepsize wins: a trial that was ended at a target may be the first to reach a lower one too.
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
from raysat.storage.schema import BEATEN, TARGET_REACHED

RUNGS, FEWEST_RUNGS, MEASURED = 16, 6, 32
"""Levels of a ladder beside the sweep's own targets. Default: 16; where the loss falls by a factor of 100 they are a
third apart. Of several settings fewer, for each takes some 30 ms: 32 in all, but 6 of each."""

ENDS = (*SETTING, "deepest", "early")


@dataclass(frozen=True)
class Ladder:
    """What `Analysis` has of N, at the sweep's own targets and at the levels between.

    Attributes:
        points: As `Analysis.points`, of N alone.
        fits: As `Analysis.fits`, of b_N alone. `headline` marks the same rows; `own`, a new column, those at the
            sweep's own targets.
        ends: One row a setting: `deepest`, the lowest loss of its ladder, and `early`, whether that is because trials
            were ended at a target; otherwise it is the deepest that every batch size reaches.
    """

    points: pd.DataFrame
    fits: pd.DataFrame
    ends: pd.DataFrame

    @classmethod
    def own(cls, analysis: Analysis) -> Ladder:
        """That of the sweep's own targets alone."""
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
        analysis: What was found at the sweep's own targets, which is taken as it is.
        ntk: The `ntk` table.
        rungs: Levels beside the own targets.
    """
    trials, paths = prepared(trials, curves, ntk)
    own = Ladder.own(analysis)
    points, fits, ends = [], [], []
    settings = trials.groupby(list(SETTING), dropna=False, sort=False)
    rungs = min(rungs, max(FEWEST_RUNGS, MEASURED // max(settings.ngroups, 1)))
    for _, of_setting in settings:
        *read, group = _leading(of_setting)
        raced = bool((read[0]["status"] == BEATEN).any())  # how far the others come depends on when they were cut
        levels = _levels(deepest(read[0], paths, decided=raced), rungs)
        for k, reading in enumerate(read):
            known = set(own.fits.merge(reading[list(READING)].iloc[:1], on=list(READING))["target"].dropna())
            trials = _followed(reading, paths)
            low = deepest(reading, paths)["deepest"].max()
            new = [level for level in levels if level not in known and level >= low]
            made = _decided(reading, group, trials, paths, new) if new else []
            for measured in made:
                points += measured.points
                fits.append(measured.fit | {"headline": False, "own": False})
            if k == 0:
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
    """The readings of the group that the recommendation of a setting is of, that reading first, and the group."""
    groups = [group for _, group in trials.groupby(["width", "stepsize"])]
    read = [(one, k) for k, group in enumerate(groups) for one in readings(group)]
    heads = pd.DataFrame([one[list(READING)].iloc[0].to_dict() for one, _ in read])
    order = by_evidence(heads).index
    at = read[order[0]][1]
    return [*(read[k][0] for k in order if read[k][1] == at), groups[at]]


def _followed(reading: pd.DataFrame, paths: Paths) -> pd.DataFrame:
    """The trials that are measured, each with the smallest loss on its curve (`lowest`) and its last iteration."""
    trials = usable(reading)
    own = [paths.get(cell_id, (np.zeros(1), np.full(1, math.inf))) for cell_id in trials["cell_id"]]
    return trials.assign(lowest=[losses.min() for _, losses in own], last=[times[-1] for times, _ in own])


def _levels(ends: pd.DataFrame, rungs: int) -> list[float]:
    """Levels evenly spaced in log L from the smallest initial loss to the deepest that every batch size reaches."""
    start, end = ends["loss_init"].min(), attained(ends)
    if not 0 < end < start < math.inf:
        return []
    levels = map(_rounded_up, np.geomspace(start, end, rungs + 1)[1:].tolist())
    return [level for level in dict.fromkeys(levels) if level < start]


def _decided(
    reading: pd.DataFrame, group: pd.DataFrame, trials: pd.DataFrame, paths: Paths, levels: Sequence[float]
) -> list[Measurement]:
    """N at the levels at which no trial that was ended before could have won."""
    early = trials.loc[trials["status"].isin([TARGET_REACHED, BEATEN]), ["seed", "batch_size", "lowest", "last"]]
    made = [one for one in measure(reading, group, paths, levels) if one.about["quantity"] == "N"]
    return [one for one in made if not _could_have_won(early, one)]


def _could_have_won(early: pd.DataFrame, measured: Measurement) -> bool:
    """Return whether some trial that was ended above the target had not yet run for as long as the best one took."""
    both = early.merge(measured.best[["seed", "batch_size", "first"]], on=["seed", "batch_size"])
    return bool(((both["lowest"] > measured.about["target"]) & ~(both["last"] >= both["first"])).any())


def _rounded_up(value: float) -> float:
    """The smallest number of three significant digits that is not below `value`."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.3g}")


def _joined(own: pd.DataFrame, rows: Sequence[Mapping], columns: Sequence[str]) -> pd.DataFrame:
    """The rows at the own targets, and those at the levels between."""
    return pd.concat([own, pd.DataFrame(rows, columns=list(columns)).astype(own.dtypes)]) if rows else own
