"""Inspection of a network: what it distinguishes, and the sentence with which it rejects a network."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raysat.ntk import NoStatistics, ntk_statistics, reason_against


class Around(nn.Module):
    """Two layers with a module between them."""

    def __init__(self, between):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.between = nn.Linear(4, 6), nn.Linear(6, 3), between

    def forward(self, x):
        return self.two(self.between(torch.tanh(self.one(x))))


class Calls(nn.Module):
    """Module that calls a function, with a buffer that counts the calls."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("count", torch.zeros(()))

    def forward(self, h):
        self.count += 1
        return self.function(h, self)


X = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda h, m: h - h.mean(0), r"between \(Calls\) mixes the samples"),
        (lambda h, m: h / len(h), r"between \(Calls\) mixes|mixes the samples"),
        (lambda h, m: torch.softmax(h @ h.mT, -1) @ h, r"between \(Calls\) mixes the samples"),
        (lambda h, m: F.batch_norm(h, None, None, training=True), r"between \(Calls\) mixes the samples"),
        (lambda h, m: F.dropout(h), r"between \(Calls\) draws random numbers .*training=self.training"),
        (lambda h, m: h + torch.randn_like(h), r"between \(Calls\) draws random numbers"),
        (lambda h, m: h * random.random(), r"between \(Calls\) draws random numbers"),
        (lambda h, m: h * np.random.rand(), r"between \(Calls\) draws random numbers"),
        (lambda h, m: h * torch.rand(1, generator=GENERATOR), "different outputs for the same input"),
        (lambda h, m: h.detach() * float("nan"), "output is not finite"),
        (lambda h, m: h[:, :5], "does not run on 3 samples .*mat1 and mat2"),
        (lambda h, m: (_ for _ in ()).throw(ZeroDivisionError("no luck")), "does not run .*ZeroDivisionError: no luck"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_sentence(function, words):
    network = Around(Calls(function))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(NoStatistics, match=words):
        ntk_statistics(network, X)
    assert reason_against(network, X)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())


GENERATOR = torch.Generator().manual_seed(0)


def test_a_network_that_draws_where_it_changes_nothing_is_served():
    network = Around(Calls(lambda h, m: h + 0 * torch.rand(1)))
    assert ntk_statistics(network, X).gamma == ntk_statistics(Around(nn.Identity()), X).gamma


def test_a_state_that_changes_is_that_which_was_given():
    """Every pass starts from the given state; otherwise the factor would change from pass to pass."""
    changing = Around(Calls(lambda h, m: h * (1 + m.count)))
    expected = ntk_statistics(Around(Calls(lambda h, m: 2 * h)), X, k_tolerance=1e-6)
    found = ntk_statistics(changing, X, k_tolerance=1e-6)
    assert changing.between.count == 0
    for name in ("gamma", "gamma_mean", "k_op"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-5)


def test_modules_that_draw_are_turned_off_alone():
    network = Around(nn.Sequential(nn.Dropout(0.3), nn.Sequential(nn.RReLU(), nn.AlphaDropout(0.2))))
    found = ntk_statistics(network, X)
    assert found.off == "between.0, between.1.0, between.1.1"
    assert found.gamma == ntk_statistics(network.eval(), X).gamma
    network.train()


def test_zeros_do_not_hide_what_is_mixed():
    network = Around(Calls(lambda h, m: h - h.mean(0)))
    for parameter in network.two.parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(NoStatistics, match="mixes the samples"):
        ntk_statistics(network, X)


class CountsBatch(torch.autograd.Function):
    """Identity with a gradient that depends on the batch size."""

    @staticmethod
    def forward(ctx, h):
        return h.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient / len(gradient)


def test_gradients_that_mix_are_refused():
    with pytest.raises(NoStatistics, match=r"the gradient of one.(weight|bias) mixes the samples"):
        ntk_statistics(Around(Calls(lambda h, m: CountsBatch.apply(h))), X)
    network = nn.Sequential(nn.Embedding(9, 4, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(NoStatistics, match=r"0 \(Embedding\) divides its gradient .* set scale_grad_by_freq=False"):
        ntk_statistics(network, torch.arange(12).view(4, 3) % 9)


def test_inputs_that_a_network_changes_are_left_alone():
    network, x = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)), X.clone()
    found = ntk_statistics(network, x)
    assert torch.equal(x, X)
    assert found.gamma == ntk_statistics(nn.Sequential(nn.ReLU(), network[1]), x).gamma


def test_one_sample_alone_is_served():
    network = Around(nn.Identity()).double()
    found = ntk_statistics(network, X[:1].double(), torch.zeros(1, 3).double(), k_tolerance=1e-9)
    assert found.b_star == pytest.approx(1.0)
    assert found.noise_scale == pytest.approx(0.0, abs=1e-12)


def test_a_dead_network_has_no_critical_batch():
    network = Around(nn.ReLU())
    nn.init.constant_(network.two.weight, 0.0)
    network.between = Calls(lambda h, m: torch.relu(h - 5))
    network.two.bias.requires_grad_(False)
    with pytest.raises(NoStatistics, match="the kernel is zero"):
        ntk_statistics(network, X)
