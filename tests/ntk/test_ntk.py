import logging
import math
from dataclasses import asdict

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raysat import InputError, data, gpt, linear, mlp, models, ntk_statistics, resnet
from raysat.losses import LOSSES
from raysat.ntk import KernelOperator, certificate, dense_kernel, grams, largest_eigenpairs, plain, top, tridiagonalize
from raysat.ntk import statistics as statistics_module
from raysat.ntk.lanczos import refined
from raysat.ntk.products import ByRules
from raysat.ntk.survey import survey
from raysat.saturation.recursion import Spectrum, largest_stable, noise_factor


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
    """A weight used outside its own module's forward, which hooks on modules do not see."""

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


class Scale(nn.Module):
    """A layer without a rule."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))

    def forward(self, x):
        return self.weight * x


class Tokens(nn.Module):
    """Embedding, attention and a head, on tokens made from the inputs; if tied, embedding and head share a weight."""

    def __init__(self, tied):
        super().__init__()
        self.embed, self.place = nn.Embedding(3, 4, padding_idx=None if tied else 1), nn.Embedding(4, 4)
        self.norm, self.qkv, self.out = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 4)
        self.head = nn.Linear(4, 3, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x):
        tokens = x.detach().gt(0).long() + x.detach().gt(0.7).long()
        h = self.embed(tokens) + self.place(torch.arange(4).expand_as(tokens))
        q, k, v = self.qkv(self.norm(h)).chunk(3, -1)
        h = h + self.out(torch.softmax(q @ k.mT / 2, -1) @ v)
        return self.head(h).mean(1)


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
    "tied modules": (Shared, "gram"),
    "used outside": (Outside, "gram"),
    "no rule": (lambda: nn.Sequential(nn.Linear(4, 5), Scale(5), nn.Tanh(), nn.Linear(5, 3)), "gram"),
    "tokens": (lambda: Tokens(tied=False), "gram"),
    "tokens, tied": (lambda: Tokens(tied=True), "gram"),
    "layer norm": (lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)), "gram"),
    "layer norm at positions": (
        lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.LayerNorm(2), nn.Flatten(), nn.Linear(4, 3)),
        "gram",
    ),
    "layer norm over two axes": (
        lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.LayerNorm((2, 2)), nn.Flatten(), nn.Linear(4, 3)),
        "gram",
    ),
    "group norm": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 2, 2)),
            nn.Conv2d(1, 6, 2, padding=1),
            nn.GroupNorm(3, 6),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(54, 3),
        ),
        "gram",
    ),
    "batch norm in evaluation": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).eval(),
        "gram",
    ),
    "convolution": (
        lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(3, 3)),
        "gram",
    ),
    "strided, grouped, dilated": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (4, 1, 1)),
            nn.Upsample(size=(5, 7)),
            nn.Tanh(),
            nn.Conv2d(4, 6, (2, 3), stride=(1, 2), padding=(1, 2), dilation=(2, 1), groups=2),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(24, 3, bias=False),
        ),
        "gram",
    ),
    "padding same": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, (2, 3), padding="same"), nn.Flatten(), nn.Linear(8, 3)
        ),
        "gram",
    ),
    "circular padding": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 2, 2)),
            nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"),
            nn.Flatten(),
            nn.Linear(8, 3),
        ),
        "gram",
    ),
    "one dimension": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (2, 2)),
            nn.Conv1d(2, 4, 2, padding=1, groups=2),
            nn.Tanh(),
            nn.MaxPool1d(2),
            nn.Flatten(),
            nn.Linear(4, 3),
        ),
        "gram",
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


def test_a_slower_way_is_warned_of_once(caplog):
    statistics_module._warned.clear()
    network, x = nn.Sequential(nn.Linear(4, 5), Scale(5), nn.Linear(5, 3)), torch.randn(5, 4)
    with caplog.at_level(logging.WARNING, logger="raysat.ntk"):
        ntk_statistics(network, x)
        ntk_statistics(network, x)
    assert [record.getMessage() for record in caplog.records] == [
        "Sequential: no rule for Scale, which holds 1.weight; its statistics take a slower way."
    ]


def test_every_way_to_the_grams_agrees():
    network, x = Tied().double(), torch.randn(6, 4, dtype=torch.float64)
    surveyed = survey(network, x[:3])
    assert surveyed.rest == ()
    outputs, by_rules = grams.grams(network, x, grams.Parts(surveyed, (), plain.rows))
    for rows in (grams.jacobians, plain.rows):
        same, by_rows = grams.grams(network, x, grams.without_rules(network, rows))
        torch.testing.assert_close(same, outputs, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(by_rows, by_rules, rtol=1e-10, atol=1e-12)


class Functional(nn.Module):
    """Network with a weight of its own, which it passes to `F.linear`."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.weight = nn.Parameter(torch.randn(3, 5))

    def forward(self, x):
        return nn.functional.linear(self.first(x).tanh(), self.weight)


def test_a_weight_given_to_the_function_is_served_by_the_rule_of_linear_layers():
    network, x = Functional().double(), torch.randn(6, 4, dtype=torch.float64)
    surveyed = survey(network, x[:3])
    assert surveyed.covered == {"first.weight", "first.bias", "weight"}
    _, by_rules = grams.grams(network, x, grams.Parts(surveyed, (), plain.rows))
    _, by_rows = grams.grams(network, x, grams.without_rules(network, plain.rows))
    torch.testing.assert_close(by_rows, by_rules, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("network", "x", "y", "words"),
    [
        (nn.Linear(4, 2), torch.empty(0, 4), None, "x is empty"),
        (nn.Flatten(), torch.randn(3, 4), None, "no trainable parameter"),
        (nn.Linear(4, 2), torch.randn(3, 5, 4), None, "return .n, C."),
        (nn.Linear(4, 2), torch.randn(3, 4), torch.randn(3, 3), "make them agree"),
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


@pytest.mark.parametrize("memory", [0, 1 << 30])
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_operator_is_the_dense_kernel_whether_recorded_or_not(name, memory):
    torch.manual_seed(0)
    network, x = CASES[name][0]().double(), torch.randn(7, 4, dtype=torch.float64)
    j = oracles.jacobians(network, x).flatten(0, 1)
    u = torch.randn(network(x).shape, dtype=torch.float64)
    expected = (j @ (j.T @ u.flatten()) / 7).view(u.shape)
    operator = KernelOperator(network, x, chunk=3, memory=memory)
    assert bool(operator.graphs) == bool(memory)
    for _ in range(2):
        torch.testing.assert_close(operator(u), expected, rtol=1e-10, atol=1e-12)


def test_a_parameter_that_nothing_depends_on_changes_nothing():
    network = nn.Sequential(nn.Linear(4, 2))
    network.idle = nn.Linear(3, 3)
    network.forward = network[0].forward
    x, u = torch.randn(5, 4), torch.randn(5, 2)
    torch.testing.assert_close(
        KernelOperator(network, x, memory=1 << 30)(u), KernelOperator(network[0], x, memory=0)(u)
    )


def test_the_start_is_near_the_top_eigenvector():
    network, x = models.build(mlp(2), 16, (8,), 3, 0).double(), torch.randn(600, 8, dtype=torch.float64) + 0.5
    operator, outputs = KernelOperator(network, x), network(x).detach()
    start = top._start(operator, certificate.second_start(operator, outputs)[1], outputs)
    exact = largest_eigenpairs(lambda u: operator(u[0])[None], start[None], tolerance=1e-9).vectors[0]
    assert abs((start / start.norm() * exact).sum()) > 0.95


@settings(max_examples=30)
@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 2**31))
def test_lanczos_finds_the_largest_eigenvalues_side_by_side(size, batch, seed):
    generator = np.random.default_rng(seed)
    factor = torch.tensor(generator.normal(size=(batch, size, size)))
    matrix = factor @ factor.mT

    def apply(v):
        return (matrix @ v[:, :, None]).squeeze(2)

    pairs = largest_eigenpairs(apply, torch.tensor(generator.normal(size=(batch, size))), tolerance=1e-10)
    torch.testing.assert_close(pairs.values, torch.linalg.eigvalsh(matrix)[:, -1], rtol=1e-9, atol=0)
    residuals = (apply(pairs.vectors) - pairs.values[:, None] * pairs.vectors).norm(dim=1) / pairs.values
    torch.testing.assert_close(pairs.residuals, residuals, rtol=1e-3, atol=1e-13)
    assert pairs.residuals.max() < 1e-8


def test_lanczos_says_how_far_it_came():
    matrix = torch.diag(torch.linspace(1, 1.01, 200, dtype=torch.float64))
    pairs = largest_eigenpairs(lambda v: v @ matrix, torch.ones(1, 200, dtype=torch.float64), tolerance=1e-12, most=3)
    assert pairs.products == 3
    assert pairs.residuals.item() > 1e-4


def test_lanczos_on_zero_and_on_operators_of_different_rank():
    assert largest_eigenpairs(torch.zeros_like, torch.ones(1, 5, dtype=torch.float64)).values.item() == 0
    scales = torch.tensor([[1.0, 1, 1, 1], [1, 2, 3, 4]], dtype=torch.float64)  # one Krylov space ends at once
    pairs = largest_eigenpairs(lambda v: scales * v, torch.ones(2, 4, dtype=torch.float64), tolerance=1e-10)
    torch.testing.assert_close(pairs.values, torch.tensor([1.0, 4.0], dtype=torch.float64))


def tokens(n=5, length=4, vocabulary=5):
    generator = torch.Generator().manual_seed(2)
    stream = torch.randint(vocabulary, (n, length + 1), generator=generator)
    return stream[:, :-1], stream[:, 1:]


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("method", [None, "iteration", "jacobian"])
def test_cross_entropy_of_classes_is_the_gauss_newton_kernel(method, dtype, rtol):
    network = models.build(mlp(2, "tanh"), 6, (4,), 3, 0).double()
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[torch.arange(9) % 3]
    expected = oracles.statistics(network, x, y, "cross_entropy")
    tolerance = 1e-8 if dtype == torch.float64 else 1e-4
    found = ntk_statistics(
        network.to(dtype), x.to(dtype), y.to(dtype), loss="cross_entropy", k_tolerance=tolerance, method=method
    )
    assert found.method == (method or "gram")
    for quantity, value in expected.items():
        slack = 1e-4 if quantity in ("k_op", "b_star") and dtype == torch.float32 else rtol
        if quantity == "gamma_frobenius" and method == "iteration":
            assert math.isnan(found.gamma_frobenius)
        else:
            assert getattr(found, quantity) == pytest.approx(value, rel=slack), quantity


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_cross_entropy_of_sequences_by_iteration(tied, dtype, rtol):
    network = models.build(gpt(1, 2, tied=tied), 4, (4,), 5, 0).double()
    x, y = tokens()
    expected = oracles.statistics(network, x, y, "cross_entropy")
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    found = ntk_statistics(network.to(dtype), x, y, loss="cross_entropy", k_tolerance=tolerance, method="iteration")
    for quantity in ("loss_init", "gamma", "gamma_mean", "noise_scale"):
        assert getattr(found, quantity) == pytest.approx(expected[quantity], rel=rtol), quantity
    assert found.k_op == pytest.approx(expected["k_op"], rel=1e-4)


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_products_by_rules_are_those_of_the_dense_jacobian(tied, short):
    """With fewer positions than inputs and with more; two samples are the same."""
    length, width = (4, 8) if short else (40, 8)
    network = models.build(gpt(1, 2, tied=tied), width, (length,), 5, 0).double()
    x = torch.randint(5, (4, length), generator=torch.Generator().manual_seed(0))
    x[3] = x[1]
    y = x.roll(1, 1)
    loss = LOSSES["cross_entropy"]
    j = oracles.jacobians(network, x)  # [n, L V, p]; before the graphs, because it writes to the weights
    surveyed = survey(network, x[:3])
    assert not surveyed.rest
    products = ByRules(network, x, loss, y, surveyed)
    u = torch.randn(4, length, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u[3] = u[1]
    outputs = network(x).detach()
    pulled = torch.einsum("nop,no->np", j, loss.factor(outputs, y, u).flatten(1))
    expected = loss.factor_transposed(outputs, y, torch.einsum("nop,np->no", j, pulled).view_as(u))
    for _ in range(2):  # the second product reuses A A^T from the first
        torch.testing.assert_close(products(u), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(products(u)[3], products(u)[1], rtol=1e-10, atol=1e-12)
    assert bool(products.between) == short
    squares = torch.einsum("nop,no->np", j, u.flatten(1)).square().sum(1)
    torch.testing.assert_close(products.gradient_squares(u), squares, rtol=1e-10, atol=0)


def test_many_outputs_are_iterated_and_few_are_not():
    x, y = tokens(2, 30)
    assert ntk_statistics(models.build(gpt(1, 2), 4, (30,), 5, 0), x, y, loss="cross_entropy").method == "iteration"


@pytest.mark.parametrize("norm", ["group", "none"])
def test_a_resnet_by_its_rules(norm):
    network = models.build(resnet(10, norm), 4, (3, 4, 4), 3, 0).double()
    x, y = torch.randn(4, 3, 4, 4, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    expected = oracles.statistics(network, x, y)
    found = ntk_statistics(network, x, y, k_tolerance=1e-9)
    assert found.method == "gram"
    for quantity, value in expected.items():
        assert getattr(found, quantity) == pytest.approx(value, rel=1e-10), quantity


def test_a_parameter_without_a_rule_has_rows_of_its_own():
    network, x = nn.Sequential(nn.Linear(4, 5), Scale(5), nn.Linear(5, 3)).double(), torch.randn(6, 4).double()
    found = ntk_statistics(network, x, method="gram", k_tolerance=1e-9)
    assert (found.method, found.method_reason) == ("gram", "no rule for Scale, which holds 1.weight")
    assert found.gamma == pytest.approx(oracles.statistics(network, x, torch.zeros(6, 3))["gamma"], rel=1e-10)


def test_the_spectrum_is_that_of_the_dense_kernel():
    torch.manual_seed(0)
    network = models.build(mlp(2), 8, (4,), 2, 0).double()
    x, y = torch.randn(12, 4, dtype=torch.float64), torch.randn(12, 2, dtype=torch.float64)
    found = ntk_statistics(network, x, y, spectrum=24, probes=40, dense_samples=12)
    j = oracles.jacobians(network, x).flatten(0, 1)
    kernel = j @ j.T / 12
    values, vectors = torch.linalg.eigh(kernel)
    assert found.lambda_min == pytest.approx(values[0].item(), abs=1e-12)
    assert found.dense_samples == 12
    assert found.top[:3] == pytest.approx(values.flip(0)[:3].tolist(), rel=1e-9)
    residual = (network(x) - y).detach().flatten()
    nodes, weights = np.array(found.residual_nodes), np.array(found.residual_weights)
    assert weights.sum() == pytest.approx(residual.square().sum().item(), rel=1e-12)
    for power in range(1, 8):  # Gauss quadrature: moments are exact
        moment = (residual @ torch.linalg.matrix_power(kernel, power) @ residual).item()
        assert (weights * nodes**power).sum() == pytest.approx(moment, rel=1e-8)
    masses = (vectors.T @ residual) ** 2
    half = values[12].item()
    assert weights[nodes >= half * (1 - 1e-9)].sum() == pytest.approx(masses[12:].sum().item(), rel=0.05)
    density = np.array(found.density_nodes), np.array(found.density_weights)
    assert density[1].sum() == pytest.approx(1.0)
    assert (density[0] * density[1]).sum() == pytest.approx(values.mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("dataset", "model", "outputs"),
    [("linear(n=256,d=64)", linear(), 1), ("digits", mlp(3, "relu", 2**0.5), 1), ("digits", mlp(3, "relu", 2**0.5), 4)],
)
def test_the_spectral_measures_say_up_to_which_stepsize_sgd_is_stable(dataset, model, outputs):
    """Against all eigenvalues of the dense kernel, which four probes alone miss by 10 to 20 %."""
    samples = data.load(dataset, n_train=200 if dataset == "digits" else None, dtype="float64")
    network = models.build(model, 64, samples.input_shape, outputs, seed=0).double()
    found = ntk_statistics(network, samples.x, samples.y[:, :outputs], spectrum=64)
    values = torch.linalg.eigvalsh(dense_kernel(network, samples.x)).clamp_min(0).numpy()
    n, size = samples.n, len(values)
    exact = Spectrum(n, n, values, np.zeros(size), np.full(size, 1 / size), outputs)
    for b in (1, 2, 4, 8, 16, 64):
        limit = largest_stable(Spectrum.of(asdict(found)), noise_factor(b, n))
        assert limit == pytest.approx(largest_stable(exact, noise_factor(b, n)), rel=5e-3), b


def test_without_being_asked_for_there_is_no_spectrum():
    found = ntk_statistics(models.build(mlp(1), 8, (4,), 2, 0), torch.randn(5, 4))
    assert found.top == found.residual_nodes == found.density_weights == ()
    assert math.isnan(found.lambda_min)


@pytest.mark.parametrize(("d", "full_rank"), [(8, True), (2, False)])
def test_the_tight_gamma_is_the_smallest_of_equation_3_2(d, full_rank):
    x = torch.randn(6, d, dtype=torch.float64) * torch.tensor([3.0, 1, 1, 1, 1, 1], dtype=torch.float64)[:, None]
    found = ntk_statistics(models.build(linear(), 0, (d,), 1, 0).double(), x, dense_samples=6)
    norms = x.square().sum(1)
    fourth, second = (norms[:, None] * x).T @ x / 6, x.T @ x / 6
    if full_rank:  # more features than samples: the largest norm is tight
        assert found.gamma_tight == pytest.approx(norms.max().item(), rel=1e-9)
    else:
        expected = torch.linalg.eigvals(torch.linalg.solve(second, fourth)).real.max().item()
        assert found.gamma_tight == pytest.approx(expected, rel=1e-9)
        assert found.gamma_tight < norms.max().item() * (1 - 1e-3)
        assert found.gamma_tight >= norms.mean().item()  # the paper's lower bound, from the trace of eq. 3.1


@pytest.mark.parametrize(
    "build", [Tied, Shared, Positions, lambda: models.build(mlp(2), 8, (4,), 3, 0), lambda: Scale(4)]
)
def test_the_dense_kernel(build):
    torch.manual_seed(0)
    network, x = build().double(), torch.randn(6, 4, dtype=torch.float64)
    j = oracles.jacobians(network, x).flatten(0, 1)
    torch.testing.assert_close(dense_kernel(network, x), j @ j.T / 6, rtol=1e-10, atol=1e-12)


def test_the_dense_kernel_of_a_float32_network_leaves_its_gradients():
    torch.manual_seed(0)
    network, x = models.build(mlp(2), 8, (4,), 3, 0), torch.randn(6, 4)
    network(x).square().sum().backward()
    before = [(p.grad, p.grad.clone()) for p in network.parameters()]
    kernel = dense_kernel(network, x)
    assert all(
        p.grad is grad and torch.equal(grad, value)
        for p, (grad, value) in zip(network.parameters(), before, strict=True)
    )
    j = oracles.jacobians(network.double(), x.double()).flatten(0, 1)
    torch.testing.assert_close(kernel, j @ j.T / 6, rtol=1e-10, atol=1e-12)


@settings(max_examples=30)
@given(st.integers(3, 40), st.integers(1, 6), st.integers(0, 2**31), st.sampled_from(["near", "known", "random"]))
def test_what_is_known_of_a_subspace_is_refined_to_the_largest_eigenvalue(size, steps, seed, kind):
    generator = np.random.default_rng(seed)
    matrix = torch.tensor(generator.normal(size=(size, size)))
    matrix = matrix @ matrix.T
    values, vectors = torch.linalg.eigh(matrix)
    asked = []

    def operator(v):
        asked.append(v)
        return v @ matrix

    known = tridiagonalize(operator, torch.tensor(generator.normal(size=(1, size))), steps)
    np.testing.assert_allclose(known.images[0], known.basis[0] @ matrix, atol=1e-9 * float(values[-1]))
    before = len(asked)
    start = {"near": vectors[:, -1] + 0.1 * vectors[:, 0], "known": known.basis[0, 0], "random": torch.randn(size)}[
        kind
    ]
    found = refined(operator, known, start.double()[None], tolerance=1e-10)
    assert found.values.item() == pytest.approx(values[-1].item(), rel=1e-9)
    assert found.products == len(asked) - before <= size
    assert found.residuals.item() <= 1e-9
    np.testing.assert_allclose(found.images[0], found.vectors[0] @ matrix, atol=1e-8 * float(values[-1]))


def test_refining_ends_where_a_tolerance_cannot_be_reached():
    values = torch.linspace(1, 2, 300)
    noise = torch.Generator().manual_seed(0)

    def rough(v):  # an operator with products of relative error 1e-3
        return v * values + 1e-3 * torch.randn(v.shape, generator=noise)

    known = tridiagonalize(rough, torch.ones(1, 300), 3)
    found = refined(rough, known, known.basis[:, 0].float(), tolerance=1e-12, most=40)
    assert found.products <= 40
    assert found.values.item() == pytest.approx(2, rel=0.05)
