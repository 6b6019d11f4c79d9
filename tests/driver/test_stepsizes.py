"""Which stepsize of a race is next, case by case; whole races are in test_race.py."""

import math

import pytest
from driver.test_adaptive import TARGET, reaching

from raysat.driver.stepsizes import REACH, TrialResult, next_in_race

LIMIT = 5.5
"""The exponent of `eta_limit`: the largest stable stepsize is that of k = 5."""


def at(k, steps):
    return reaching(steps, 2 ** ((k - LIMIT) / 2))


def beaten(k):
    return TrialResult("beaten", (0, 1), (1.0, 0.9), 2 ** ((k - LIMIT) / 2))


def diverged(k):
    return TrialResult("diverged", (0, 1), (1.0, math.inf), 2 ** ((k - LIMIT) / 2))


def asked(found):
    return next_in_race(found, TARGET, TARGET)


@pytest.mark.parametrize(
    ("found", "following"),
    [
        ({2: at(2, 100)}, [5]),  # the largest stable one, of both readings
        ({2: at(2, 100), 5: at(5, 60)}, [7, 4]),  # up by factors of 2; and below the largest stable one
        ({2: at(2, 100), 5: at(5, 60), 7: at(7, 30)}, [9, 4]),
        ({2: at(2, 100), 5: at(5, 60), 7: at(7, 30), 9: diverged(9)}, [8, 4]),  # between
        ({5: at(5, 60), 7: at(7, 30), 8: beaten(8), 4: beaten(4)}, [6]),  # far behind: no second one above
        ({5: at(5, 60), 7: at(7, 30), 8: at(8, 30), 9: beaten(9), 4: beaten(4)}, [6]),
        ({5: at(5, 60), 7: at(7, 30), 8: at(8, 16), 9: beaten(9), 4: beaten(4)}, []),
        ({5: at(5, 60), 7: at(7, 30), 8: at(8, 30), 4: beaten(4)}, [9]),  # a little worse may be a plateau
        ({8: diverged(8)}, [7, 5]),  # down from what diverged
        ({8: at(8, 10)}, [9, 5]),
        ({8: at(8, 10), 9: diverged(9), 7: beaten(7), 5: at(5, 40), 4: at(4, 30)}, [3]),
        ({8: at(8, 10), 9: diverged(9), 7: beaten(7), 5: at(5, 40), 4: at(4, 30), 3: beaten(3)}, []),
        ({8: at(8, 10), 9: TrialResult("failed"), 7: beaten(7), 5: TrialResult("failed")}, [4]),
        ({2: TrialResult("failed")}, []),  # which says nothing of stepsizes
        ({REACH: reaching(10, 0.1)}, [REACH - 1]),
        ({2: TrialResult("target_reached", (0,), (TARGET / 2,), 0.5)}, []),  # below the target before the first step
    ],
)
def test_what_is_tried_next(found, following):
    assert asked(found) == following


def test_without_a_limit_of_stable_stepsizes_there_is_one_reading():
    def free(steps):
        return reaching(steps, math.nan)

    assert asked({2: free(50)}) == [3]
    assert asked({2: free(50), 3: free(30)}) == [5]
    assert asked({2: free(50), 3: free(30), 5: free(100)}) == [4]
    assert asked({2: free(50), 3: free(30), 4: free(90)}) == []


def test_a_trial_that_was_not_cut_counts_as_one_that_was():
    """It went on beyond the limit, for the best one was not known yet: the range ends there all the same."""
    cut = {5: at(5, 60), 7: at(7, 30), 8: beaten(8), 4: beaten(4), 6: at(6, 40)}
    went_on = cut | {8: at(8, 300), 4: at(4, 500)}
    assert asked(cut) == asked(went_on) == []
