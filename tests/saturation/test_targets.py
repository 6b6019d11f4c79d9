import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysat.saturation.targets import choose_targets, earliest, in_time, lateness, steps_to_target, uncertainty


class TestStepsToTarget:
    @given(rate=st.floats(1e-3, 1.0), eps=st.floats(1e-3, 0.99))
    def test_is_exact_on_an_exponential_however_sparse_the_evaluations(self, rate, eps):
        iterations = np.array([0, 1, 3, 10, 40, 200, 10_000])
        steps = steps_to_target(iterations, np.exp(-np.minimum(rate * iterations, 600)), eps)
        assert steps == pytest.approx(-math.log(eps) / rate, rel=1e-6)

    def test_counts_the_first_crossing(self):
        assert steps_to_target(np.array([0, 1, 2, 3]), np.array([1.0, 0.1, 1.0, 0.01]), 0.1) == pytest.approx(1)

    def test_is_zero_where_the_initial_loss_is_low_enough(self):
        assert steps_to_target(np.array([0, 5]), np.array([1.0, 0.5]), 1.0) == 0

    def test_is_nan_where_the_target_is_not_reached(self):
        assert math.isnan(steps_to_target(np.array([0, 5]), np.array([1.0, 0.5]), 0.4))
        assert math.isnan(steps_to_target(np.zeros(0), np.zeros(0), 0.4))

    def test_a_loss_of_zero_is_reached_at_its_evaluation_at_the_latest(self):
        assert 0 < steps_to_target(np.array([0, 10]), np.array([1.0, 0.0]), 0.5) <= 10

    @given(eps=st.floats(1e-9, 0.099))
    def test_a_loss_that_vanishes_is_taken_to_fall_by_equal_steps(self, eps):
        """On the chord to the logarithm of nothing it would fall at once."""
        steps = steps_to_target(np.array([0, 10, 20]), np.array([1.0, 0.1, 0.0]), eps)
        assert steps == pytest.approx(20 - 100 * eps)


class TestChooseTargets:
    def test_levels_are_log_spaced_and_the_last_is_the_deepest_common_one(self):
        assert choose_targets(np.array([1.0, 1.2]), np.array([0.0001, 0.01])) == (0.1, 0.032, 0.01)

    @given(st.lists(st.floats(1e-6, 0.99), min_size=1, max_size=5))
    def test_every_trial_starts_above_and_reaches_every_level(self, deepest):
        levels = choose_targets(np.ones(len(deepest)), np.array(deepest))
        assert all(max(deepest) <= level < 1 for level in levels)
        assert all(level == float(f"{level:.1e}") for level in levels)

    def test_there_is_none_where_a_trial_does_not_descend(self):
        assert choose_targets(np.array([1.0, 1.0]), np.array([1.0, 0.1])) == ()
        assert choose_targets(np.zeros(0), np.zeros(0)) == ()

    def test_where_the_loss_vanishes_the_last_one_is_a_trillionth_of_the_initial_loss(self):
        assert choose_targets(np.array([1.0, 2.0]), np.array([0.0, 0.0])) == (1.5e-6, 1.7e-9, 2e-12)
        assert choose_targets(np.array([1.0, 1.0]), np.array([0.0, 0.01])) == (0.1, 0.032, 0.01)

    def test_there_is_none_of_losses_below_zero(self):
        assert choose_targets(np.array([1.0, 1.0]), np.array([-1.0, 0.1])) == ()


class TestLateness:
    @given(rate=st.floats(0.01, 1.0), eps=st.floats(1e-3, 0.6))
    def test_is_nothing_on_an_exponential(self, rate, eps):
        t = np.arange(0, 60 / rate, 1 / rate)
        assert lateness(t, np.exp(-rate * t), eps) == pytest.approx(0, abs=1e-9)

    def test_is_near_the_error_of_the_interpolation(self):
        """On 1/(1 + t)^2 the target 0.01 is reached at t = 9, whatever the evaluations."""
        t = np.array([0.0, 4, 8, 12, 16])
        off = math.log(steps_to_target(t, 1 / (1 + t) ** 2, 0.01) / 9)
        assert off > 0.003
        assert lateness(t, 1 / (1 + t) ** 2, 0.01) == pytest.approx(off, rel=0.8)

    @pytest.mark.parametrize("count", [5, 7, 10, 30])
    def test_of_a_smooth_curve_n_stays_near_and_is_not_before_an_evaluation_above_the_target(self, count):
        """A sum of exponentials, as gradient descent has it, by few evaluations."""
        t = np.arange(2001)
        losses = 0.5 * np.exp(-t / 8) + 0.3 * np.exp(-t / 80) + 0.2 * np.exp(-t / 800)
        few = np.r_[0, np.unique(np.geomspace(1, 2000, count).round()).astype(int)]
        for eps in (0.6, 0.45, 0.3, 0.2, 0.1):
            exact, read = (steps_to_target(at, losses[at], eps) for at in (t, few))
            late, least = (np.array([of(few, losses[few], eps)]) for of in (lateness, earliest))
            (made,) = in_time(np.array([read]), np.nan_to_num(late), least)
            assert abs(math.log(made / exact)) <= abs(math.log(read / exact)) + 0.05
            assert losses[few[few <= made]].min() > eps or made in few

    def test_takes_a_part_of_what_a_fluctuating_loss_hides_between_evaluations(self):
        """Log loss as a random walk that drifts down: N comes later by sqrt(distance), twice that by 1.41 times it."""
        generator = np.random.default_rng(0)
        every, few = np.arange(201), np.r_[0, np.unique(np.geomspace(1, 200, 25).round()).astype(int)]
        later, said = [], []
        for _ in range(400):
            walk = np.cumsum(-0.05 + 0.3 * generator.standard_normal(200))
            losses = np.exp(np.r_[0, walk])
            exact, sparse = (steps_to_target(at, losses[at], 0.05) for at in (every, few))
            if math.isnan(sparse):
                continue
            later.append(math.log(sparse / exact))
            said.append(np.nan_to_num(lateness(few, losses[few], 0.05)))
        assert np.mean(later) > 0.05
        assert np.mean(said) == pytest.approx((math.sqrt(2) - 1) * np.mean(later), rel=0.3)

    def test_is_nothing_where_no_iteration_lies_between_evaluations(self):
        """However far apart the later ones are."""
        assert lateness(np.array([0, 1, 2, 3, 10, 20]), np.array([1.0, 0.7, 0.9, 0.4, 0.3, 0.1]), 0.5) == 0

    def test_is_missing_where_n_is(self):
        assert math.isnan(lateness(np.array([0, 5]), np.array([1.0, 0.5]), 0.4))
        assert math.isnan(lateness(np.array([0, 5]), np.array([1.0, 0.5]), 1.0))


class TestUncertainty:
    def test_of_two_evaluations_n_is_anywhere_between_them(self):
        assert uncertainty(np.array([0, 10]), np.array([1.0, 0.25]), 0.5) == pytest.approx(10 / math.sqrt(12) / 5)

    def test_is_nothing_later_or_where_no_iteration_lies_between(self):
        assert uncertainty(np.array([0, 10, 20]), np.array([1.0, 0.7, 0.25]), 0.5) == 0
        assert uncertainty(np.array([0, 1, 20]), np.array([1.0, 0.4, 0.25]), 0.5) == 0

    def test_is_missing_where_n_is(self):
        assert math.isnan(uncertainty(np.array([0, 5]), np.array([1.0, 0.5]), 0.4))
        assert math.isnan(uncertainty(np.array([0, 5]), np.array([1.0, 0.5]), 1.0))


@pytest.mark.parametrize("impossible", [math.inf, math.nan, -1e-3])
def test_a_curve_ends_at_its_first_impossible_value(impossible):
    """A forecast that turned negative comes back below any target."""
    losses = np.array([1.0, 0.5, impossible, 0.01])
    assert math.isnan(steps_to_target(np.arange(4), losses, 0.1))
    assert steps_to_target(np.arange(4), losses, 0.5) == pytest.approx(1)
    assert math.isnan(lateness(np.arange(4), losses, 0.1))
