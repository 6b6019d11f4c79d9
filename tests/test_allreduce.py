import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysat import InputError
from raysat.allreduce import Link, Measurement, fit, measure


def test_an_all_reduce_is_a_ring():
    link = Link(alpha=2e-6, bandwidth=1e9)
    assert link.seconds(4e6, 1) == 0
    # 6 messages of a quarter each: 6 * (2e-6 + 1e6 / 1e9)
    assert link.seconds(4e6, 4) == pytest.approx(6 * (2e-6 + 1e-3))


@given(st.floats(1e-7, 1e-2), st.floats(1e6, 1e11))
def test_the_fit_finds_the_link_that_made_the_times(alpha, bandwidth):
    link = Link(alpha, bandwidth)
    measured = [Measurement(size, p, link.seconds(size, p)) for p in (2, 3, 8) for size in (10, 10**5, 10**9)]
    found = fit(measured)
    for one in measured:
        assert found.seconds(one.size, one.ranks) == pytest.approx(one.seconds, rel=1e-6)


def test_a_fit_needs_two_sizes():
    with pytest.raises(InputError, match="at least two sizes"):
        fit([Measurement(4, 2, 1.0)])


def test_a_real_all_reduce_between_two_processes():
    measured = measure(2, sizes=(1024, 1 << 24), repeats=5)
    assert [(one.size, one.ranks) for one in measured] == [(1024, 2), (1 << 24, 2)]
    assert 0 < measured[0].seconds < measured[1].seconds
    link = fit(measured)
    assert link.seconds(1 << 24, 2) == pytest.approx(measured[1].seconds, rel=0.5)


@pytest.mark.parametrize(("ranks", "backend", "words"), [(1, "gloo", "at least 2"), (99, "nccl", "needs 99 GPUs")])
def test_what_cannot_be_measured_is_refused(ranks, backend, words):
    with pytest.raises(InputError, match=words):
        measure(ranks, backend=backend)
