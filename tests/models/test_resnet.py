import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap

from raysat import InputError, models, resnet
from raysat.models.layers import NTKConv2d, NTKLinear
from raysat.models.mlp import ACTIVATIONS
from raysat.models.resnet import Block, group_norm

NORMS = ("group", "none")


def build(width=4, shape=(2, 8, 8), outputs=3, seed=0, **options):
    return models.build(resnet(**{"depth": 10} | options), width, shape, outputs, seed)


def expected_parameters(m, k, inputs, outputs, norm):
    """Stem, stages, shortcuts, output; each norm has two numbers a channel."""
    stage1 = 2 * k * 9 * m**2
    stage2 = 9 * m * 2 * m + (2 * k - 1) * 9 * (2 * m) ** 2 + m * 2 * m
    stage3 = 9 * 2 * m * 4 * m + (2 * k - 1) * 9 * (4 * m) ** 2 + 2 * m * 4 * m
    norms = 2 * (2 * k * m + m + (2 * k - 1) * 2 * m + 2 * m + (2 * k - 1) * 4 * m + 4 * m)
    return 9 * inputs * m + stage1 + stage2 + stage3 + 4 * m * outputs + (norms if norm == "group" else 0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("depth", "width"), [(10, 5), (22, 8), (28, 16), (34, 3)])
def test_parameters_and_depth(depth, width, norm):
    network = build(width, (3, 32, 32), 10, depth=depth, norm=norm)
    k = (depth - 4) // 6
    assert sum(p.numel() for p in network.parameters()) == expected_parameters(width, k, 3, 10, norm)
    assert sum(isinstance(module, NTKConv2d | NTKLinear) for module in network.modules()) == depth
    assert sum(isinstance(module, Block) for module in network.modules()) == 3 * k


def test_resnet_28_of_16_channels_is_wrn_28_1_without_biases():
    count = sum(p.numel() for p in build(16, (3, 32, 32), 10, depth=28).parameters())
    assert count == 369_488


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 9, 7)])
def test_the_output_is_one_row_a_sample(norm, shape):
    network = build(5, shape, 4, norm=norm)
    assert network(torch.randn(6, *shape)).shape == (6, 4)
    features = network.blocks(network.stem(torch.randn(6, *shape)))
    assert features.shape == (6, 20, -(-shape[1] // 4), -(-shape[2] // 4))


@pytest.mark.parametrize("norm", NORMS)
def test_no_sample_depends_on_another(norm):
    network = build(norm=norm).double()
    x = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    changed = torch.cat([x[:1], torch.randn(3, 2, 8, 8, dtype=torch.float64)])
    torch.testing.assert_close(network(x)[0], network(changed)[0], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(network(x)[1], network(changed)[1])


@pytest.mark.parametrize("norm", NORMS)
def test_a_block_is_its_formula(norm):
    torch.manual_seed(0)
    block = Block(4, 6, 2, norm, "tanh", 1.3, 0.5).double()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)

    def normalized(z, groups):
        if norm == "none":
            return z
        parts = z.unflatten(1, (groups, -1))
        mean = parts.mean((2, 3, 4), keepdim=True)
        variance = parts.var((2, 3, 4), correction=0, keepdim=True)
        return ((parts - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)

    def convolved(z, weight, gain, stride):
        size = weight.shape[-1]
        patches = nn.functional.unfold(z, size, padding=size // 2, stride=stride)
        return gain * (weight.flatten(1) @ patches / patches.shape[1] ** 0.5).unflatten(2, (3, 3))

    activated = normalized(x, 2).tanh()
    branch = normalized(convolved(activated, block.conv1.weight, 1.3, 2), 2).tanh()
    branch = convolved(branch, block.conv2.weight, 1.3, 1)
    expected = convolved(activated, block.shortcut.weight, 1.3, 2) + 0.5 * branch
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)


def test_weights_are_standard_normal_and_norms_start_as_identity():
    network = build(16, (3, 8, 8), 10)
    for module in network.modules():
        if isinstance(module, NTKConv2d | NTKLinear):
            weight = module.weight
            assert abs(weight.mean()) < 4.5 / weight.numel() ** 0.5
            assert abs(weight.var() - 1) < 7 / weight.numel() ** 0.5
        elif isinstance(module, nn.GroupNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    scales = {name: module.scale for name, module in network.named_modules() if hasattr(module, "scale")}
    assert scales["stem"] == pytest.approx((3 * 9) ** -0.5)
    assert scales["blocks.1.conv1"] == pytest.approx((2 / (16 * 9)) ** 0.5)
    assert scales["blocks.1.shortcut"] == pytest.approx((2 / 16) ** 0.5)
    assert scales["output"] == pytest.approx(64**-0.5)


@pytest.mark.parametrize("channels", [*range(1, 40), 64, 100, 512])
def test_any_number_of_channels_has_a_group_norm(channels):
    groups = group_norm(channels).num_groups
    assert channels % groups == 0
    assert groups <= max(1, channels // 2)
    if channels >= 16 and channels % 8 == 0:
        assert groups == 8
    assert group_norm(channels)(torch.randn(2, channels, 3, 3)).isfinite().all()


@pytest.mark.parametrize("norm", NORMS)
def test_the_signal_starts_at_order_one_at_any_width_and_depth(norm):
    def sizes(width, depth):
        x = torch.randn(8, 3, 8, 8)
        with torch.no_grad():
            networks = [build(width, (3, 8, 8), 10, seed, norm=norm, depth=depth) for seed in range(8)]
            stream = sum(net.blocks(net.stem(x)).square().mean() for net in networks) / len(networks)
            return stream.item(), sum(net(x).square().mean() for net in networks).item() / len(networks)

    small, large, deep = sizes(8, 10), sizes(32, 10), sizes(8, 40)
    for stream, output in (small, large, deep):
        assert 0.5 < stream < 12
        assert 0.05 < output < 3
    for k in range(2):
        assert 1 / 2 < small[k] / large[k] < 2
    if norm == "none":
        assert 1 / 2.5 < deep[0] / small[0] < 2.5


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_forward_and_reverse_mode_and_samples_one_by_one_agree(norm, activation):
    network = build(3, (2, 6, 6), 2, norm=norm, activation=activation).double()
    weights = {name: p.detach() for name, p in network.named_parameters()}
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64)
    direction = {name: torch.randn_like(w) for name, w in weights.items()}
    rows = vmap(jacrev(lambda w, sample: functional_call(network, w, (sample[None],))[0]), (None, 0))(weights, x)
    jacobian = torch.cat([row.flatten(2) for row in rows.values()], 2)

    outputs, forward = jvp(lambda w: functional_call(network, w, (x,)), (weights,), (direction,))
    flat = torch.cat([d.flatten() for d in direction.values()])
    torch.testing.assert_close(outputs, network(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(forward, jacobian @ flat, rtol=1e-9, atol=1e-9)

    cotangent = torch.randn(3, 2, dtype=torch.float64)
    (gradients,) = vjp(lambda w: functional_call(network, w, (x,)), weights)[1](cotangent)
    expected = torch.einsum("nc,ncp->p", cotangent, jacobian)
    torch.testing.assert_close(torch.cat([g.flatten() for g in gradients.values()]), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_every_parameter_has_a_gradient(dtype, activation):
    network = build(activation=activation).to(dtype)
    output = network(torch.randn(4, 2, 8, 8, dtype=dtype))
    assert output.dtype == dtype
    for gradient in torch.autograd.grad(output.square().sum(), list(network.parameters())):
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_a_seed_means_the_same_network():
    x = torch.randn(2, 2, 8, 8)
    assert torch.equal(build(seed=1)(x), build(seed=1)(x))
    assert not torch.equal(build(seed=1)(x), build(seed=2)(x))


def test_the_model_is_plain_data():
    model = resnet(34, "none", "tanh", 1, 2)
    assert model == resnet(34, "none", "tanh", 1.0, 2.0)
    assert model.options == tuple(sorted(model.options))
    assert resnet().option("depth") == 28
    assert resnet().option("norm") == "group"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 27}, r"depth=27.*give 6k \+ 4"),
        ({"depth": 4}, r"give 6k \+ 4"),
        ({"depth": 28.0}, r"give 6k \+ 4"),
        ({"depth": True}, r"give 6k \+ 4"),
        ({"norm": "layer"}, "use one of group, batch, none"),
        ({"activation": "swish"}, "use one of relu"),
        ({"hidden_gain": 0}, "hidden_gain\\) has 0.*positive"),
        ({"output_gain": float("inf")}, "output_gain\\) has inf.*positive"),
    ],
)
def test_an_option_that_cannot_be_built_is_named(options, words):
    with pytest.raises(InputError, match=words):
        resnet(**options)


@pytest.mark.parametrize("shape", [(784,), (8, 8), (3, 4, 8, 8)])
def test_samples_that_are_no_images_are_refused(shape):
    with pytest.raises(InputError, match=r"takes images .*reshape it in the loader, or use mlp"):
        build(shape=shape)
