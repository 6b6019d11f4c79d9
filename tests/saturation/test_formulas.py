import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysat import fixed, fixed_fraction, grid
from raysat import theory as theory_policy
from raysat.saturation.formulas import b_star, b_star_thm33, beta, beta_thm33, exponent, h_interpolated, stepsize

sizes = st.integers(2, 10_000)
numbers = st.floats(1e-3, 1e3)


@given(sizes, numbers, numbers)
def test_both_ends_of_beta_are_exact(n, gamma, k_op):
    assert beta(1, n, gamma, k_op) == gamma
    assert beta(n, n, gamma, k_op) == pytest.approx(k_op, rel=1e-12)
    assert beta(1, n, gamma, k_op, replacement=True) == gamma


@given(sizes, numbers, numbers, st.data())
def test_beta_lies_between_its_ends_and_below_the_bound_of_theorem_3_2(n, gamma, k_op, data):
    b = data.draw(st.integers(1, n))
    k_op = min(k_op, gamma)
    for replacement in (False, True):
        value = beta(b, n, gamma, k_op, replacement=replacement)
        assert k_op * (1 - 1e-12) <= value <= gamma * (1 + 1e-12)
        assert value <= (gamma / b + k_op) * (1 + 1e-12)
        assert value <= beta_thm33(b, gamma, k_op)


@pytest.mark.parametrize(("n", "b"), [(4, 1), (4, 2), (4, 3), (4, 4), (5, 2)])
@pytest.mark.parametrize("replacement", [False, True])
def test_beta_bounds_the_second_moment_over_all_batches_and_is_sharp_in_its_parts(n, b, replacement):
    """Lemma 3.1 by enumeration: E ||g||^2 is exactly what beta's two coefficients say of its two terms."""
    generator = np.random.default_rng(0)
    gradients = generator.normal(size=(n, 3))  # r_i grad f_i
    if replacement:
        batches = [list(batch) for batch in product(range(n), repeat=b)]
    else:
        batches = [list(batch) for batch in combinations(range(n), b)]
    moment = np.mean([np.square(gradients[batch].mean(0)).sum() for batch in batches])
    own = np.square(gradients).sum(1).mean()
    full = np.square(gradients.mean(0)).sum()
    assert moment == pytest.approx(beta(b, n, own, full, replacement=replacement), rel=1e-12)


@pytest.mark.parametrize(("b", "n"), [(0, 4), (5, 4)])
def test_a_batch_outside_the_data_is_refused(b, n):
    with pytest.raises(ValueError, match="between 1 and n"):
        beta(b, n, 1.0, 1.0)


def test_b_star():
    assert b_star(6.0, 2.0) == 3.0
    assert b_star_thm33(6.0, 2.0) == 12.0
    assert math.isnan(b_star(1.0, 0.0))


def test_at_b_star_the_two_terms_of_theorem_3_2_are_equal():
    gamma, k_op = 7.0, 0.5
    assert gamma / b_star(gamma, k_op) == k_op


def test_stepsizes_of_the_policies():
    at = {"b": 4, "n": 100, "gamma": 8.0, "k_op": 2.0}
    assert stepsize(fixed(0.3), **at) == 0.3
    assert stepsize(fixed_fraction(0.5), **at) == 0.5 / 8
    assert stepsize(theory_policy(2), **at) == 2 / beta(**at)
    assert stepsize(grid([0.7])[0], **at) == 0.7
    assert stepsize(grid([3], relative=True)[0], **at) == 3 / beta(**at)


@given(numbers, numbers, st.floats(1, 1e4))
def test_the_interpolated_exponent_has_the_right_ends_and_lies_between_them(h_one, h_full, b):
    assert h_interpolated(1, h_one, h_full) == pytest.approx(h_one)
    assert h_interpolated(1e12, h_one, h_full) == pytest.approx(h_full, rel=1e-6)
    low, high = sorted((h_one, h_full))
    assert low * (1 - 1e-9) <= h_interpolated(b, h_one, h_full) <= high * (1 + 1e-9)


def test_the_exponent_is_that_of_an_exponential_and_unknown_where_a_loss_is_zero_or_infinite():
    assert exponent(3.0, 3.0 * math.exp(-0.02 * 50), 50) == pytest.approx(0.02)
    assert all(math.isnan(exponent(*losses, 50)) for losses in ((1.0, 0.0), (1.0, math.inf), (math.inf, 1.0)))
    assert math.isnan(exponent(1.0, 1.0, 0))
