"""The rule of a race, against all trials run to their ends."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raysat.sgd.schedule import evaluation_iterations
from raysat.spec.race import SLACK, UNLIMITED, Arrival, Limits, is_beaten, stable

T = 1_000
SCHEDULE = evaluation_iterations(T, 30)

runs = st.lists(
    st.tuples(st.floats(0.5, 2.0 * T), st.floats(0.01, 50.0) | st.just(math.nan)), min_size=1, max_size=8
).map(lambda drawn: [(steps, eta_over_limit) for steps, eta_over_limit in drawn])
"""N of each trial, also beyond T, and its stepsize over the limit."""


def run(steps, eta_over_limit, limits):
    """A trial under its limits: who arrives, or where it was last seen."""
    limit = limits.of(eta_over_limit)
    for t, following in zip(SCHEDULE, [*SCHEDULE[1:], math.inf], strict=True):
        if t >= steps:
            return Arrival(steps, t, eta_over_limit)
        if following > limit:
            return t
    return T


def best(trials, reading):
    """The place of the first of a reading, if any arrives in time."""
    inside = [k for k, (steps, eta_over_limit) in enumerate(trials) if reading(eta_over_limit) and steps <= T]
    return min(inside, key=lambda k: trials[k][0], default=None)


@given(runs, st.randoms(use_true_random=False), st.integers(1, 4))
def test_whatever_the_order_the_winners_arrive_and_who_is_cut_is_worse(trials, random, at_once):
    order = list(range(len(trials)))
    random.shuffle(order)
    ended, running = {}, []
    while order or running:
        while order and len(running) < at_once:
            k = order.pop()
            running.append((k, Limits.after(one for one in ended.values() if isinstance(one, Arrival))))
        k, limits = running.pop(random.randrange(len(running)))
        ended[k] = run(*trials[k], limits)
    arrivals = [one for one in ended.values() if isinstance(one, Arrival)]
    for reading in (lambda eta_over_limit: True, stable):
        if (first := best(trials, reading)) is not None:
            assert ended[first] == Arrival(trials[first][0], ended[first].end, trials[first][1])
    for k, last in ended.items():
        if not isinstance(last, Arrival) and last < T:
            steps, eta_over_limit = trials[k]
            assert is_beaten(last, eta_over_limit, arrivals)
            assert steps > min(one.steps for one in arrivals)
            if stable(eta_over_limit):
                assert steps > min(one.steps for one in arrivals if stable(one.eta_over_limit))


@given(runs, st.data())
def test_the_more_have_arrived_the_shorter_the_limit_and_never_below_the_best_ones_end(trials, data):
    arrivals = [one for trial in trials if isinstance(one := run(*trial, UNLIMITED), Arrival)]
    some = data.draw(st.lists(st.sampled_from(arrivals), unique=True)) if arrivals else []
    few, all_ = Limits.after(some), Limits.after(arrivals)
    for eta_over_limit in (math.nan, 0.5, 1.0, 3.0):
        assert all_.of(eta_over_limit) <= few.of(eta_over_limit)
        inside = [one for one in arrivals if stable(eta_over_limit) <= stable(one.eta_over_limit)]
        if inside:
            assert all_.of(eta_over_limit) >= min(one.end for one in inside)
            assert all_.of(eta_over_limit) >= SLACK * min(one.steps for one in inside)


def test_a_stable_trial_has_the_longer_limit_and_an_unstable_one_the_shorter():
    limits = Limits.after([Arrival(100.0, 110, 2.0), Arrival(200.0, 300, 0.5)])
    assert (limits.of(2.0), limits.of(1.0), limits.of(0.99), limits.of(math.nan)) == (125.0, 125.0, 300, 300)
    assert Limits.after([Arrival(100.0, 110, 2.0)]).of(0.5) == math.inf, "among stable ones nobody has arrived"
    assert UNLIMITED.of(2.0) == math.inf


def test_the_slack_spans_two_evaluations():
    ratio = np.diff(np.log(SCHEDULE[-5:]))
    assert math.exp(ratio.mean()) - SLACK < 0.03
