import math

import numpy as np
import pytest
from scipy import stats

from raysat.saturation import intervals
from raysat.saturation.fits import fit_saturation, law
from raysat.saturation.intervals import about_law, geometric_mean, of_critical_batch, of_values, percentiles, replicates

SIZES = np.array([1, 2, 4, 8, 16, 32, 64, 256])


def drawn(seeds, scatter, seed, level=0.3, q=1.0):
    rng = np.random.default_rng(seed)
    logs = scatter * rng.normal(size=(seeds, len(SIZES))) + level * rng.normal(size=(seeds, 1))
    return law(SIZES, 30.0, 10.0, q) * np.exp(logs)


def plain_fit(values):
    return fit_saturation(SIZES, geometric_mean(values))


@pytest.mark.slow
class TestOfCriticalBatch:
    @pytest.mark.parametrize("seeds", [1, 2, 3, 10])
    def test_holds_the_truth_as_often_as_it_says(self, seeds):
        """Of 600 draws 95 % are 570; 546 is three and a half standard deviations below, 594 are 99 %."""
        held = 0
        for seed in range(600):
            values = drawn(seeds, 0.1, seed)
            fit = plain_fit(values)
            factor = of_critical_batch(SIZES, values, fit, bent=False)
            held += fit.b_c / factor <= 10 <= fit.b_c * factor
        assert 546 <= held <= 594

    def test_holds_where_each_seed_has_a_critical_batch_of_its_own(self):
        rng, held = np.random.default_rng(0), 0
        for _ in range(600):
            own = 10 * np.exp(0.3 * rng.normal(size=(3, 1)))
            values = (1 + own / SIZES) * np.exp(0.03 * rng.normal(size=(3, 8)))  # a tenth of how b_c differ
            fit = plain_fit(values)
            factor = of_critical_batch(SIZES, values, fit, bent=False)
            held += fit.b_c / factor <= 10 <= fit.b_c * factor
        assert 540 <= held <= 594

    @pytest.mark.parametrize("seeds", [1, 3])
    def test_it_is_the_regression_on_the_slope_and_how_seeds_slopes_differ(self, seeds):
        """The textbook's standard error of a slope, with a dummy variable for each seed, and the seeds' own slopes."""
        values = drawn(seeds, 0.1, 0)
        fit = plain_fit(values)
        share = fit.b_c / (SIZES + fit.b_c)
        design = np.column_stack([np.tile(share, seeds), np.kron(np.eye(seeds), np.ones((8, 1)))])
        left = (np.log(values) - np.log1p(fit.b_c / SIZES)).ravel()
        left = left - design[:, 1:] @ np.linalg.lstsq(design[:, 1:], left, rcond=None)[0]
        freedom = 8 * seeds - seeds - 1
        variance = (left @ left) / freedom * np.linalg.inv(design.T @ design)[0, 0]
        if seeds > 1:
            slopes = [np.polyfit(share, one, 1)[0] for one in left.reshape(seeds, 8)]  # near to each other here
            of_seeds = np.square(slopes).sum() / (seeds - 1) / seeds  # the slopes' mean is 0 at the fit
            variance, freedom = (4 * variance + (seeds - 1) * of_seeds) / (3 + seeds), 3 + seeds
        expected = math.exp(stats.t.ppf(0.975, freedom) * math.sqrt(variance))
        assert of_critical_batch(SIZES, values, fit, bent=False) == pytest.approx(expected, rel=1e-9)

    def test_a_seed_may_lack_batch_sizes(self):
        values = drawn(3, 0.1, 0)
        values[0, 2] = values[2, 5] = math.nan
        factor = of_critical_batch(SIZES, values, plain_fit(values), bent=False)
        assert 1 < factor < 1.5

    def test_a_seed_with_a_single_value_tells_nothing_of_its_slope(self):
        values = drawn(2, 0.1, 0)
        alone = of_critical_batch(SIZES, values[:1], plain_fit(values[:1]), bent=False)
        values[1, 1:] = math.nan
        fit = plain_fit(values[:1])
        assert of_critical_batch(SIZES, values, fit, bent=False) == pytest.approx(alone, rel=1e-6)

    def test_a_law_that_is_off_widens_it(self):
        values = np.repeat(law(SIZES, 30.0, 10.0, 3.0)[None], 3, axis=0)
        assert of_critical_batch(SIZES, values, plain_fit(values), bent=False) > 1.1

    def test_two_values_tell_nothing(self):
        values = drawn(1, 0.1, 0)[:, :2]
        assert math.isnan(of_critical_batch(SIZES[:2], values, plain_fit(drawn(1, 0.1, 0)), bent=False))


class TestOfValues:
    @pytest.mark.parametrize(("seeds", "level"), [(2, 0.0), (3, 0.3), (5, 0.3), (5, 0.0)])
    def test_holds_the_mean_as_often_as_it_says(self, seeds, level):
        truth, held = law(SIZES, 30.0, 10.0, 1.0), 0
        for seed in range(400):
            low, high = of_values(drawn(seeds, 0.1, seed, level))
            held += ((low <= truth) & (truth <= high)).mean()
        assert 0.91 <= held / 400 <= 0.99

    def test_of_one_batch_size_it_is_student_s(self):
        values = np.array([[1.0], [2.0], [4.0]])
        low, high = of_values(values)
        half = stats.t.ppf(0.975, 2) * np.log(values).std(ddof=1) / math.sqrt(3)
        assert (low[0], high[0]) == (pytest.approx(2 * math.exp(-half)), pytest.approx(2 * math.exp(half)))

    def test_of_one_seed_it_is_of_the_scatter_about_the_law(self):
        values = drawn(1, 0.1, 3)
        assert np.isnan(of_values(values)).all()
        fit = plain_fit(values)
        scatter = about_law(SIZES, values, fit, bent=False)
        left = np.log(values[0]) - np.log(fit.y_inf * (1 + fit.b_c / SIZES))
        assert scatter.deviation == pytest.approx(math.sqrt((left**2).sum() / 6), rel=1e-6)
        low, high = of_values(values, scatter)
        np.testing.assert_allclose(np.log(high / values[0]), stats.t.ppf(0.975, 6) * scatter.deviation, rtol=1e-9)
        np.testing.assert_allclose(low * high, values[0] ** 2)

    def test_what_is_missing_stays_missing(self):
        values = drawn(3, 0.1, 0)
        values[:, 3] = math.nan
        low, high = of_values(values)
        assert np.isnan(low[3])
        assert np.isfinite(np.delete(high, 3)).all()
        assert np.isnan(of_values(np.full((2, 8), math.nan))).all()

    def test_an_error_that_all_seeds_share_is_counted(self):
        values = np.repeat(law(SIZES, 30.0, 10.0, 1.0)[None], 3, axis=0)
        low, high = of_values(values, resolution=np.full(8, 0.05))
        assert (np.log(high / low) > 0.19).all()


class TestReplicates:
    def test_are_deterministic_and_spread_as_the_means_do(self):
        values = drawn(4, 0.1, 0)
        made = replicates(values)
        np.testing.assert_array_equal(made, replicates(values))
        spread = np.log(made).std(axis=0)
        scatter = intervals.of_seeds(values)
        np.testing.assert_allclose(spread, scatter.deviation / 2 * math.sqrt(21 / 19), rtol=0.1)  # Student's of 21

    def test_a_level_that_sets_seeds_apart_moves_none(self):
        values = drawn(4, 0.1, 0)
        levels = values * np.array([[1.0], [3.0], [9.0], [0.1]])
        relative = [made / made.mean(1, keepdims=True) for made in (replicates(values), replicates(levels))]
        np.testing.assert_allclose(*relative, rtol=1e-9)

    def test_of_one_seed_without_a_law_there_are_none(self):
        assert np.isnan(replicates(drawn(1, 0.1, 0))).all()


def test_percentiles():
    low, high = percentiles(np.arange(1.0, 1001)[:, None])
    assert (low[0], high[0]) == (25, 975)
    assert np.isnan(percentiles(np.full((10, 1), math.nan))).all()
    assert percentiles(np.array([1.0, math.inf]))[1] == math.inf


def test_the_geometric_mean_passes_over_what_is_missing():
    values = np.array([[4.0, math.nan, math.nan], [4.0, 9.0, math.nan]])
    np.testing.assert_allclose(geometric_mean(values), [4, 9, math.nan])
