"""How long a trial can still be the best one: of several stepsizes, who is first must be known, and not by how much.

The trials of one initialization, batch size and way of training that differ in stepsize alone *race* to `target_loss`.
What one of them took limits the others: who is not there at its limit is beaten. There are two readings
(`raysat.analysis.reading`), among all stepsizes and among those below `eta_limit`, and a trial is beaten only where it
is in each that it belongs to.

A limit is `SLACK` N of the best, and no less than the iterations at which the best was ended. Trials that race are
evaluated at the same iterations, and end at the last one up to their limit; so a beaten trial was seen above every loss
that the best has reached, after it had. For each of these levels, and the higher ones, it is decided who is first,
whatever the order in which trials run and whenever they are cut. What a cut trial would have found is only known to be
worse: `outrun` says the same of one that went on, so that no choice depends on which of the two it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

SLACK = 1.25
"""How much longer than the best one a trial runs. Default: 1.25, about the factor between two evaluations (1.27 of the
default 30 in T = 1,000): a trial is then seen once at or after the iteration at which the best was ended, so that N,
which lies between evaluations, is compared by its interpolation wherever both lie between the same two; and neighbours
of the best, by which the distance between stepsizes is judged, are measured where they are within 25 %."""


@dataclass(frozen=True)
class Arrival:
    """A trial that has reached the target.

    Attributes:
        steps: N, the iterations to the target, interpolated.
        end: The iteration at which that was seen, and the trial ended.
        eta_over_limit: Its stepsize over `eta_limit`; nan where that is not known.
    """

    steps: float
    end: int
    eta_over_limit: float

    @property
    def limit(self) -> float:
        """The iterations after which a trial that is not there is worse."""
        return max(SLACK * self.steps, self.end)


@dataclass(frozen=True)
class Limits:
    """Iterations up to which a trial can be the best of a reading; infinite while nobody has arrived.

    Attributes:
        free: Among all stepsizes.
        stable: Among those below `eta_limit`.
    """

    free: float = math.inf
    stable: float = math.inf

    @classmethod
    def after(cls, arrivals: Iterable[Arrival]) -> Limits:
        """Return what those who have arrived leave to the others.

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
            eta_over_limit: Its stepsize over `eta_limit`; nan where that is not known.
        """
        return max(self.free, self.stable) if stable(eta_over_limit) else self.free


UNLIMITED = Limits()
"""Of a trial that does not race, or is the first."""


def is_beaten(last: int, eta_over_limit: float, arrivals: Iterable[Arrival]) -> bool:
    """Return whether a trial that was cut is known to be worse than the best of each reading to which it belongs.

    Args:
        last: The last iteration at which it was seen.
        eta_over_limit: Its stepsize over `eta_limit`.
        arrivals: Who has arrived.
    """
    before = [one for one in arrivals if one.end <= last]
    return bool(before) and (not stable(eta_over_limit) or any(stable(one.eta_over_limit) for one in before))


def stable(eta_over_limit: float) -> bool:
    """Return whether a stepsize is read among the stable ones, as one is whose limit is not known."""
    return not eta_over_limit >= 1
