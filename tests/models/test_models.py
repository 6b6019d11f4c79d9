import pytest
import torch

from raysat import InputError, linear, mlp, models
from raysat.models.layers import NTKConv2d, NTKEmbedding, NTKLinear, NTKUnembedding
from raysat.models.mlp import ACTIVATIONS
from raysat.spec.cells import Model


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_the_network_is_the_papers_formula(activation, depth):
    network = models.build(mlp(depth, activation, 1.3, 0.7), 5, (2, 3), 4, seed=1).double()
    weights = list(network.parameters())
    assert len(weights) == depth + 1
    x = torch.randn(7, 2, 3, dtype=torch.float64)
    alpha = x.flatten(1)
    sigma = {
        "relu": lambda z: z.clamp(min=0),
        "tanh": torch.tanh,
        "gelu": lambda z: z * (1 + torch.erf(z / 2**0.5)) / 2,
        "erf": torch.erf,
        "identity": lambda z: z,
    }[activation]
    for weight in weights[:-1]:
        alpha = sigma(1.3 * alpha @ weight.T / alpha.shape[1] ** 0.5)
    expected = 0.7 * alpha @ weights[-1].T / alpha.shape[1] ** 0.5
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)


def test_weights_are_standard_normal_and_there_are_no_biases():
    network = models.build(mlp(2), 300, (400,), 10, seed=0)
    for weight in network.parameters():
        assert weight.ndim == 2
        assert abs(weight.mean()) < 4 / weight.numel() ** 0.5
        assert abs(weight.var() - 1) < 6 / weight.numel() ** 0.5


def test_a_seed_means_the_same_weights_whatever_was_drawn_before():
    one = models.build(mlp(), 8, (4,), 2, seed=3)
    torch.randn(10)
    state = torch.random.get_rng_state()
    two = models.build(mlp(), 8, (4,), 2, seed=3)
    other = models.build(mlp(), 8, (4,), 2, seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_the_linear_model_has_no_scaling():
    network = models.build(linear(), 0, (3,), 2, seed=0)
    x = torch.randn(5, 3)
    torch.testing.assert_close(network(x), x @ next(network.parameters()).T)


def test_layers_say_their_sizes():
    assert "3, 2, scale=0.5774" in repr(NTKLinear(3, 2))
    assert "3, 2, size=5, stride=2, scale=0.1155" in repr(NTKConv2d(3, 2, 5, 2))
    assert "7, 4" in repr(NTKEmbedding(7, 4))
    assert "4, 7, tied, scale=0.5" in repr(NTKUnembedding(NTKEmbedding(7, 4)))


@pytest.mark.parametrize(
    ("builder", "words"),
    [
        ("resnet50", "unknown: use mlp, linear"),
        ("nowhere:build", "put nowhere.py next to the sweep file"),
        ("raysat.spec.sweep:nothing", "define it there"),
        ("builtins:print", "return a torch.nn.Module"),
    ],
)
def test_a_model_that_cannot_be_had_is_named(builder, words):
    with pytest.raises(InputError, match=words):
        models.build(Model(builder), 8, (4,), 2, seed=0)
