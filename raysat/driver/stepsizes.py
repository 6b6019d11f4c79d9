"""The stepsizes of a batch size to try next, from the results of those tried. Pure.

A stepsize `2^(k/2) / beta(b)` is named by its exponent k. Without a race (`missing_neighbours`) all neighbours of the
best ones are requested together. In a race (`next_in_race`), where the first to arrive limits the others, they are
tried one after the other, and upwards the range grows in larger steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from raysat.saturation.targets import DEEPEST, steps_to_target
from raysat.spec.race import Arrival, Limits
from raysat.storage.schema import BEATEN, FAILED, MEASURED, TARGET_REACHED

REACH = 40
"""The range of stepsizes ends at 2^(-REACH/2) and 2^(REACH/2), independent of the results."""


@dataclass(frozen=True, eq=False)  # hashed by identity, because its N are cached
class TrialResult:
    """The result of an ended trial.

    Attributes:
        status: The status, as in `trials`.
        iterations: The iterations of its evaluations.
        losses: The training loss at each, or the falling metric to whose target N counts (`raysat.spec.goals`).
        eta_over_limit: Its stepsize over `eta_limit`, up to which linearized SGD is stable; nan if that is unknown,
            because the network has no statistics or the trial failed.
    """

    status: str
    iterations: Sequence[int] = ()
    losses: Sequence[float] = ()
    eta_over_limit: float = math.nan

    @classmethod
    def of(cls, row: Mapping, iterations: Sequence[int], losses: Sequence[float]) -> TrialResult:
        """Make a result from a row of `trials`, and the iterations and falling metric of its `curves`."""
        eta, limit = (math.nan if row.get(name) is None else float(row[name]) for name in ("eta", "eta_limit"))
        eta_over_limit = eta / limit if limit > 0 else math.nan
        return cls(row["status"], iterations, losses, eta_over_limit)

    def below(self, limit: float) -> bool:
        """Return whether its stepsize is below a multiple of `eta_limit`, which holds for an infinite one always."""
        return limit == math.inf or self.eta_over_limit < limit

    @property
    def usable(self) -> bool:
        """Whether the trial neither diverged nor failed."""
        return self.status in MEASURED

    def begins_below(self, target: float | None) -> bool:
        """Whether the loss is at the target before the first step, so that all stepsizes are alike."""
        return target is not None and bool(self.losses) and self.losses[0] <= target

    def steps(self, target: float | None) -> float:
        """Return N to the target; nan if it is not reached."""
        return _steps(self, target) if target is not None and self.usable else math.nan

    def arrivals(self, goal: float) -> list[Arrival]:
        """Return the arrival of this trial at the target of a race, as a list of one or none."""
        if self.status != TARGET_REACHED:
            return []
        steps = self.steps(goal)
        return [] if math.isnan(steps) else [Arrival(steps, int(self.iterations[-1]), self.eta_over_limit)]

    def is_far(self, limit: float) -> bool:
        """Return whether it had not arrived by a limit, or would not have; this does not depend on where it was cut."""
        return self.status == BEATEN or (self.usable and self.iterations[-1] > limit)

    def score(self, target: float | None) -> tuple[float, float]:
        """Return a score, smaller is better: iterations to the target, then the final loss.

        Without a target, the iterations until the loss vanishes, because final losses of 0 are equal.
        """
        if not self.usable:
            return math.inf, math.inf
        steps = self.steps(DEEPEST * self.losses[0] if target is None else target)
        return math.inf if math.isnan(steps) else steps, self.losses[-1]


@lru_cache(maxsize=1 << 14)
def _steps(result: TrialResult, target: float) -> float:
    return steps_to_target(np.asarray(result.iterations), np.asarray(result.losses, dtype=float), target)


TrialResults = Mapping[str, TrialResult]
"""The results of ended cells, by cell_id."""


def missing_neighbours(found: Mapping[int, TrialResult], target: float | None) -> set[int]:
    """Return the exponents k still to be tried before a seed's best stepsize is known to lie inside the range.

    Args:
        found: The result at each k that was tried.
        target: The loss to which N counts, if any.
    """
    known = {k: one for k, one in found.items() if one.status != FAILED}
    if not known or _all_alike(known, target):  # if every trial failed, that says nothing about stepsizes
        return set()
    missing = set()
    limited = not any(math.isnan(one.eta_over_limit) for one in known.values())
    for limit in (math.inf, 1.0) if limited else (math.inf,):
        allowed = {k: one for k, one in known.items() if one.below(limit)}
        if not allowed:
            missing.add(_largest_stable(known))
        elif not any(one.usable for one in allowed.values()):
            missing.add(min(allowed) - 1)
        else:
            best = min(allowed, key=lambda k: (allowed[k].score(target), k))
            missing.add(best - 1)
            for k in (best + 1, best + 2):
                if 2 ** ((k - best) / 2) * allowed[best].eta_over_limit >= limit:
                    break
                missing.add(k)
                if k not in found or not found[k].usable:
                    break
    return {k for k in missing if abs(k) <= REACH} - set(found)


def next_in_race(found: Mapping[int, TrialResult], target: float | None, goal: float) -> list[int]:
    """Return the exponents to be tried next in a race, the most promising first.

    Among all stepsizes: above the best one in steps of 2, from the largest stable one on, as long as that is better,
    then between; and one below it. Among the stable ones: the largest, and below it.

    Args:
        found: The result at each k that was tried.
        target: The loss to which N counts.
        goal: The loss to which the trials race.
    """
    known = {k: one for k, one in found.items() if one.status != FAILED}
    if not known or _all_alike(known, target):
        return []
    limits = Limits.after(one for each in known.values() for one in each.arrivals(goal))
    limited = not any(math.isnan(one.eta_over_limit) for one in known.values())
    edge = _largest_stable(known) if limited else -REACH
    wanted = _bracket(found, known, target, limits.free, edge)
    if limited and edge in found:
        stable = {k: one for k, one in known.items() if one.below(1.0)} or {edge: known.get(edge, TrialResult(FAILED))}
        wanted += _bracket({**found, **dict.fromkeys(range(edge + 1, edge + 3), BEYOND)}, stable, target, limits.stable)
    elif limited:
        wanted.append(edge)
    return [k for k in dict.fromkeys(wanted) if abs(k) <= REACH and k not in found]


def _all_alike(known: Mapping[int, TrialResult], target: float | None) -> bool:
    return any(one.begins_below(target) for one in known.values())


BEYOND = TrialResult(FAILED)
"""Stands for stepsizes that do not count."""


def _bracket(
    found: Mapping[int, TrialResult],
    known: Mapping[int, TrialResult],
    target: float | None,
    far: float,
    edge: int = -REACH,
) -> list[int]:
    """Return the exponents to be tried next for one reading.

    Args:
        found: The result at each k that was tried or is not requested.
        known: Those of the reading.
        target: The loss to which N counts.
        far: The limit of the race.
        edge: The largest stable exponent, if the range goes on upwards from there.
    """
    usable = {k: one for k, one in known.items() if one.usable}
    if not usable:
        return [min(known) - 1]
    best = min(usable, key=lambda k: (usable[k].score(target), k))
    if best == max(found):
        return [max(edge, best + (2 if len(known) > 1 else 1))]
    for k in (best + 1, best + 2):
        if k not in found:
            return [k]
        if not found[k].usable or found[k].is_far(far):
            break
    return [best - 1]


def _largest_stable(known: Mapping[int, TrialResult]) -> int:
    """Return the largest exponent below `eta_limit`, computed from one result's ratio to it, or the largest of all."""
    k, one = next(iter(known.items()))
    return min(math.ceil(k - 2 * math.log2(one.eta_over_limit)) - 1, REACH)
