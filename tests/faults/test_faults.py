"""Some dozens of the fault harness's draws; all 200 are `python -m tests.faults`."""

import pytest

from faults.bench import Bench
from faults.plans import INLINE, WHEEL, on_ray
from faults.planted import DEFECTS

SEEDS = [seed for seed in range(30) if not on_ray(seed)]
"""Each class in process once or more."""

RAY = [15, 18]
"""A worker that is killed, and a driver."""


@pytest.fixture(scope="module")
def bench():
    with Bench() as bench:
        yield bench


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_stale_or_unsaid(bench, seed):
    draw = bench.draw(seed)
    assert not draw.problems, draw


@pytest.mark.parametrize("seed", RAY)
def test_nothing_is_lost_under_ray(bench, seed):
    draw = bench.draw(seed)
    assert draw.struck, draw
    assert not draw.problems, draw


@pytest.mark.parametrize(("defect", "seed"), list(zip(DEFECTS, (8, 52, 2), strict=True)))
def test_a_planted_defect_is_found(bench, defect, seed):
    with bench.planted(defect):
        assert bench.draw(seed).problems


def test_a_class_has_ten_draws_of_two_hundred():
    assert min(WHEEL.count(make) for make in INLINE + WHEEL) * 200 / len(WHEEL) >= 10
