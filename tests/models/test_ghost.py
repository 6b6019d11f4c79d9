import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raysat import InputError, mlp, models, ntk_statistics, resnet
from raysat.models.ghost import GhostBatchNorm


def pair(ghost, channels=3):
    """The layer and PyTorch's, with the same random weights, in float64."""
    ours, theirs = GhostBatchNorm(channels, ghost).double(), nn.BatchNorm2d(channels).double()
    for layer in (ours, theirs):
        generator = torch.Generator().manual_seed(1)
        for parameter in layer.parameters():
            parameter.data = torch.randn(channels, generator=generator, dtype=torch.float64)
    return ours, theirs


def images(n, seed=0):
    return 2 + 3 * torch.randn(n, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("ghost", [0, 8])
def test_at_the_batchs_size_it_is_batch_norm_and_so_are_its_gradients(ghost):
    ours, theirs = pair(ghost)
    inputs = [images(8).requires_grad_() for _ in range(2)]
    outputs = [layer(x) for layer, x in zip((ours, theirs), inputs, strict=True)]
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    for layer, x, output in zip((ours, theirs), inputs, outputs, strict=True):
        (output * torch.arange(output.numel()).view_as(output)).sum().backward()
        assert x.grad.abs().max() > 0
        assert layer.weight.grad.abs().max() > 0
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-10, atol=1e-8)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)


@given(st.integers(1, 12), st.integers(1, 5))
def test_at_ghost_size_g_it_is_batch_norm_of_each_chunk(n, ghost):
    ours, theirs = pair(ghost)
    x = images(n)
    chunks = [copy.deepcopy(theirs)(chunk) for chunk in x.split(ghost)]
    torch.testing.assert_close(ours(x), torch.cat(chunks), rtol=1e-12, atol=1e-12)


def test_evaluation_is_by_algorithm_1():
    """Hoffer et al. 2017: mu_run and sigma_run are averaged over K ghost batches, the later ones counting more."""
    eta, eps, ghost = 0.1, 1e-5, 4
    layer, _ = pair(ghost)
    mu_run, sigma_run = torch.zeros(3, dtype=torch.float64), torch.full([3], (1 + eps) ** 0.5, dtype=torch.float64)
    for seed in range(3):
        x = images(12, seed)
        layer(x)
        parts = x.view(3, ghost, 3, -1).transpose(1, 2).flatten(2)  # K ghost batches, channels, numbers
        mu = parts.mean(2)
        sigma = ((parts - mu[..., None]).square().mean(2) + eps).sqrt()
        weights = (1 - eta) ** torch.arange(2, -1, -1, dtype=torch.float64)[:, None] * eta  # (K - i) for i = 1, ..., K
        assert (1 - eta) ** 3 + weights.sum() == pytest.approx(1)  # as an average's do
        mu_run = (1 - eta) ** 3 * mu_run + (weights * mu).sum(0)
        sigma_run = (1 - eta) ** 3 * sigma_run + (weights * sigma).sum(0)
    layer.eval()
    x = images(5, 9)

    def at(v):
        return v.view(3, 1, 1)

    expected = at(layer.weight) * (x - at(mu_run)) / at(sigma_run) + at(layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


def test_evaluation_changes_nothing_and_mixes_nothing():
    layer, _ = pair(4)
    layer(images(8))
    layer.eval()
    before = copy.deepcopy(layer.state_dict())
    x = images(8, 3)
    torch.testing.assert_close(layer(x)[:1], layer(x[:1]), rtol=0, atol=0)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


def test_it_takes_vectors_as_well_down_to_one():
    layer = GhostBatchNorm(3, 2).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x), torch.cat([nn.BatchNorm1d(3).double()(part) for part in x.split(2)]))
    torch.testing.assert_close(layer(x[:1]), torch.zeros(1, 3, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("model", [mlp(1, norm="batch", ghost=4), resnet(depth=10, norm="batch")])
def test_models_with_it_train_on_batches_and_have_statistics_of_constants(model):
    network = models.build(model, 4, (2, 8, 8), 3, 0)
    x = torch.randn(8, 2, 8, 8)
    assert any(isinstance(module, GhostBatchNorm) for module in network.modules())
    assert not torch.allclose(network(x), torch.cat([network(one) for one in x.split(1)]))
    norms = [name for name, module in network.named_modules() if isinstance(module, GhostBatchNorm)]
    assert ntk_statistics(network, x, torch.randn(8, 3)).frozen_norms == ", ".join(norms)


def test_the_option_is_left_out_of_models_without_it():
    assert dict(mlp().options).keys() == {"activation", "depth", "hidden_gain", "output_gain"}
    assert resnet(norm="batch", ghost=8).option("ghost") == 8
    with pytest.raises(InputError, match="ghost=8"):
        resnet(ghost=8)
    with pytest.raises(InputError, match="ghost"):
        mlp(ghost=-1)
