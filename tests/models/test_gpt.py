import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap

from raysat import InputError, gpt, models
from raysat.models.gpt import CausalAttention
from raysat.models.layers import NTKEmbedding, NTKLinear, NTKUnembedding


def build(width=8, context=5, vocabulary=7, seed=0, **options):
    return models.build(gpt(**{"layers": 2, "heads": 2} | options), width, (context,), vocabulary, seed)


def expected_parameters(m, context, vocabulary, layers, tied):
    """Embeddings; qkv and projection, perceptron, two norms a layer; the last norm; an output of its own."""
    layer = (3 + 1) * m**2 + 2 * 4 * m**2 + 2 * 2 * m
    return vocabulary * m + context * m + layers * layer + 2 * m + (0 if tied else vocabulary * m)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("width", "layers", "heads"), [(6, 1, 1), (8, 3, 4), (384, 6, 6)])
def test_parameters(width, layers, heads, tied):
    network = build(width, 256, 65, layers=layers, heads=heads, tied=tied)
    assert sum(p.numel() for p in network.parameters()) == expected_parameters(width, 256, 65, layers, tied)


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_has_a_logit_for_each_token_at_each_position(tied):
    network = build(tied=tied)
    tokens = torch.randint(7, (4, 5))
    assert network(tokens).shape == (4, 5, 7)
    torch.testing.assert_close(network(tokens[:, :3]), network(tokens)[:, :3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_no_logit_depends_on_what_comes_later_or_on_another_sample(tied):
    network = build(context=6, tied=tied).double()
    tokens = torch.randint(7, (3, 6))
    for t in range(6):
        changed = tokens.clone()
        changed[0, t] = (changed[0, t] + 1) % 7
        before, after = network(tokens), network(changed)
        torch.testing.assert_close(after[0, :t], before[0, :t], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(after[1:], before[1:], rtol=1e-12, atol=1e-12)
        assert ((after[0, t:] - before[0, t:]).abs().amax(1) > 1e-6).all()


def test_attention_agrees_with_pytorchs():
    torch.manual_seed(0)
    attention = CausalAttention(12, 3).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = (x @ attention.qkv.weight.T / 12**0.5).split(12, 2)
    heads = [z.unflatten(2, (3, 4)).transpose(1, 2) for z in (q, k, v)]
    seen = nn.functional.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
    expected = seen @ attention.projection.weight.T / 12**0.5
    torch.testing.assert_close(attention(x), expected, rtol=1e-12, atol=1e-12)


def test_a_tied_head_is_a_use_of_the_embedding_itself():
    tied, untied = build(tied=True), build(tied=False)
    assert type(tied.output) is NTKUnembedding
    assert tied.output.weight is tied.tokens.weight
    assert "output.weight" not in dict(tied.named_parameters())
    assert tied.double().output.weight is tied.tokens.weight
    assert type(untied.output) is NTKLinear
    assert untied.output.weight is not untied.tokens.weight
    h = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(tied.output(h), h @ tied.tokens.weight.T / 8**0.5)


def test_every_parameter_belongs_to_a_leaf_whose_forward_is_seen():
    network = build(tied=True)
    kinds = {type(m) for m in network.modules() if list(m.parameters(recurse=False))}
    assert kinds == {NTKEmbedding, NTKLinear, NTKUnembedding, nn.LayerNorm}
    seen = {}
    for name, module in network.named_modules():
        if list(module.parameters(recurse=False)):
            assert not list(module.children())
            module.register_forward_hook(lambda _, x, y, name=name: seen.update({name: (x[0].shape, y.shape)}))
    network(torch.randint(7, (4, 5)))
    assert seen["positions"] == ((4, 5), (4, 5, 8))
    assert seen["tokens"] == ((4, 5), (4, 5, 8))
    assert seen["output"] == ((4, 5, 8), (4, 5, 7))
    assert all(shape[:2] == (4, 5) for shapes in seen.values() for shape in shapes)


def test_weights_are_standard_normal_and_norms_start_as_identity():
    network = build(64, 64, 65)
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        elif list(module.parameters(recurse=False)):
            weight = module.weight
            assert abs(weight.mean()) < 4.5 / weight.numel() ** 0.5
            assert abs(weight.var() - 1) < 7 / weight.numel() ** 0.5


def test_the_signal_starts_at_order_one_at_any_width():
    tokens = torch.randint(33, (4, 16), generator=torch.Generator().manual_seed(0))

    def sizes(width):
        with torch.no_grad():
            outputs = [build(width, 16, 33, seed, tied=False)(tokens) for seed in range(8)]
        return torch.stack(outputs).square().mean().item()

    small, large = sizes(16), sizes(128)
    assert 0.5 < small < 2
    assert 0.5 < large < 2
    assert 1 / 1.3 < small / large < 1.3


def test_tied_the_logit_of_the_token_itself_grows_like_the_square_root_of_the_width():
    tokens = torch.randint(33, (4, 16), generator=torch.Generator().manual_seed(0))
    for width in (16, 64, 256):
        network = build(width, 16, 33, tied=True)
        with torch.no_grad():
            logits = network(tokens)
            stream = network.tokens(tokens) + network.positions(torch.arange(16).expand_as(tokens))
            variance = network.blocks(stream).var(-1).mean()
        own = nn.functional.one_hot(tokens, 33).bool()
        assert logits[own].mean() == pytest.approx((width / variance.item()) ** 0.5, rel=0.25)
        assert 0.5 < logits[~own].square().mean() < 2


@pytest.mark.parametrize("tied", [True, False])
def test_forward_and_reverse_mode_and_samples_one_by_one_agree(tied):
    network = build(4, 3, 5, tied=tied).double()
    weights = {name: p.detach() for name, p in network.named_parameters()}
    tokens = torch.randint(5, (3, 3))
    direction = {name: torch.randn_like(w) for name, w in weights.items()}
    rows = vmap(jacrev(lambda w, sample: functional_call(network, w, (sample[None],))[0]), (None, 0))(weights, tokens)
    jacobian = torch.cat([row.flatten(3) for row in rows.values()], 3)

    outputs, forward = jvp(lambda w: functional_call(network, w, (tokens,)), (weights,), (direction,))
    flat = torch.cat([d.flatten() for d in direction.values()])
    torch.testing.assert_close(outputs, network(tokens), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(forward, jacobian @ flat, rtol=1e-9, atol=1e-9)

    cotangent = torch.randn(3, 3, 5, dtype=torch.float64)
    (gradients,) = vjp(lambda w: functional_call(network, w, (tokens,)), weights)[1](cotangent)
    expected = torch.einsum("ntv,ntvp->p", cotangent, jacobian)
    torch.testing.assert_close(torch.cat([g.flatten() for g in gradients.values()]), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_parameter_has_a_gradient(dtype):
    network = build().to(dtype)
    output = network(torch.arange(7).repeat(5)[:35].view(7, 5))
    assert output.dtype == dtype
    for gradient in torch.autograd.grad(output.square().sum(), list(network.parameters())):
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_a_seed_means_the_same_network():
    tokens = torch.randint(7, (2, 5))
    assert torch.equal(build(seed=1)(tokens), build(seed=1)(tokens))
    assert not torch.equal(build(seed=1)(tokens), build(seed=2)(tokens))


def test_the_model_is_plain_data():
    model = gpt(2, 4, False, 2)
    assert model == gpt(2, 4, False, 2.0)
    assert model.options == tuple(sorted(model.options))
    assert [gpt().option(name) for name in ("layers", "heads", "tied")] == [6, 6, False]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": 0}, "layers\\) has 0.*whole numbers of at least 1"),
        ({"heads": 1.5}, "heads\\) has 1.5.*whole number"),
        ({"heads": True}, "heads\\) has True.*whole number"),
        ({"tied": 1}, "tied=1.*True or False"),
        ({"output_gain": -1}, "output_gain\\) has -1.*positive"),
    ],
)
def test_an_option_that_cannot_be_built_is_named(options, words):
    with pytest.raises(InputError, match=words):
        gpt(**options)


@pytest.mark.parametrize(("width", "nearest"), [(100, 102), (384 + 2, 384), (2, 6)])
def test_a_width_that_the_heads_do_not_divide_is_refused(width, nearest):
    with pytest.raises(InputError, match=rf"heads=6.*width {width}.*multiple of 6, such as {nearest},"):
        build(width, heads=6)


def test_samples_that_are_no_tokens_are_refused():
    with pytest.raises(InputError, match=r"sequences \[L\] of tokens.*use resnet\(\) or mlp\(\)"):
        models.build(gpt(), 6, (3, 8, 8), 10, seed=0)
    with pytest.raises(InputError, match=r"int64 tokens, but the inputs are torch\.float32"):
        build()(torch.randn(4, 5))
