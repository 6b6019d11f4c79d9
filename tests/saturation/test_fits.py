import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysat.saturation.fits import BENDS, fit_bend, fit_law, fit_saturation, law, log_law, slopes
from raysat.saturation.formulas import beta

SIZES = np.array([1, 2, 4, 8, 16, 32, 64, 256])
MEASURED = np.array([410.0, 220, 135, 85, 60, 50, 45, 40])


def plain(b, b_c, y_inf=1.0):
    return y_inf * (1 + b_c / b)


def noisy(b_c, seeds, scatter, seed=0):
    """N of several seeds; a seed's error has a part that all its batch sizes share."""
    rng = np.random.default_rng(seed)
    logs = rng.normal(size=(seeds, len(SIZES))) + rng.normal(size=(seeds, 1))
    return plain(SIZES, b_c, 30.0) * np.exp(scatter * logs)


class TestFitSaturation:
    @given(b_c=st.floats(0.05, 1000), y_inf=st.floats(1e-6, 1e6))
    @settings(max_examples=40)
    def test_recovers_exact_data(self, b_c, y_inf):
        fit = fit_saturation(SIZES, plain(SIZES, b_c, y_inf))
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
        residuals = [np.std(np.log(y) - np.log(plain(SIZES, b_c))) for b_c in np.geomspace(1e-3, 256e3, 3000)]
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

    @given(b_c=st.floats(2, 100), y_inf=st.floats(1e-3, 1e3), q=st.floats(0.5, 8))
    @settings(max_examples=40)
    def test_recovers_exact_data_of_any_bend(self, b_c, y_inf, q):
        fit = fit_saturation(SIZES, law(SIZES, y_inf, b_c, q), q)
        assert float(fit.b_c) == pytest.approx(b_c, rel=1e-6)
        assert float(fit.y_inf) == pytest.approx(y_inf, rel=1e-6)
        assert float(fit.q) == pytest.approx(q)


class TestLaw:
    @pytest.mark.parametrize("q", [0.5, 1.0, 4.5])
    def test_b_c_is_where_perfect_scaling_meets_the_plateau(self, q):
        small, large = law(np.array([1e-9, 1e12]), 3.0, 20.0, q)
        assert small == pytest.approx(3 * 20 / 1e-9, rel=1e-3)
        assert large == pytest.approx(3, rel=1e-3)
        assert law(np.array([20.0]), 3.0, 20.0, q)[0] == pytest.approx(3 * 2 ** (1 / q))

    def test_with_q_1_it_is_that_of_mccandlish(self):
        np.testing.assert_allclose(law(SIZES, 30.0, 12.0, 1.0), plain(SIZES, 12.0, 30.0))

    @given(b_c=st.floats(0.1, 100), q=st.floats(0.5, 8))
    def test_slopes_are_the_derivatives(self, b_c, q):
        step = 1e-6
        for k, (up, down) in enumerate((((step, 0), (-step, 0)), ((0, step), (0, -step)))):
            ends = [log_law(SIZES, math.log(b_c) + c, q * math.exp(d)) for c, d in (up, down)]
            np.testing.assert_allclose(slopes(SIZES, b_c, q)[k], (ends[0] - ends[1]) / (2 * step), atol=1e-7)


class TestChoiceOfTheLaw:
    def test_a_sharp_bend_is_seen(self):
        """Fashion-MNIST, width 512, three seeds, freely tuned: N at b = 1 to 256."""
        N = np.array([93, 36, 19, 9.8, 5.5, 4.3, 4.7, 4.1])
        fit, bent = fit_law(SIZES, N)
        assert bent
        assert float(fit.q) == pytest.approx(4.5, rel=0.1)
        assert float(fit.b_c) == pytest.approx(18, rel=0.05)
        assert float(fit.rms_log_residual) < 0.5 * float(fit_saturation(SIZES, N).rms_log_residual)

    @pytest.mark.slow
    def test_the_simpler_law_holds_where_it_does_as_well(self):
        chosen = [fit_law(SIZES, noisy(10.0, 1, 0.05, seed)[0])[1] for seed in range(100)]
        assert sum(chosen) <= 15
        assert fit_law(SIZES, plain(SIZES, 10.0)) == (fit_saturation(SIZES, plain(SIZES, 10.0)), False)

    def test_of_few_batch_sizes_q_is_1(self):
        b = SIZES[:4]
        fit, bent = fit_law(b, law(b, 2.0, 4.0, 6.0))
        assert (float(fit.q), bent) == (1.0, False)

    @pytest.mark.parametrize("q", [1.2, 2.0, 7.0])
    def test_no_other_q_leaves_less(self, q):
        rng = np.random.default_rng(0)
        y = law(SIZES, 3.0, 9.0, q) * np.exp(0.02 * rng.normal(size=len(SIZES)))
        found = float(fit_bend(SIZES, y))
        grid = np.geomspace(BENDS[0], BENDS[-1], 2000)
        everything = fit_saturation(SIZES, np.broadcast_to(y, (2000, len(SIZES))), grid).rms_log_residual
        assert float(fit_saturation(SIZES, y, found).rms_log_residual) <= everything.min() * 1.001
