import math
import re

import numpy as np
import pytest
from saturation.test_fits import MEASURED, SIZES, noisy, plain

from raysat.saturation.critical import critical_batch
from raysat.saturation.fits import law as bent_law


def law(b, b_c, y_inf=30.0):
    return plain(b, b_c, y_inf)


class TestCriticalBatch:
    def test_h_and_n_give_the_same_for_reciprocal_values(self):
        values = noisy(10.0, 5, 0.1)
        of_n, of_h = critical_batch(SIZES, values, "N"), critical_batch(SIZES, 1 / values, "h")
        assert of_h.value == pytest.approx(of_n.value, rel=1e-6)
        assert of_h.asymptote == pytest.approx(1 / of_n.asymptote, rel=1e-6)
        assert (of_n.seeds, of_n.batch_sizes, of_n.reason) == (5, len(SIZES), "")
        assert of_n.low < of_n.value < of_n.high
        assert of_n.range == pytest.approx(of_h.range)

    def test_of_one_seed_the_interval_is_of_its_scatter_about_the_fit(self):
        fit = critical_batch(SIZES, MEASURED[None], "N")
        assert fit.value == pytest.approx(9.6, rel=0.05)
        assert fit.low < fit.value < fit.high
        assert (fit.seeds, fit.interval, fit.reason) == (1, "residuals", "")
        assert critical_batch(SIZES, np.stack([MEASURED, 1.01 * MEASURED]), "N").interval == "seeds"
        exact = critical_batch(SIZES, law(SIZES, 12.0)[None], "N")
        assert (exact.low, exact.high) == (pytest.approx(12, rel=1e-6), pytest.approx(12, rel=1e-6))

    def test_the_law_s_bend_is_told(self):
        values = bent_law(SIZES, 30.0, 12.0, 4.0) * np.exp(0.02 * np.random.default_rng(1).normal(size=(3, 8)))
        fit = critical_batch(SIZES, values, "N")
        assert fit.q == pytest.approx(4, rel=0.2)
        assert fit.low < 12 < fit.high
        assert critical_batch(SIZES, law(SIZES, 12.0)[None], "N").q == 1

    def test_an_error_that_all_seeds_share_widens_the_interval(self):
        values = noisy(10.0, 3, 0.05)
        narrow, wide = (critical_batch(SIZES, values, "N", np.full(8, eps)) for eps in (0.0, 0.1))
        assert narrow.value == wide.value
        assert wide.high / wide.low > 1.2 * narrow.high / narrow.low

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
        levels = law(SIZES, 1.5) * np.array([[1.0], [2.0], [4.0]])  # what sets seeds apart hides nothing of b
        fit = critical_batch(SIZES, 1 / levels if quantity == "h" else levels, quantity)
        assert fit.value == pytest.approx(1.5, rel=1e-6)

    def test_seeds_with_one_value_each_have_a_reason_in_the_place_of_an_interval(self):
        values = np.full((8, 8), math.nan)
        np.fill_diagonal(values, law(SIZES, 6.0))
        fit = critical_batch(SIZES, values, "N")
        assert fit.value == pytest.approx(6, rel=1e-6)
        assert (math.isnan(fit.low), fit.interval) == (True, "")
        assert "no interval" in fit.reason

    @pytest.mark.filterwarnings("error")
    def test_values_beyond_all_numbers_are_refused_without_a_warning(self):
        fit = critical_batch(SIZES[:6], np.array([[700.0, 1e300, 250, 1e-300, 40, 30]]), "h")
        assert math.isnan(fit.value)
        assert fit.reason

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
            (law(SIZES, 0.5)[None], "N", "below the smallest batch size run (1), where N is 50 % from its limit"),
            (law(SIZES, 12.0, 0.5)[None], "N", "less than one iteration away at b = 16, 32, 64, 256"),
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
        """Three values of one seed have one degree of freedom, of which Student's t is 12.7."""
        fit = critical_batch(SIZES[[0, 4, 7]], law(SIZES, 5.0)[None, [0, 4, 7]] * [1, 3, 1], "N")
        assert (fit.low, fit.high) == (0, math.inf)
        assert 1 < fit.value < 256
