"""The typical run against runs that draw every sample, and against SGD on least squares itself."""

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysat.data.linear import linear_problem
from raysat.saturation.recursion import Spectrum, largest_stable, loss_curves, noise_factor
from raysat.saturation.targets import steps_to_target
from raysat.saturation.typical import LEAST_RUNS, RUNS, Nodes, affordable, typical_runs, typical_steps

VALUES = np.geomspace(0.03, 1.0, 10)
START = np.geomspace(1.0, 0.5, 10)


def spectrum_of(values, masses, counts=None, outputs=1, n=10_000):
    """Each eigenvalue as often as its count says, and with its share of the residual."""
    counts = np.ones(len(values)) if counts is None else counts
    zero = np.zeros(len(values))
    both = np.concatenate([values, values])
    return Spectrum(n, n, both, np.concatenate([masses, zero]), np.concatenate([zero, counts / (n * outputs)]), outputs)


def steps(curves, eps):
    return np.array([steps_to_target(np.arange(len(curve)), curve, eps) for curve in curves])


@pytest.mark.parametrize(("b", "eta", "outputs"), [(1, 0.2, 1), (4, 0.6, 1), (2, 0.5, 3), (16, 1.2, 3)])
def test_it_is_that_of_runs_that_draw_every_sample(b, eta, outputs):
    eps = 0.1 * (START**2).sum() / 2
    losses = oracles.normal_sgd(VALUES, START, eta, b, 400, 400, outputs)
    expected, error = oracles.geometric_steps(losses, eps)
    spectrum = spectrum_of(VALUES, START**2, outputs=outputs)
    found = typical_runs(spectrum, np.array([eta]), np.array([1 / b]), 400, until=eps, runs=400)
    assert steps(found.lowest, eps)[0] == pytest.approx(expected, rel=0.01 + 3 * 2**0.5 * error)
    assert error < 0.02


@pytest.mark.parametrize(("power", "b", "eta"), [(1.0, 1, 0.2), (1.0, 16, 1.3), (2.0, 2, 0.5), (0.0, 4, 0.06)])
def test_on_least_squares_it_is_that_of_sgd_itself(power, b, eta):
    """Its mean is not: at b = 1 it needs 13 % longer."""
    n, problem = 256, linear_problem(power=power)
    error = np.random.default_rng(5).normal(size=64) - problem.w_bar
    masses = problem.spectrum * error**2
    eps = 0.1 * masses.sum() / 2
    losses = oracles.least_squares_sgd(problem.x, error, eta, b, 500, 200)
    expected, off = oracles.geometric_steps(losses, eps)
    spectrum = spectrum_of(problem.spectrum, masses, n=n)
    phi = np.array([noise_factor(b, n)])
    found = typical_runs(spectrum, np.array([eta]), phi, 500, until=eps, runs=400)
    assert steps(found.lowest, eps)[0] == pytest.approx(expected, rel=0.02 + 3 * off)
    mean = loss_curves(spectrum, np.array([eta]), phi, 500)
    assert steps(mean, eps)[0] > expected


def test_without_noise_it_is_gradient_descent():
    eta = np.array([0.3, 1.0, 1.9])
    spectrum = spectrum_of(VALUES, START**2)
    found = typical_runs(spectrum, eta, np.zeros(3), 50, runs=2)
    expected = loss_curves(spectrum, eta, np.zeros(3), 50)
    np.testing.assert_allclose(found.losses, expected, rtol=1e-4)
    np.testing.assert_allclose(found.lowest, expected, rtol=1e-4)


def test_a_node_of_many_eigenvalues_stands_for_each_of_them():
    """Six equal eigenvalues with one residual among them, as one node or as six."""
    values, masses = np.array([0.1, 0.8]), np.array([1.0, 2.0])
    one = spectrum_of(values, masses, np.array([1.0, 6.0]))
    each, start = np.array([0.1, *np.full(6, 0.8)]), np.sqrt([1.0, 2.0, 0, 0, 0, 0, 0])
    eta, phi = np.array([0.3]), np.array([0.5])
    together = typical_runs(one, eta, phi, 60, runs=2000).losses[0]
    assert sorted(Nodes.of(one).count) == pytest.approx([1, 6])
    apart = np.exp(np.log(oracles.normal_sgd(each, start, 0.3, 2, 60, 2000)).mean(1))
    np.testing.assert_allclose(together, apart, rtol=0.06)


@settings(deadline=None, max_examples=40)
@given(
    own=st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=8, unique=True),
    others=st.lists(st.tuples(st.floats(1e-4, 2.0), st.floats(0.01, 50)), min_size=1, max_size=12),
)
def test_nodes_keep_how_much_noise_there_is(own, others):
    values, counts = np.array(others).T
    zero = np.zeros
    nodes = np.concatenate([own, values])
    masses = np.concatenate([np.ones(len(own)), zero(len(values))])
    density = np.concatenate([zero(len(own)), counts / 3000])
    made = Nodes.of(Spectrum(1000, 1000, nodes, masses, density, 3))
    assert made.mass.sum() == pytest.approx(len(own))
    assert (made.count >= -1e-9).all()
    for power in (1, 2):
        assert (made.count * made.values**power).sum() == pytest.approx((counts * values**power).sum())
    assert set(own) <= set(made.values)


@settings(deadline=None, max_examples=15)
@given(b=st.sampled_from([1, 2, 8, 64]), share=st.floats(0.1, 0.6), outputs=st.sampled_from([1, 5]))
def test_the_typical_run_is_ahead_of_the_mean(b, share, outputs):
    """The geometric mean is below the mean, and the lowest loss so far below the loss."""
    spectrum = spectrum_of(VALUES, START**2, np.geomspace(40, 1, 10), outputs=outputs)
    phi = np.array([1 / b])
    eta = np.array([share * largest_stable(spectrum, phi[0])])
    mean = loss_curves(spectrum, eta, phi, 150)
    found = typical_runs(spectrum, eta, phi, 150, runs=512)
    assert (found.lowest <= found.losses * (1 + 1e-6)).all()
    assert (np.diff(found.lowest) <= 1e-12).all()
    assert (found.losses[:, :40] <= mean[:, :40] * 1.15).all()  # but for the scatter of 512 runs
    eps = float(mean[0, 100])
    assert steps(found.lowest, eps)[0] <= steps(mean, eps)[0] * 1.02


def test_it_ends_where_the_target_is_reached():
    spectrum = spectrum_of(VALUES, START**2)
    found = typical_runs(spectrum, np.array([0.3, 1e-3]), np.array([0.5, 0.5]), 300, until=1.0, runs=32)
    ended = int(np.argmax(found.lowest[0] <= 1.0))
    assert 0 < ended < 300
    assert np.isnan(found.lowest[0, ended + 1 :]).all()
    assert np.isfinite(found.lowest[1]).all()
    n = typical_steps(spectrum, np.array([0.3, 1e-3]), np.array([0.5, 0.5]), 1.0, 300, np.array([50.0, 300]))
    assert ended - 3 < n[0] < ended + 3
    assert np.isnan(n[1])


def test_what_is_not_evaluated_is_not_seen():
    spectrum = spectrum_of(VALUES, START**2)
    seen = np.zeros((1, 301), bool)
    seen[0, ::25] = True
    args = spectrum, np.array([0.2]), np.array([1.0]), 300
    coarse, fine = typical_runs(*args, seen=seen), typical_runs(*args)
    at = np.flatnonzero(seen[0])
    assert (np.diff(coarse.lowest[0])[np.setdiff1d(np.arange(300), at - 1)] == 0).all()
    assert steps_to_target(at, coarse.lowest[0, at], 0.3) > steps_to_target(np.arange(301), fine.lowest[0], 0.3)


def test_a_run_that_diverges_stays_a_number():
    spectrum = spectrum_of(VALUES, START**2)
    found = typical_runs(spectrum, np.array([50.0]), np.array([1.0]), 400, runs=8)
    assert np.isfinite(found.losses).all()
    assert found.losses[0, -1] > 1e15
    assert found.lowest[0, -1] <= found.losses[0, 0] * (1 + 1e-6)


def test_there_are_fewer_runs_where_they_are_long():
    spectrum = spectrum_of(VALUES, START**2)
    assert affordable(spectrum, 100) == RUNS
    assert LEAST_RUNS < affordable(spectrum, 5e5) < RUNS
    assert affordable(spectrum, 1e12) == LEAST_RUNS


@pytest.mark.parametrize("scale", [1e-20, 1e11, 1e16])
def test_it_does_not_depend_on_the_unit_of_the_targets(scale):
    values, masses = np.array([0.1, 0.4, 1.0]), np.array([1.0, 2.0, 4.0])
    plain, scaled = (
        typical_runs(spectrum_of(values, unit * masses), np.array([0.5]), np.array([0.5]), 40, runs=32)
        for unit in (1.0, scale)
    )
    assert scaled.losses == pytest.approx(scale * plain.losses, rel=1e-4)
    assert scaled.lowest == pytest.approx(scale * plain.lowest, rel=1e-4)
