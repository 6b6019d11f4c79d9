"""Faults that the certificates detect, each planted where the other checks would not show it."""

from itertools import pairwise

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raysat.ntk import (
    KernelOperator,
    NoStatistics,
    Products,
    grams,
    ntk_statistics,
    per_sample,
    products,
    register_rule,
    rules,
    top,
)
from raysat.ntk.lanczos import excess, tridiagonalize


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def data(n=20):
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(n, size, generator=generator, dtype=torch.float64) for size in (4, 3))


def right(found, network, x, y):
    expected = oracles.statistics(network, x, y)
    for name in ("gamma", "gamma_mean", "k_op", "noise_scale"):
        assert getattr(found, name) == pytest.approx(expected[name], rel=1e-6), name


def test_a_fault_in_the_grams_of_the_largest_sample_is_seen(monkeypatch):
    """The rules are right for the three samples inspected first, and wrong afterwards."""
    made = grams.grams

    def faulty(network, x, parts):
        outputs, gram = made(network, x, parts)
        return outputs, gram * (1.01 if len(x) > 3 and parts.survey.covered else 1.0)

    monkeypatch.setattr(per_sample.grams, "grams", faulty)
    net, (x, y) = network(), data()
    found = ntk_statistics(net, x, y, k_tolerance=1e-9)
    assert found.method == "jacobian"
    assert "gram is off by" in found.method_reason
    right(found, net, x, y)


@pytest.mark.parametrize("way", ["recorded", "forward"])
def test_a_fault_in_products_with_the_kernel_is_seen(monkeypatch, way):
    """The last sample's product is lost, as if a chunk were left out: the eigenvector alone would hardly show it."""
    multiply = KernelOperator.__call__

    def faulty(self, u):
        product = multiply(self, u)
        if self.way == way:
            product[-1] = 0
        return product

    monkeypatch.setattr(KernelOperator, "__call__", faulty)
    monkeypatch.setattr(top, "_ways", lambda look, n, memory: iter([Products(way), Products.DOUBLE]))
    net, (x, y) = network(), data()
    found = ntk_statistics(net, x, y, k_tolerance=1e-9)
    assert found.way == "double"
    right(found, net, x, y)


def test_a_fault_in_products_by_rules_is_seen(monkeypatch):
    multiply = products.ByRules.__call__
    monkeypatch.setattr(products.ByRules, "__call__", lambda self, u: 1.01 * multiply(self, u))
    net, (x, y) = network(), data()
    found = ntk_statistics(net, x, y, method="iteration", k_tolerance=1e-9)
    assert "iteration is off by" in found.method_reason
    right(found, net, x, y)


def test_where_no_way_is_confirmed_there_is_no_number(monkeypatch):
    made = grams.grams
    monkeypatch.setattr(per_sample.grams, "grams", lambda *a: tuple(1.01 * part for part in made(*a)))
    net, (x, y) = network(), data()
    with pytest.raises(NoStatistics, match=r"no way to the per-sample quantities is confirmed .*plain is off by"):
        ntk_statistics(net, x, y)


def test_a_start_in_an_invariant_subspace_is_left():
    """Samples in groups with disjoint features: from a start in one group, Lanczos sees that group alone."""
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(640, 24, dtype=torch.float64)
    for k in range(len(x)):
        group = k % 8
        x[k, 3 * group : 3 * group + 3] = torch.randn(3, generator=generator, dtype=torch.float64) * (1 + group)
    found = ntk_statistics(nn.Linear(24, 1, bias=False).double(), x, k_tolerance=1e-9)
    exact = torch.linalg.eigvalsh(x.T @ x / len(x))[-1].item()
    assert found.k_op == pytest.approx(exact, rel=1e-9)
    assert found.k_op <= found.k_op_upper < 2 * exact


def test_a_second_start_that_finds_more_moves_the_first(monkeypatch):
    x = torch.zeros(40, 8, dtype=torch.float64)
    x[:20, :4] = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[20:, 4:] = 9 * torch.randn(20, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def blind(operator, second, like):  # nonzero for the first half of the samples only
        start = torch.zeros_like(like)
        start[:20] = 1
        return start

    monkeypatch.setattr(top, "_start", blind)
    found = ntk_statistics(nn.Linear(8, 1, bias=False).double(), x, k_tolerance=1e-9)
    assert found.k_op == pytest.approx(torch.linalg.eigvalsh(x.T @ x / 40)[-1].item(), rel=1e-9)


@settings(max_examples=25)
@given(st.integers(2, 60), st.integers(2, 12), st.sampled_from([1.0, 0.2]), st.integers(0, 2**31))
def test_no_eigenvalue_exceeds_the_bound_but_seldom(size, steps, share, seed):
    """The hardest case: one eigenvalue far above the rest, and a fixed part of the start orthogonal to its vector."""
    generator = np.random.default_rng(seed)
    values = torch.tensor(np.append(generator.uniform(0, 1, size - 1), 1 + generator.exponential(3)))
    trials = 400
    noise = torch.tensor(generator.normal(size=(trials, size)))
    fixed = torch.zeros(trials, size)
    fixed[:, 0] = 1
    start = (1 - share) ** 0.5 * fixed + share**0.5 * noise / noise.norm(dim=1, keepdim=True)
    found = tridiagonalize(lambda v: v * values, start, steps)
    bound = excess([(found.products, share)], size, 0.05) * found.values[:, -1]
    assert (values.max() > bound * (1 + 1e-9)).double().mean() <= 0.05 + 4 * (0.05 / trials) ** 0.5


def test_the_bound_tightens_with_products_and_with_the_random_part():
    bounds = [excess([(m, 1.0)], 4096, 0.01) for m in (3, 5, 10, 20, 40)]
    assert all(a > b > 1 for a, b in pairwise(bounds))
    assert excess([(10, 0.2)], 4096, 0.01) > excess([(10, 1.0)], 4096, 0.01)
    assert excess([(10, 1.0), (10, 1e-3)], 4096, 0.01) < excess([(10, 1.0)], 4096, 0.01)
    assert excess([(1, 1.0)], 1, 0.01) == 1


class Scale(nn.Module):
    """A user's own layer, `y = w x`."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(1 + torch.rand(size))

    def forward(self, x):
        return self.weight * x


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (lambda module, inputs, gradients: {"weight": gradients * inputs[:, None]}, ""),
        (lambda module, inputs, gradients: {"weight": gradients}, "1.weight is used otherwise than by its own layer"),
        (lambda module, inputs, gradients: {}, "1.weight is used otherwise than by its own layer"),
        (lambda module, inputs, gradients: 1 / 0, "layer rules do not serve"),
    ],
    ids=["right", "wrong", "forgetful", "failing"],
)
@pytest.mark.parametrize("by_name", [False, True])
def test_a_rule_of_ones_own_is_used_where_it_is_right(monkeypatch, rule, reason, by_name):
    monkeypatch.setattr(rules, "RULES", dict(rules.RULES))
    register_rule(f"{Scale.__module__}.Scale" if by_name else Scale, rule)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), Scale(6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = data()
    found = ntk_statistics(net, x, y, k_tolerance=1e-9)
    assert found.method_reason[: len(reason)] == reason
    assert bool(found.method_reason) == bool(reason)
    right(found, net, x, y)
