"""The base stepsize in place of 1/beta(b), against the curvature along the gradient by plain autograd."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raysat.losses import LOSSES
from raysat.models.unpacked import adapt
from raysat.ntk.base_stepsize import HALVINGS, base_stepsize

FINE = 2 ** (1 / 2**HALVINGS)


def problem(seed, n=12, inputs=5, outputs=2, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(n, inputs, generator=generator, dtype=torch.float64)
    y = torch.randn(n, outputs, generator=generator, dtype=torch.float64)
    return x, y


def curvature(network, x, y):
    """Return `g^T H g / g^T g`, by double backward through the mean loss."""
    parameters = list(network.parameters())
    value = (network(x) - y).square().sum() / (2 * len(x))
    gradient = torch.autograd.grad(value, parameters, create_graph=True)
    square = sum((part * part).sum() for part in gradient)
    product = torch.autograd.grad(square, parameters)  # 2 H g
    dot = sum((one * part).sum() for one, part in zip(product, gradient, strict=True)) / 2
    return (dot / square).item()


@given(st.integers(0, 10_000), st.sampled_from([1e-3, 1.0, 1e3]))
def test_of_a_linear_network_it_is_the_inverse_curvature(seed, scale):
    x, y = problem(seed, scale=scale)
    torch.manual_seed(seed)
    network = nn.Linear(5, 2).double()
    before = [p.clone() for p in network.parameters()]
    found = base_stepsize(network, x, y, LOSSES["mse"], chunk=5)
    exact = 1 / curvature(network, x, y)
    assert exact / FINE <= found <= exact * (1 + 1e-6)
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))


class Backward(torch.autograd.Function):
    """A function without second derivatives."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, gradient):
        return gradient * (context.saved_tensors[0] > 0)


class Odd(nn.Module):
    """Network that mixes the samples of its batch, draws random numbers, holds state and has no second derivatives."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        hidden = Backward.apply(self.norm(self.first(x)))
        return self.last(nn.functional.dropout(hidden - hidden.mean(0), 0.3))


def test_it_serves_what_has_no_statistics_and_twice_the_same():
    x, y = problem(0, n=40)
    found = []
    for disturbed in (0, 3):
        torch.manual_seed(1)
        network = Odd().double()
        torch.rand(disturbed)
        found.append(base_stepsize(network, x, y, LOSSES["mse"], chunk=40))
    assert found[0] == found[1]
    assert 1e-3 < found[0] < 1e3


class Added(nn.Module):
    """A network of two inputs."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, one, other):
        return self.network(one + other)


def test_inputs_of_several_tensors_have_that_of_their_network():
    x, y = problem(2)
    network = nn.Linear(x.shape[1], y.shape[1]).double()
    alone = base_stepsize(network, x, y, LOSSES["mse"], chunk=7)
    both, fields = adapt(Added(network), {"one": x / 4, "other": 3 * x / 4})
    assert base_stepsize(both, fields, y, LOSSES["mse"], chunk=7) == pytest.approx(alone, rel=1e-9)


def test_at_it_the_loss_falls_by_half_of_what_the_gradient_promises_and_a_little_further_by_less():
    x, y = problem(3)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    found = base_stepsize(network, x, y, LOSSES["mse"], chunk=100)

    def loss():
        return (network(x) - y).square().sum() / (2 * len(x))

    initial = loss()
    gradient = torch.autograd.grad(initial, list(network.parameters()))
    square = sum((part * part).sum() for part in gradient)

    def fallen(t):
        with torch.no_grad():
            for p, part in zip(network.parameters(), gradient, strict=True):
                p -= t * part
            value = loss()
            for p, part in zip(network.parameters(), gradient, strict=True):
                p += t * part
        return ((initial - value) / (t * square)).item()

    assert fallen(found) >= 0.5
    assert fallen(found * FINE * 1.001) < 0.5


@pytest.mark.parametrize("weight", [0.0, math.nan])
def test_where_there_is_no_gradient_or_no_loss_there_is_none(weight):
    network = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    for parameter in network.parameters():
        nn.init.constant_(parameter, weight)
    x, _ = problem(0)
    assert math.isnan(base_stepsize(network, x, torch.zeros(12, 2, dtype=torch.float64), LOSSES["mse"], chunk=4))
