import math
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysat.saturation.fits import (
    choose_targets,
    critical_batch,
    fit_saturation,
    geometric_mean,
    interval,
    resample_seeds,
    steps_to_target,
)
from raysat.saturation.formulas import beta

SIZES = np.array([1, 2, 4, 8, 16, 32, 64, 256])
MEASURED = np.array([410.0, 220, 135, 85, 60, 50, 45, 40])


def law(b, b_c, y_inf=1.0):
    return y_inf * (1 + b_c / b)


def noisy(b_c, seeds, scatter, seed=0):
    """N of several seeds; a seed's error has a part that all its batch sizes share."""
    rng = np.random.default_rng(seed)
    logs = rng.normal(size=(seeds, len(SIZES))) + rng.normal(size=(seeds, 1))
    return law(SIZES, b_c, 30.0) * np.exp(scatter * logs)


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


class TestFitSaturation:
    @given(b_c=st.floats(0.05, 1000), y_inf=st.floats(1e-6, 1e6))
    @settings(max_examples=40)
    def test_recovers_exact_data(self, b_c, y_inf):
        fit = fit_saturation(SIZES, law(SIZES, b_c, y_inf))
        assert float(fit.b_c) == pytest.approx(b_c, rel=1e-6)
        assert float(fit.y_inf) == pytest.approx(y_inf, rel=1e-6)
        assert float(fit.rms_log_residual) < 1e-7
        assert fit.edge == 0

    @given(scale=st.floats(1e-9, 1e9), seed=st.integers(0, 100))
    @settings(max_examples=40)
    def test_the_unit_of_y_does_not_matter(self, scale, seed):
        y = noisy(10.0, 1, 0.1, seed)[0]
        fit, scaled = fit_saturation(SIZES, y), fit_saturation(SIZES, scale * y)
        assert float(scaled.b_c) == pytest.approx(float(fit.b_c), rel=1e-6)
        assert float(scaled.y_inf) == pytest.approx(scale * float(fit.y_inf), rel=1e-6)

    @given(scale=st.floats(0.01, 1000), seed=st.integers(0, 100))
    @settings(max_examples=40)
    def test_b_c_scales_with_b(self, scale, seed):
        y = noisy(10.0, 1, 0.1, seed)[0]
        fit, scaled = fit_saturation(SIZES, y), fit_saturation(scale * SIZES, y)
        assert float(scaled.b_c) == pytest.approx(scale * float(fit.b_c), rel=1e-6)

    @pytest.mark.parametrize("seed", range(10))
    def test_no_other_b_c_leaves_a_smaller_residual(self, seed):
        y = noisy(10.0, 1, 0.3, seed)[0]
        residuals = [np.std(np.log(y) - np.log(law(SIZES, b_c))) for b_c in np.geomspace(1e-3, 256e3, 3000)]
        assert float(fit_saturation(SIZES, y).rms_log_residual) <= min(residuals) + 1e-12

    def test_the_measured_iterations_of_the_design_give_its_critical_batch(self):
        assert float(fit_saturation(SIZES, MEASURED).b_c) == pytest.approx(9.6, rel=0.05)

    def test_beta_follows_the_law_with_b_c_near_b_star_less_one(self):
        gamma, k_op, n = 5.77, 0.609, 1000
        with_replacement = np.array([beta(int(b), n, gamma, k_op, replacement=True) for b in SIZES])
        without = np.array([beta(int(b), n, gamma, k_op) for b in SIZES])
        assert float(fit_saturation(SIZES, with_replacement).b_c) == pytest.approx(gamma / k_op - 1, rel=1e-6)
        exact = n * (gamma - k_op) / (n * k_op - gamma)
        assert float(fit_saturation(SIZES, without).b_c) == pytest.approx(exact, rel=1e-6)

    def test_replicates_are_fitted_as_if_each_were_alone(self):
        y = noisy(10.0, 5, 0.2)
        y[2, 0] = math.nan
        together = fit_saturation(SIZES, y)
        assert together.b_c.shape == (5,)
        for k in (0, 1, 3):
            assert together.b_c[k] == pytest.approx(float(fit_saturation(SIZES, y[k]).b_c), rel=1e-6)
        assert together.b_c[2] == pytest.approx(float(fit_saturation(SIZES[1:], y[2, 1:]).b_c), rel=1e-6)

    def test_edges_are_named(self):
        assert fit_saturation(SIZES, 1 / SIZES).edge == 1
        assert fit_saturation(SIZES, np.sqrt(SIZES)).edge == -1

    def test_two_values_are_not_fitted(self):
        y = np.full(len(SIZES), math.nan)
        y[:2] = 2, 1
        assert math.isnan(float(fit_saturation(SIZES, y).b_c))

    def test_two_thousand_replicates_take_a_moment(self):
        y = np.repeat(noisy(10.0, 1, 0.1), 2000, axis=0)
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            fit_saturation(SIZES, y)
            seconds.append(time.perf_counter() - start)
        assert min(seconds) < 0.5  # 0.04 s on one core of 2025


class TestBootstrap:
    def test_is_deterministic(self):
        values = noisy(10.0, 5, 0.1)
        np.testing.assert_array_equal(resample_seeds(values), resample_seeds(values))
        assert critical_batch(SIZES, values, "N") == critical_batch(SIZES, values, "N")

    def test_a_seed_keeps_its_batch_sizes_together(self):
        values = np.array([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]])
        means = resample_seeds(values)
        np.testing.assert_allclose(means[:, 1] / means[:, 0], 10)
        assert set(np.round(means[:, 0], 6)) == {1.0, 2.0, round(math.sqrt(2), 6)}

    def test_a_replicate_uses_what_its_seeds_have(self):
        values = np.array([[4.0, math.nan], [4.0, 9.0]])
        means = resample_seeds(values)
        assert set(means[:, 0].round(9)) == {4.0}
        assert np.isnan(means[:, 1]).any()
        assert set(means[~np.isnan(means[:, 1]), 1].round(9)) == {9.0}
        np.testing.assert_allclose(geometric_mean(values), [4, 9])

    def test_percentiles(self):
        low, high = interval(np.arange(1.0, 1001)[:, None])
        assert (low[0], high[0]) == (25, 975)
        assert np.isnan(interval(np.full((10, 1), math.nan))).all()
        assert interval(np.array([1.0, math.inf]))[1] == math.inf

    def test_covers_the_truth_about_as_often_as_it_says(self):
        fits = [critical_batch(SIZES, noisy(10.0, 20, 0.2, seed), "N") for seed in range(25)]
        covered = sum(fit.low <= 10 <= fit.high for fit in fits)
        assert covered >= 20  # 95 % of 25 is 24; the percentile interval of 20 seeds is a little narrow
        widths = [fit.high / fit.low for fit in fits]
        assert max(widths) < 2


class TestCriticalBatch:
    def test_h_and_n_give_the_same_for_reciprocal_values(self):
        values = noisy(10.0, 5, 0.1)
        of_n, of_h = critical_batch(SIZES, values, "N"), critical_batch(SIZES, 1 / values, "h")
        assert of_h.value == pytest.approx(of_n.value, rel=1e-6)
        assert of_h.asymptote == pytest.approx(1 / of_n.asymptote, rel=1e-6)
        assert (of_n.seeds, of_n.batch_sizes, of_n.reason) == (5, len(SIZES), "")
        assert of_n.low < of_n.value < of_n.high
        assert of_n.range == pytest.approx(of_h.range)

    def test_of_one_seed_the_interval_is_over_residuals(self):
        fit = critical_batch(SIZES, MEASURED[None], "N")
        assert fit.value == pytest.approx(9.6, rel=0.05)
        assert fit.low < fit.value < fit.high
        assert (fit.seeds, fit.interval, fit.reason) == (1, "residuals", "")
        assert critical_batch(SIZES, np.stack([MEASURED, 1.01 * MEASURED]), "N").interval == "seeds"
        exact = critical_batch(SIZES, law(SIZES, 12.0)[None], "N")
        assert (exact.low, exact.high) == (pytest.approx(12, rel=1e-6), pytest.approx(12, rel=1e-6))

    def test_the_interval_over_residuals_covers_the_truth_about_as_often_as_it_says(self):
        rng = np.random.default_rng(0)
        fits = [critical_batch(SIZES, law(SIZES, 10.0) * np.exp(rng.normal(0, 0.1, (1, 8))), "N") for _ in range(40)]
        assert sum(fit.low <= 10 <= fit.high for fit in fits) >= 34  # 95 % of 40 is 38; eight values are few
        assert np.median([fit.high / fit.low for fit in fits]) < 2

    @pytest.mark.parametrize("quantity", ["h", "N"])
    def test_what_varies_less_than_its_interval_is_refused(self, quantity):
        rng = np.random.default_rng(0)
        scatter = np.exp(rng.normal(0, 0.1, (4, len(SIZES))))
        flat = law(SIZES, 0.05) * scatter
        fit = critical_batch(SIZES, 1 / flat if quantity == "h" else flat, quantity)
        assert math.isnan(fit.value)
        assert math.isnan(fit.low)
        assert re.search(rf"{quantity} varies by [\d.]+ % .*, less than its interval", fit.reason)
        assert fit.rms_log_residual > 0  # the goodness of the fit that was refused
        levels = law(SIZES, 0.5) * np.array([[1.0], [2.0], [4.0]])  # what sets seeds apart hides nothing of b
        fit = critical_batch(SIZES, 1 / levels if quantity == "h" else levels, quantity)
        assert fit.value == pytest.approx(0.5, rel=1e-6)

    def test_a_seed_without_any_value_does_not_count(self):
        fit = critical_batch(SIZES, np.stack([MEASURED, np.full(len(SIZES), math.nan)]), "N")
        assert (fit.seeds, fit.interval) == (1, "residuals")

    def test_missing_cells_are_passed_over(self):
        values = np.repeat(law(SIZES, 12.0, 5.0)[None], 3, axis=0)
        values[0, 1] = values[1, 3] = values[2, 5] = math.nan
        values[:, 6] = math.nan
        fit = critical_batch(SIZES, values, "N")
        assert fit.value == pytest.approx(12, rel=1e-6)
        assert fit.batch_sizes == len(SIZES) - 1

    @pytest.mark.parametrize(
        ("values", "quantity", "words"),
        [
            (np.array([[4.0, 3, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan]]), "N", "a fit needs 3"),
            (np.full((2, 8), math.nan), "N", "0 batch sizes"),
            (np.array([[-0.1, 1, 2, 3, 4, 5, 6, 7]]), "h", "h is not positive at b = 1: the loss did not fall"),
            (np.array([[5.0, 4, 3, 2, 1, 1, 1, 0]]), "N", "N is not positive at b = 256"),
            (1000 / SIZES[None], "N", "beyond the largest batch size run (256)"),
            (law(SIZES, 600.0)[None], "N", "beyond the largest batch size run (256)"),
            (np.full((1, 8), 7.0), "N", "no dependence on b is visible: N does not fall"),
            (1 / np.sqrt(SIZES)[None], "h", "no dependence on b is visible: h does not rise"),
            (100 + np.array([[1.5, -2, 2, -1, 0.5, 1, -2, 1]]), "N", "no dependence on b is visible: N varies by 4"),
        ],
    )
    def test_refuses_in_words(self, values, quantity, words):
        fit = critical_batch(SIZES, values, quantity)
        assert math.isnan(fit.value)
        assert math.isnan(fit.low)
        assert words in fit.reason

    def test_an_interval_may_be_open(self):
        values = np.stack([1000 / SIZES, *[law(SIZES, 5.0)] * 3])  # a seed without saturation among three with it
        fit = critical_batch(SIZES, values, "N")
        assert 5 < fit.value < 256
        assert fit.low == pytest.approx(5, rel=1e-6)
        assert critical_batch(SIZES, values[:2], "N").high == math.inf
