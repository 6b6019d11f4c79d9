import logging
import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raysat import InputError, linear, mlp, models, ntk_statistics
from raysat.ntk import KernelOperator, grams, largest_eigenpair
from raysat.ntk import statistics as statistics_module


class Tied(nn.Module):
    """One weight, used twice."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.outer = nn.Linear(4, 3)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


class Shared(nn.Module):
    """Two modules, one parameter."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.outer = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.outer(torch.tanh(self.two(torch.tanh(self.one(x)))))


class Outside(nn.Module):
    """A weight used outside its own module's forward: no look at the modules can see it."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(x) @ self.inner.weight))


class Positions(nn.Module):
    """A layer applied at every position of a sequence."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(x.view(len(x), 2, 2)))).mean(1)


def frozen():
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    network[0].weight.requires_grad_(False)
    return network


CASES = {
    "mlp": (lambda: models.build(mlp(3, "relu", 2**0.5), 8, (4,), 3, 0), "gram"),
    "deep tanh": (lambda: models.build(mlp(5, "tanh"), 6, (4,), 3, 0), "gram"),
    "gelu": (lambda: models.build(mlp(1, "gelu"), 6, (4,), 3, 0), "gram"),
    "erf": (lambda: models.build(mlp(2, "erf", output_gain=3.0), 6, (4,), 3, 0), "gram"),
    "one output": (lambda: models.build(mlp(2), 6, (4,), 1, 0), "gram"),
    "linear": (lambda: models.build(linear(), 0, (4,), 3, 0), "gram"),
    "biases": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), "gram"),
    "frozen weight": (frozen, "gram"),
    "used twice": (Tied, "gram"),
    "positions": (Positions, "gram"),
    "tied modules": (Shared, "jacobian"),
    "used outside": (Outside, "jacobian"),
    "no rule": (lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)), "jacobian"),
    "convolution": (
        lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(3, 3)),
        "jacobian",
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_every_statistic_agrees_with_the_dense_jacobian(name, dtype, rtol):
    build, method = CASES[name]
    torch.manual_seed(0)
    network = build().double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(11, 4, generator=generator, dtype=torch.float64)
    outputs = network(x).shape[1]
    y = torch.randn(11, outputs, generator=generator, dtype=torch.float64)
    expected = oracles.statistics(network, x, y)
    tolerance = 1e-8 if dtype == torch.float64 else 1e-4
    found = ntk_statistics(network.to(dtype), x.to(dtype), y.to(dtype), k_tolerance=tolerance)
    assert found.method == method
    assert found.k_op_residual <= tolerance
    assert found.parameters == sum(p.numel() for p in network.parameters() if p.requires_grad)
    for quantity, value in expected.items():
        slack = 1e-4 if quantity in ("k_op", "b_star", "b_star_thm33") and dtype == torch.float32 else rtol
        assert getattr(found, quantity) == pytest.approx(value, rel=slack), quantity


@pytest.mark.parametrize("outputs", [1, 3])
def test_rank_one_data_have_b_star_one(outputs):
    """All samples equal: every J_i is the same, so that gamma = ||J||^2 = k_op."""
    x = torch.randn(1, 5, dtype=torch.float64).expand(20, 5)
    network = models.build(mlp(2), 16, (5,), outputs, seed=0).double()
    assert ntk_statistics(network, x, k_tolerance=1e-9).b_star == pytest.approx(1.0, rel=1e-12)


def test_orthogonal_data_have_b_star_n():
    """K = (1/n) I gamma: nothing is shared between samples, and every batch size up to n pays."""
    x = torch.eye(12, dtype=torch.float64) * 3
    network = models.build(linear(), 0, (12,), 1, seed=0).double()
    statistics = ntk_statistics(network, x, k_tolerance=1e-9)
    assert statistics.gamma == pytest.approx(9.0)
    assert statistics.b_star == pytest.approx(12.0)


def test_statistics_do_not_depend_on_the_chunk():
    network = models.build(mlp(2), 8, (4,), 3, seed=0).double()
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.randn(30, 3, dtype=torch.float64)
    whole = ntk_statistics(network, x, y, k_tolerance=1e-9)
    small = ntk_statistics(network, x, y, k_tolerance=1e-9, memory=1)
    for name in ("gamma", "gamma_mean", "gamma_frobenius", "k_op", "noise_scale", "loss_init"):
        assert getattr(small, name) == pytest.approx(getattr(whole, name), rel=1e-10), name


def test_gamma_is_over_all_samples_and_k_op_over_the_subset():
    network = models.build(mlp(1), 8, (4,), 2, seed=0).double()
    x = torch.randn(40, 4, dtype=torch.float64)
    full = ntk_statistics(network, x, k_tolerance=1e-9)
    part = ntk_statistics(network, x, k_samples=10, k_tolerance=1e-9)
    assert (part.n, part.k_samples) == (40, 10)
    assert part.gamma == pytest.approx(full.gamma)
    chosen = statistics_module._subset(40, 10)
    assert part.k_op == pytest.approx(ntk_statistics(network, x[chosen], k_tolerance=1e-9).k_op)
    assert part.k_op != pytest.approx(full.k_op, rel=1e-3)


def test_without_targets_loss_and_noise_scale_are_nan():
    statistics = ntk_statistics(models.build(mlp(1), 8, (4,), 2, 0), torch.randn(5, 4))
    assert math.isnan(statistics.loss_init)
    assert math.isnan(statistics.noise_scale)


def test_the_weights_and_their_gradients_are_left_alone():
    network = models.build(mlp(1), 8, (4,), 2, 0)
    before = [p.detach().clone() for p in network.parameters()]
    ntk_statistics(network, torch.randn(5, 4), torch.randn(5, 2))
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert all(p.grad is None for p in network.parameters())
    assert all(not module._forward_hooks for module in network.modules())


def test_the_general_way_is_told_of_once(caplog):
    statistics_module._told.clear()
    network, x = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)), torch.randn(5, 4)
    with caplog.at_level(logging.WARNING, logger="raysat.ntk"):
        ntk_statistics(network, x)
        ntk_statistics(network, x)
    assert [record.getMessage() for record in caplog.records] == [
        "Sequential: no rule for LayerNorm, which holds 1.weight; using per-sample Jacobians, which is slower."
    ]


def test_layer_rules_and_jacobians_agree():
    network, x = Tied().double(), torch.randn(6, 4, dtype=torch.float64)
    for by_rules, by_jacobians in zip(
        grams.grams_by_rules(network, x), grams.grams_by_jacobians(network, x), strict=True
    ):
        torch.testing.assert_close(by_rules, by_jacobians, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("network", "x", "y", "words"),
    [
        (nn.Linear(4, 2), torch.empty(0, 4), None, "x is empty"),
        (nn.Flatten(), torch.randn(3, 4), None, "no trainable parameter"),
        (nn.Linear(4, 2), torch.randn(3, 5, 4), None, "return .n, C."),
        (nn.Linear(4, 2), torch.randn(3, 4), torch.randn(3, 3), "make them agree"),
        (nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), torch.randn(3, 4), None, r"1 \(BatchNorm1d\).*GroupNorm"),
    ],
)
def test_wrong_use_is_told(network, x, y, words):
    with pytest.raises(InputError, match=words):
        ntk_statistics(network, x, y)


def test_weights_that_are_not_finite_are_named():
    network = nn.Linear(4, 2)
    network.weight.data[0, 0] = math.nan
    with pytest.raises(InputError, match="parameter weight is not finite"):
        ntk_statistics(network, torch.randn(3, 4))


def test_the_kernel_operator_is_the_dense_kernel():
    network, x = models.build(mlp(2), 8, (4,), 3, 0).double(), torch.randn(7, 4, dtype=torch.float64)
    j = oracles.jacobians(network, x).flatten(0, 1)
    u = torch.randn(7, 3, dtype=torch.float64)
    expected = (j @ (j.T @ u.flatten()) / 7).view(7, 3)
    torch.testing.assert_close(KernelOperator(network, x, chunk=3)(u), expected, rtol=1e-10, atol=1e-12)


@settings(max_examples=30)
@given(st.integers(1, 30), st.integers(0, 2**31))
def test_lanczos_finds_the_largest_eigenvalue(size, seed):
    generator = np.random.default_rng(seed)
    factor = torch.tensor(generator.normal(size=(size, size)))
    matrix = factor @ factor.T
    start = torch.tensor(generator.normal(size=size))
    pair = largest_eigenpair(lambda v: matrix @ v, start, tolerance=1e-10)
    assert pair.value == pytest.approx(torch.linalg.eigvalsh(matrix)[-1].item(), rel=1e-9)
    residual = (matrix @ pair.vector - pair.value * pair.vector).norm() / pair.value
    assert pair.residual == pytest.approx(residual.item(), abs=1e-12)
    assert pair.residual < 1e-8


def test_lanczos_says_how_far_it_came():
    matrix = torch.diag(torch.linspace(1, 1.01, 200, dtype=torch.float64))
    pair = largest_eigenpair(lambda v: matrix @ v, torch.ones(200, dtype=torch.float64), tolerance=1e-12, most=3)
    assert pair.products == 4
    assert pair.residual > 1e-4


def test_lanczos_on_zero():
    pair = largest_eigenpair(torch.zeros_like, torch.ones(5, dtype=torch.float64))
    assert pair.value == 0
