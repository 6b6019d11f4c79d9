"""Whole races against made-up trials, whose N is known: who wins, what it takes, and what a restart changes."""

import math

import numpy as np
import pytest
from driver.test_adaptive import DIVERGED, TARGET, WEIGHT, make
from hypothesis import given, settings
from hypothesis import strategies as st

from raysat import grid, theory
from raysat.driver.queue import Agenda, groups
from raysat.driver.stepsizes import Finding
from raysat.sgd.schedule import evaluation_iterations
from raysat.spec.race import UNLIMITED


class World:
    """Trials whose N has its least at one stepsize for each seed and batch size, some way above the stable ones.

    Args:
        best: The exponent of the best stepsize of each seed at b = 1.
        drift: By how many exponents it falls from b = 1 to 256.
        edge: The exponents from here on are not stable, and from `edge + 6` on they diverge.
        worse: By which factor N rises from one exponent to the next, either way.
    """

    def __init__(self, best=(7, 7, 6), drift=2, edge=5, worse=1.4):
        self.best, self.drift, self.edge, self.worse = best, drift, edge, worse

    def __call__(self, cell, limits=UNLIMITED):
        k = 2 * math.log2(cell.stepsize.value)
        shift = self.drift * math.log(cell.batch_size) / math.log(256)
        of_limit = 2 ** ((k - self.edge + shift) / 2)
        if k >= self.edge + 6 - shift:
            return Finding("diverged", (0, 1), (1.0, math.inf), of_limit)
        off = abs(k - self.best[cell.init.seed % 3] + shift)
        steps = 40 * (1 + 10 / cell.batch_size) * self.worse**off * (1 + 0.03 * cell.init.seed)
        seen, limit = [], limits.of(of_limit)
        status = "completed"
        for t in evaluation_iterations(cell.iterations, cell.evaluations):
            if t > limit:
                status = "beaten"
                break
            seen.append(t)
            if t >= steps:
                status = "target_reached"
                break
        return Finding(status, seen, [TARGET ** (t / steps) for t in seen], of_limit)


def run(sweep, world, at_once=1, found=(), random=None, most=math.inf):
    """Run a sweep, so many cells at a time, which end in any order. Returns the agenda, and who was started."""
    agenda = Agenda(groups(sweep, sweep.cells(2048, 0), WEIGHT), WEIGHT, dict(found))
    running, started = [], []
    while True:
        while len(running) < at_once and (cell := agenda.next()) is not None:
            running.append((cell, agenda.limits(cell)))
            started.append(cell)
        if not running or len(agenda.findings) >= most:
            return agenda, started
        cell, limits = running.pop(random.randrange(len(running)) if random else 0)
        agenda.ended(cell.cell_id, world(cell, limits))


def winners(agenda):
    """N of the best of each race in each reading, and its stepsize."""
    found = {}
    for cell in agenda.wanted:
        one = agenda.findings[cell.cell_id]
        for limit in (math.inf, 1.0):
            if one.usable and one.below(limit) and not math.isnan(steps := one.steps(TARGET)):
                key = cell.stepsize.label, cell.batch_size, cell.init.seed, limit
                found[key] = min(found.get(key, (math.inf, 0.0)), (steps, cell.stepsize.value))
    return found


def iterations(agenda):
    return sum(one.iterations[-1] for one in agenda.findings.values())


LIST = {
    "adaptive": False,
    "batch_sizes": [1, 8, 64],
    "stepsizes": [grid([2 ** (k / 2) for k in range(12)], relative=True)],
}
AUTO = {"adaptive": False, "batch_sizes": [1, 4, 16, 64, 256], "stepsizes": [grid(auto=True)]}


@given(st.tuples(*[st.integers(3, 9)] * 3), st.integers(1, 30), st.randoms(use_true_random=False))
@settings(max_examples=10)
def test_of_a_list_the_winners_are_the_same_in_whatever_order_trials_end(best, at_once, random):
    world = World(best)
    alone, _ = run(make(**LIST), world)
    raced, started = run(make(race=True, **LIST), world, at_once, random=random)
    assert winners(raced) == winners(alone)
    assert len(started) == len({cell.cell_id for cell in started}) == len(alone.findings)


def test_one_at_a_time_a_race_takes_a_fraction_of_the_iterations():
    alone, _ = run(make(**LIST), World())
    raced, started = run(make(race=True, **LIST), World())
    assert iterations(raced) < 0.6 * iterations(alone)
    assert {one.status for one in raced.findings.values()} == {"beaten", "target_reached", "diverged"}
    first, second = started[0], next(cell for cell in started[1:] if cell.batch_size != started[0].batch_size)
    assert first.stepsize.value == 2 ** (6 / 2) or first.stepsize.value == 2 ** (5 / 2), "the middle one"
    known = {value for key, (_, value) in winners(raced).items() if key[1] == first.batch_size and key[3] == math.inf}
    assert second.stepsize.value in known, "the best one of the nearest batch size"


@pytest.mark.parametrize("at_once", [1, 2, 7])
def test_an_automatic_range_has_the_same_winners_from_fewer_cells(at_once):
    world = World()
    alone, _ = run(make(**AUTO), world)
    raced, _ = run(make(race=True, **AUTO), world, at_once)
    assert winners(raced) == winners(alone)
    assert len(raced.findings) < 0.8 * len(alone.findings)
    assert iterations(raced) < 0.6 * iterations(alone)


@given(
    st.tuples(*[st.integers(-2, 9)] * 3),
    st.integers(-2, 8),
    st.floats(1.05, 2.0),
    st.integers(1, 30),
    st.randoms(use_true_random=False),
)
@settings(max_examples=12)
def test_the_best_of_an_automatic_range_lies_between_worse_ones_whatever_the_order(best, edge, worse, at_once, random):
    world = World(best, edge=max(edge, 0), worse=worse)
    alone, _ = run(make(**AUTO), world)
    raced, _ = run(make(race=True, **AUTO), world, at_once, random=random)
    assert winners(raced) == winners(alone)


@given(st.integers(0, 60), st.integers(1, 6), st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=10)
def test_after_a_restart_the_winners_are_the_same_and_nothing_runs_twice(known, at_once, random, adaptive):
    sweep, world = make(race=True, **{**AUTO, "adaptive": adaptive}), World()
    whole, _ = run(sweep, world)
    begun, _ = run(sweep, world, at_once, random=random, most=known)
    again, started = run(sweep, world, at_once, begun.findings, random)
    assert winners(again) == winners(whole)
    assert not {cell.cell_id for cell in started} & set(begun.findings)
    _, nothing = run(sweep, world, at_once, again.findings)
    assert nothing == []


def test_no_process_is_left_idle_for_a_race():
    """With more processes than races, trials of one race run beside each other, and batch sizes do not wait."""
    agenda = Agenda(groups(sweep := make(race=True, **LIST), sweep.cells(2048, 0), WEIGHT), WEIGHT, {})
    races = [(cell.batch_size, cell.init.seed) for cell in iter(agenda.next, None)]
    assert len(races) == 3 * 3 * 12
    assert len(set(races[:9])) == 9, "one of each race first"
    agenda = Agenda(groups(sweep := make(race=True, **AUTO), sweep.cells(2048, 0), WEIGHT), WEIGHT, {})
    sizes = [cell.batch_size for cell in iter(agenda.next, None)]
    assert sizes[:3] == [1, 1, 1]
    assert set(sizes) == {1, 4, 16, 64, 256}


def test_what_is_not_tuned_does_not_race():
    sweep = make(race=True, adaptive=False, stepsizes=[theory(), theory(0.01)], batch_sizes=[1, 8])
    agenda, _ = run(sweep, World())
    assert {one.status for one in agenda.findings.values()} <= {"target_reached", "completed"}
    assert make(target_loss=None, race=True).races is False
    assert all(group.goal is None for group in groups(sweep, sweep.cells(2048, 0), WEIGHT))


def test_a_trial_of_a_seed_is_limited_by_its_own_race_alone():
    sweep = make(race=True, **LIST)
    agenda = Agenda(groups(sweep, sweep.cells(2048, 0), WEIGHT), WEIGHT, {})
    first = agenda.next()
    agenda.ended(first.cell_id, World()(first))
    same = [cell for cell in agenda.wanted if (cell.batch_size, cell.init.seed) == (first.batch_size, first.init.seed)]
    other = next(cell for cell in agenda.wanted if cell.init.seed != first.init.seed)
    assert all(agenda.limits(cell).free < 10_000 for cell in same)
    assert agenda.limits(other) == UNLIMITED


def test_one_that_diverges_limits_nobody():
    sweep = make(race=True, **LIST)
    agenda = Agenda(groups(sweep, sweep.cells(2048, 0), WEIGHT), WEIGHT, {})
    first = agenda.next()
    agenda.ended(first.cell_id, DIVERGED)
    assert np.isinf(agenda.limits(agenda.next()).free)
