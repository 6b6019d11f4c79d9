"""How long a trial can still be the best of several stepsizes: only which one is first must be known, not by how much.

The trials of one initialization, batch size and training that differ in stepsize alone *race* to `target_loss`. The
iterations that one of them takes limit the others: a trial that has not reached the target at its limit is *beaten*.
There are two readings (`raysat.analysis.reading`), *free*, among all stepsizes, and *stable*, among those below
`eta_limit`; a trial is beaten only if it is beaten in each reading to which it belongs.

A limit is `SLACK` times N of the best, and no less than the iterations at which the best one ended. Trials that race
are evaluated at the same iterations, and end at the last evaluation up to their limit; so a beaten trial was above
every loss that the best has reached, at or after the iteration at which the best reached it. Hence the first trial at
each of these levels, and at the higher ones, does not depend on the order in which trials run or on when they are
stopped. The result that a stopped trial would have had is only known to be worse: `outrun` treats one that went on in
the same way, so that no choice depends on whether it was stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

SLACK = 1.25
"""How much longer than the best one a trial runs. Default: 1.25, about the factor between two evaluations (1.27 for the
default 30 in T = 1,000): a trial is then evaluated once at or after the iteration at which the best one ended, so that
two N between the same two evaluations are compared by their interpolations; and neighbours of the best stepsize, from
which the spacing of the grid is judged, are measured if they are within 25 %."""


@dataclass(frozen=True)
class Arrival:
    """A trial that has reached the target.

    Attributes:
        steps: N, the iterations to the target, interpolated.
        end: The evaluation at which the target was found reached, and the trial ended.
        eta_over_limit: Its stepsize over `eta_limit`; nan if that is not known.
    """

    steps: float
    end: int
    eta_over_limit: float

    @property
    def limit(self) -> float:
        """The iterations after which a trial that has not arrived is worse."""
        return max(SLACK * self.steps, self.end)


@dataclass(frozen=True)
class Limits:
    """Iterations up to which a trial can be the best of a reading; infinite until the first arrival.

    Attributes:
        free: Among all stepsizes.
        stable: Among those below `eta_limit`.
    """

    free: float = math.inf
    stable: float = math.inf

    @classmethod
    def after(cls, arrivals: Iterable[Arrival]) -> Limits:
        """Return the limits that the trials that have arrived set to the others.

        Example:
            >>> Limits.after([Arrival(100.0, 110, 2.0), Arrival(200.0, 260, 0.5)])
            Limits(free=125.0, stable=260)
        """
        arrived = list(arrivals)
        free = min((one.limit for one in arrived), default=math.inf)
        return cls(free, min((one.limit for one in arrived if stable(one.eta_over_limit)), default=math.inf))

    def of(self, eta_over_limit: float) -> float:
        """The limit of a trial: the longest of the readings to which it belongs.

        Args:
            eta_over_limit: Its stepsize over `eta_limit`; nan if that is not known.
        """
        return max(self.free, self.stable) if stable(eta_over_limit) else self.free


UNLIMITED = Limits()
"""The limits of a trial that does not race, or is the first."""


def is_beaten(last: int, eta_over_limit: float, arrivals: Iterable[Arrival]) -> bool:
    """Return whether a stopped trial is known to be worse than the best of each reading to which it belongs.

    Args:
        last: The last iteration at which it was evaluated.
        eta_over_limit: Its stepsize over `eta_limit`.
        arrivals: The trials that have arrived.
    """
    # those that had arrived when the trial was last evaluated, above the target
    before = [one for one in arrivals if one.end <= last]
    return bool(before) and (not stable(eta_over_limit) or any(stable(one.eta_over_limit) for one in before))


def stable(eta_over_limit: float) -> bool:
    """Return whether a stepsize counts as stable; one whose limit is not known does."""
    return not eta_over_limit >= 1  # True for nan, unlike `eta_over_limit < 1`
