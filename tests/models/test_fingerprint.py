"""Whether two networks are told apart by what they are made of, and what a builder may draw from."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from raysat import InputError, mlp, models
from raysat.models.architectures import ARCHITECTURES, Architecture
from raysat.models.fingerprint import digest, fingerprint, has
from raysat.spec.cells import Model
from raysat.user_code.seeding import seeded


def made(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    network.register_buffer("mask", torch.tensor([[0.0, -torch.inf], [0.0, 0.0]]))
    network.register_buffer("count", torch.tensor(3))
    network.register_buffer("none", torch.zeros(0))
    return network.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_same_weights_have_the_same_fingerprint_and_others_do_not(dtype):
    found = fingerprint(made(dtype=dtype))
    assert fingerprint(made(dtype=dtype)) == found
    assert has(made(dtype=dtype), found)
    assert not has(made(1, dtype), found)


@pytest.mark.parametrize("name", ["0.weight", "1.running_mean", "mask"])
def test_every_parameter_and_buffer_counts(name):
    found, other = fingerprint(made()), made()
    with torch.no_grad():
        dict([*other.named_parameters(), *other.named_buffers()])[name][0] += 0.5
    assert not has(other, found)


def test_rounding_does_not_and_a_hash_alone_would_see_it():
    found, other = fingerprint(made()), made()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + 2e-7)
    assert digest(other) != found.split()[0]
    assert has(other, found)


def test_two_draws_without_an_output_are_told_apart():
    """Where the last layer is zero, every draw has the same loss."""
    networks = [made(seed) for seed in (0, 1)]
    for network in networks:
        nn.init.zeros_(network[2].weight)
    assert not has(networks[1], fingerprint(networks[0]))


DRAWS = {
    "torch": lambda: torch.randn(3).tolist(),
    "numpy": lambda: np.random.randn(3).tolist(),
    "random": lambda: [random.gauss(0, 1) for _ in range(3)],
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_builder_may_draw_from_any_generator_and_each_is_left_where_it_was(name, monkeypatch):
    draw = DRAWS[name]

    def build(width, input_shape, outputs):
        layer = nn.Linear(3, 1)
        layer.weight.data = torch.tensor([draw()])
        return layer

    monkeypatch.setitem(ARCHITECTURES, "drawn", Architecture(mlp, build))
    weights = []
    for seed in (0, 0, 1, 5 + (1 << 32)):
        draw()  # what the process did before
        weights.append(models.build(Model("drawn"), 1, (3,), 1, seed).weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    with seeded(7):
        first = draw()
        models.build(Model("drawn"), 1, (3,), 1, 0)
        then = draw()
    with seeded(7):
        assert [draw(), draw()] == [first, then]


def test_built_in_weights_are_those_of_torchs_seed():
    """As they were before other generators were seeded."""
    network = models.build(mlp(1), 4, (3,), 2, 11)
    torch.manual_seed(11)
    assert torch.equal(next(network.parameters()), torch.randn(4, 3))


def test_a_network_that_draws_its_weights_later_is_refused(monkeypatch):
    lazy = Architecture(mlp, lambda *_: nn.Sequential(nn.Flatten(), nn.LazyLinear(2)))
    monkeypatch.setitem(ARCHITECTURES, "lazy", lazy)
    with pytest.raises(InputError, match=r"1 \(LazyLinear\) draws its weights in its first .* call the network once"):
        models.build(Model("lazy"), 1, (3,), 2, 0)
