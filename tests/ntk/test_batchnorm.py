"""Frozen batch normalization, against networks whose running averages are set by hand, layer by layer."""

import copy
import math
from contextlib import ExitStack

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from raysat import mlp, models, ntk_statistics, resnet
from raysat.data.fields import Fields
from raysat.models.ghost import GhostBatchNorm
from raysat.models.unpacked import Unpacked
from raysat.ntk import NoStatistics, batchnorm
from raysat.ntk.batchnorm import Moments, frozen_batch_norm

NORMS = nn.modules.batchnorm._BatchNorm


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def scattered(network, seed=1):
    """Return the network with arbitrary weights, and running averages far from the statistics of any data."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * 2 - 0.7
    for module in network.modules():
        if isinstance(module, NORMS) and module.running_var is not None:
            module.running_var.data.abs_().add_(0.3)
    return network


def by_hand(network, x):
    """Return a copy in evaluation mode, its running averages computed layer by layer from full passes."""
    network = copy.deepcopy(network)
    layers = [module for module in network.modules() if isinstance(module, NORMS)]
    for layer in layers:
        if layer.running_mean is None:
            layer.running_mean, layer.running_var = torch.zeros(layer.num_features), torch.ones(layer.num_features)
            layer.double()
    network.eval()
    for layer in layers:  # registered in the order of execution
        seen = []

        def see(_, args, kwargs, seen=seen):
            return seen.extend((*args, *kwargs.values()))

        handle = layer.register_forward_pre_hook(see, with_kwargs=True)
        with torch.no_grad():
            network(x)
        handle.remove()
        numbers = seen[0].transpose(0, 1).reshape(layer.num_features, -1)
        layer.running_mean = numbers.sum(1) / numbers.shape[1]
        layer.running_var = (numbers - layer.running_mean[:, None]).square().sum(1) / numbers.shape[1]
    return network


class Keyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(input=x)


def state(network):
    """Return all that must be restored: modes, hooks, buffers by identity and by value."""
    return [
        (
            module.training,
            getattr(module, "track_running_stats", None),
            dict(module._forward_pre_hooks),
            dict(module._forward_hooks),
            {name: (id(b), None if b is None else b.clone()) for name, b in module._buffers.items()},
        )
        for module in network.modules()
    ]


def assert_same(before, after):
    for one, other in zip(before, after, strict=True):
        assert one[:4] == other[:4]
        assert one[4].keys() == other[4].keys()
        for (identity, value), (identity_after, value_after) in zip(one[4].values(), other[4].values(), strict=True):
            assert identity == identity_after
            assert value is None or torch.equal(value, value_after)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)

    def forward(self, x):
        return x + self.second(F.gelu(self.norm(self.first(x))))


class Vectors(nn.BatchNorm1d):
    """Synchronized norm as users write it: its own training code, PyTorch's in evaluation mode."""

    def forward(self, input):
        if not self.training:
            return super().forward(input)
        mean, square = input.mean(0), input.square().mean(0)
        shape = (1, -1)
        scale = self.weight * (square - mean * mean + self.eps).rsqrt()
        return input * scale.view(shape) + (self.bias - mean * scale).view(shape)


class Resting(nn.BatchNorm1d):
    """Norm that uses its buffers in training mode, too."""

    def forward(self, input):
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class Otherwise(nn.BatchNorm1d):
    """Norm that uses a buffer of its own in evaluation mode."""

    def __init__(self, channels):
        super().__init__(channels)
        self.register_buffer("running_std", torch.ones(channels))

    def forward(self, input):
        if self.training:
            return super().forward(input)
        return (input - self.running_mean) / self.running_std * self.weight + self.bias


class Splits(nn.BatchNorm1d):
    """Ghost batch normalization as users write it, with running averages for each ghost batch."""

    def __init__(self, channels, splits):
        super().__init__(channels)
        self.splits = splits
        self.register_buffer("running_mean", torch.zeros(channels * splits))
        self.register_buffer("running_var", torch.ones(channels * splits))

    def forward(self, input):
        n, c = input.shape
        if self.training:
            weight, bias = self.weight.repeat(self.splits), self.bias.repeat(self.splits)
            means, variances = self.running_mean, self.running_var
            return F.batch_norm(input.view(-1, c * self.splits), means, variances, weight, bias, True).view(n, c)
        return F.batch_norm(input, self.running_mean[:c], self.running_var[:c], self.weight, self.bias)


CASES = {
    "vectors": lambda: (nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)), (12, 4)),
    "first of all": lambda: (nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)), (12, 4)),
    "last of all": lambda: (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), (12, 4)),
    "1d": lambda: (
        nn.Sequential(
            nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.GELU(), nn.Conv1d(3, 3, 3), nn.BatchNorm1d(3), nn.Flatten(),
            nn.Linear(9, 2),
        ),
        (10, 2, 7),
    ),
    "2d": lambda: (
        nn.Sequential(
            nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3, eps=1e-2), nn.Tanh(), nn.Conv2d(3, 2, 2),
            nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3),
        ),
        (9, 2, 5, 5),
    ),
    "3d": lambda: (
        nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2)), (7, 1, 3, 3, 3)
    ),
    "no weights": lambda: (nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 3)), (11, 4)),
    "cumulative": lambda: (nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, momentum=None), nn.Linear(5, 3)), (11, 4)),
    "no averages": lambda: (
        nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3)), (11, 4)
    ),
    "neither": lambda: (
        nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False, track_running_stats=False), nn.Linear(5, 3)),
        (11, 4),
    ),
    "synchronized": lambda: (nn.Sequential(nn.Linear(4, 5), nn.SyncBatchNorm(5), nn.Linear(5, 3)), (11, 4)),
    "ghost": lambda: (nn.Sequential(nn.Linear(4, 5), GhostBatchNorm(5, 3), nn.Linear(5, 3)), (11, 4)),
    "a user's own": lambda: (nn.Sequential(nn.Linear(4, 5), Vectors(5), nn.Linear(5, 3)), (11, 4)),
    "residual": lambda: (nn.Sequential(Residual(), Residual()), (10, 4)),
    "mlp": lambda: (models.build(mlp(2, norm="batch", ghost=4), 5, (4,), 2, 0), (13, 4)),
    "resnet": lambda: (models.build(resnet(10, norm="batch"), 2, (2, 8, 8), 2, 0), (6, 2, 8, 8)),
}  # fmt: skip
NAMES = {
    "first of all": ("0",),
    "1d": ("1", "4"),
    "2d": ("1", "4"),
    "residual": ("0.norm", "1.norm"),
}


@pytest.fixture(params=CASES)
def case(request):
    network, shape = CASES[request.param]()
    return request.param, scattered(network.double()), 1 + 2 * normal(*shape)


def samples_per_pass(monkeypatch, size):
    """Set the number of samples per pass."""
    monkeypatch.setattr(batchnorm._Freezer, "_fitting", lambda *_: size)


@pytest.mark.parametrize("size", [None, 5, 1])
def test_every_sample_has_the_jacobian_of_the_network_by_hand(case, size, monkeypatch):
    name, network, x = case
    if size:
        samples_per_pass(monkeypatch, size)
    reference = by_hand(network, x)
    expected = oracles.jacobians(reference, x)
    assert expected.abs().max() > 1e-3
    before = state(network)
    with frozen_batch_norm(network, x) as frozen:
        torch.testing.assert_close(network(x), reference(x), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(oracles.jacobians(network, x), expected, rtol=1e-9, atol=1e-9)
    assert frozen == NAMES.get(name, frozen)
    assert len(frozen) == sum(isinstance(module, NORMS) for module in network.modules())
    assert_same(before, state(network))


def test_ntk_statistics_are_those_of_the_network_by_hand(case):
    _, network, x = case
    reference = by_hand(network, x)
    y = normal(*reference(x).shape, seed=5)
    expected = oracles.statistics(reference, x, y)
    with frozen_batch_norm(network, x):
        found = ntk_statistics(network, x, y, k_tolerance=1e-9)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-6), name


def test_outputs_are_those_of_a_full_batch_in_training_mode(case):
    _, network, x = case
    with frozen_batch_norm(network, x):
        frozen = network(x)
    for module in network.modules():
        if isinstance(module, GhostBatchNorm):
            module.ghost = 0
    torch.testing.assert_close(frozen, network(x), rtol=1e-8, atol=1e-8)


def test_a_norm_that_is_called_by_keyword():
    network, x = scattered(Keyword().double()), normal(6, 4)
    expected = by_hand(network, x)(x)
    with frozen_batch_norm(network, x) as names:
        assert names == ("norm",)
        torch.testing.assert_close(network(x), expected)


@given(st.data())
@settings(max_examples=50)
def test_random_networks_in_random_parts(data):
    layers, width = [], data.draw(st.integers(1, 4), "inputs")
    shape = (width,)
    for _ in range(data.draw(st.integers(1, 4), "blocks")):
        after = data.draw(st.integers(1, 4), "width")
        layers.append(nn.Linear(shape[0], after))
        options = {"affine": data.draw(st.booleans()), "track_running_stats": data.draw(st.booleans())}
        kind = data.draw(st.sampled_from(["batch", "sync", "ghost", "none"]), "norm")
        if kind == "ghost":
            layers.append(GhostBatchNorm(after, data.draw(st.integers(0, 3))))
        elif kind != "none":
            layers.append((nn.BatchNorm1d if kind == "batch" else nn.SyncBatchNorm)(after, **options))
        layers.append(data.draw(st.sampled_from([nn.Tanh(), nn.ReLU(), nn.GELU()]), "activation"))
        shape = (after,)
    network = scattered(nn.Sequential(*layers, nn.Linear(shape[0], 2)).double(), data.draw(st.integers(0, 99)))
    x = normal(data.draw(st.integers(2, 9), "n"), width, seed=data.draw(st.integers(0, 99), "seed"))
    reference, before = by_hand(network, x), state(network)
    with pytest.MonkeyPatch.context() as patch, frozen_batch_norm(network, x) as whole:
        samples_per_pass(patch, data.draw(st.integers(1, 9), "part"))
        expected = oracles.jacobians(reference, x)
        torch.testing.assert_close(oracles.jacobians(network, x), expected, rtol=1e-8, atol=1e-8)
        with frozen_batch_norm(copy.deepcopy(network), x) as again:
            assert again == ()
    assert_same(before, state(network))
    with pytest.MonkeyPatch.context() as patch:
        samples_per_pass(patch, data.draw(st.integers(1, 9), "part"))
        with frozen_batch_norm(network, x) as parts:
            torch.testing.assert_close(oracles.jacobians(network, x), expected, rtol=1e-8, atol=1e-8)
    assert parts == whole
    assert_same(before, state(network))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.floats(-1e6, 1e6), st.integers(0, 1000))
def test_moments_by_parts_cancel_nothing(sizes, offset, seed):
    x = normal(sum(sizes), 2, 3, seed=seed) + offset
    moments = Moments()
    for part in x.split(sizes):
        moments.add(part)
    numbers = x.transpose(0, 1).reshape(2, -1)
    mean = torch.tensor([math.fsum(row) / len(row) for row in numbers.tolist()], dtype=torch.float64)
    torch.testing.assert_close(moments.mean, mean, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(moments.variance, (numbers - mean[:, None]).square().mean(1), rtol=1e-8, atol=1e-12)
    assert moments.count == 3 * len(x)


def test_moments_do_not_depend_on_how_much_is_cast_at_a_time(monkeypatch):
    x, whole, parts = 5 + normal(50, 3, 4), Moments(), Moments()
    whole.add(x)
    monkeypatch.setattr(batchnorm, "PART", 30)
    parts.add(x)
    torch.testing.assert_close((parts.mean, parts.variance), (whole.mean, whole.variance), rtol=1e-14, atol=1e-14)


def test_what_does_not_normalize_by_its_batch_is_left_alone():
    x = normal(5, 4)
    for network in (nn.Sequential(nn.Linear(4, 2)), nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)).eval()):
        calls = []
        network.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        with frozen_batch_norm(network.double(), x) as names:
            assert names == ()
        assert calls == []
    resting = scattered(nn.Sequential(nn.Linear(4, 3), Resting(3), nn.BatchNorm1d(3)).double())
    before = state(resting)
    with frozen_batch_norm(resting, x) as names:
        assert names == ("2",)
        assert resting[1].training
        assert resting[1].running_mean is not None
        assert id(resting[1].running_mean) == before[2][4]["running_mean"][0]
    assert_same(before, state(resting))


def test_other_layers_keep_their_mode_and_evaluated_norms_their_averages():
    network = scattered(
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)).double()
    )
    network[1].eval()
    kept = network[1].running_mean.clone()
    with frozen_batch_norm(network, normal(5, 4)) as names:
        assert names == ("2",)
        assert [module.training for module in network] == [True, False, False, True, True]
        assert torch.equal(network[1].running_mean, kept)


@pytest.mark.parametrize("size", [None, 2])
def test_a_norm_that_is_never_reached_is_left_alone(size, monkeypatch):
    if size:
        samples_per_pass(monkeypatch, size)

    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.norm, self.spare = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(self.inner(x))

    network = Unused().double()
    with frozen_batch_norm(network, normal(5, 4)) as names:
        assert names == ("norm",)
        assert network.spare.training


class Routed(nn.Module):
    """Two experts, each applied to the samples of one sign."""

    def __init__(self):
        super().__init__()
        self.positive, self.negative = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x):
        out = torch.zeros_like(x)
        for norm, chosen in ((self.positive, x[:, 0] > 0), (self.negative, x[:, 0] <= 0)):
            if chosen.any():
                out[chosen] = norm(x[chosen])
        return out


@pytest.mark.parametrize("size", [None, 6])
def test_experts_are_frozen_at_what_is_sent_to_them(size, monkeypatch):
    if size:
        samples_per_pass(monkeypatch, size)
    network, x = scattered(Routed().double()), normal(24, 4)
    x[:, 0] = torch.tensor([1.0, -1, 1, 1, -1, 1]).repeat(4) + 0.1 * x[:, 0]
    with frozen_batch_norm(network, x) as names:
        assert names == ("positive", "negative")
        for norm, chosen in ((network.positive, x[:, 0] > 0), (network.negative, x[:, 0] <= 0)):
            torch.testing.assert_close(norm.running_mean, x[chosen].mean(0))
            torch.testing.assert_close(norm.running_var, x[chosen].var(0, correction=0))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.inner(torch.tanh(self.norm(self.inner(x)))))


class InTurn(nn.Module):
    """Two norms whose order depends on the first sample."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.other(self.one(x)) if x[0, 0] > 0 else self.one(self.other(x))


class Virtual(nn.Module):
    """Ghost batch normalization by one norm that is called for each ghost batch (Arik and Pfister 2020)."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return torch.cat([self.norm(part) for part in x.split(5)])


REFUSED = {
    "applied twice": (lambda: nn.Sequential(Twice(), nn.Linear(4, 2)), None, r"^0\.norm \(BatchNorm1d\).*once.*layer"),
    "twice, in parts": (Twice, 4, r"^norm \(BatchNorm1d\) is applied more than once.*own layer, call network\.eval"),
    "virtual batches": (Virtual, None, r"^norm \(BatchNorm1d\) is applied more than once"),
    "virtual batches, in parts": (Virtual, 10, r"^norm \(BatchNorm1d\) is applied more than once"),
    "in turn": (InTurn, 1, r"^whether (one or other|other or one) comes first depends on the samples.*more memory"),
    "evaluates otherwise": (lambda: nn.Sequential(Otherwise(4)), None, r"^0 \(Otherwise\) does not normalize by"),
    "the norm itself": (lambda: Otherwise(4), None, r"^the network \(Otherwise\) does not normalize by"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_held_constant_is_refused_and_left_as_found(name, monkeypatch):
    make, size, said = REFUSED[name]
    if size:
        samples_per_pass(monkeypatch, size)
    network = scattered(make().double())
    x = normal(12, 4)
    x[:2, 0], x[2:, 0] = 1, -1
    before = state(network)
    with pytest.raises(NoStatistics, match=said) as caught, frozen_batch_norm(network, x):
        pass
    assert str(caught.value).count(". ") == 0
    assert str(caught.value).endswith("use GroupNorm.")
    assert_same(before, state(network))


def test_one_number_a_channel_has_no_variance():
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    with (
        pytest.raises(NoStatistics, match=r"1 \(BatchNorm1d\) saw one number"),
        frozen_batch_norm(network, normal(1, 4)),
    ):
        pass


def test_a_synchronized_norm_whose_training_code_refuses_the_processor(tmp_path):
    network, x = scattered(nn.Sequential(nn.Linear(4, 3), nn.SyncBatchNorm(3)).double()), normal(6, 4)
    expected = by_hand(network, x)(x)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="GPU"):
            network(x)
        with frozen_batch_norm(network, x) as names:
            assert names == ("1",)
            torch.testing.assert_close(network(x), expected)
    finally:
        torch.distributed.destroy_process_group()


def test_without_averages_it_normalizes_by_its_batch_in_evaluation_too():
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).double().eval()
    x, before = normal(6, 4), state(network)
    coupled_group_size = network(x)
    with frozen_batch_norm(network, x) as names:
        assert names == ("1",)
        torch.testing.assert_close(torch.cat([network(one) for one in x.split(1)]), coupled_group_size)
    assert_same(before, state(network))


def test_ghost_batches_of_a_users_own_are_held_constant():
    network = scattered(nn.Sequential(nn.Linear(4, 3), Splits(3, 2)).double())
    x = normal(8, 4)
    inputs = network[0](x)
    expected = (inputs - inputs.mean(0)) / (inputs.var(0, correction=0) + 1e-5).sqrt() * network[1].weight
    with frozen_batch_norm(network, x) as names:
        assert names == ("1",)
        torch.testing.assert_close(network(x[:3]), (expected + network[1].bias)[:3])
    assert network[1].running_mean.shape == (6,)


def test_all_is_as_found_after_an_error_in_the_context_or_in_the_network():
    network = scattered(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double())
    x, before = normal(6, 4), state(network)
    with pytest.raises(KeyError), frozen_batch_norm(network, x):
        raise KeyError
    assert_same(before, state(network))
    network.append(nn.Linear(7, 2).double())
    before = state(network)
    with pytest.raises(RuntimeError, match="shapes"), frozen_batch_norm(network, x):
        pass
    assert_same(before, state(network))


class Counting(nn.Module):
    """Network that changes its buffers at every call, in place and by assignment, and swallows errors."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        self.calls += 1
        self.scale = 2 * self.scale
        try:
            return self.norm(self.scale * self.inner(x))
        except Exception:
            return x[:, :3]


@pytest.mark.parametrize("size", [None, 2])
def test_each_pass_starts_from_the_state_as_given(size, monkeypatch):
    if size:
        samples_per_pass(monkeypatch, size)
    network, x = Counting().double(), normal(6, 4)
    before = state(network)
    with frozen_batch_norm(network, x):
        assert network.calls == 0
        torch.testing.assert_close(network.norm.running_mean, 2 * network.inner(x).mean(0))
    assert_same(before, state(network))


@pytest.mark.parametrize("size", [None, 2])
@pytest.mark.parametrize("reentrant", [False, True])
def test_under_checkpointing_and_in_inference_mode(reentrant, size, monkeypatch):
    if size:
        samples_per_pass(monkeypatch, size)

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.BatchNorm1d(3))

        def forward(self, x):
            return checkpoint(self.inner, x.requires_grad_(), use_reentrant=reentrant)

    network, x = scattered(Checkpointed().double()), normal(6, 4)
    reference = by_hand(network.inner, x)
    with ExitStack() as stack:
        with torch.inference_mode():
            assert stack.enter_context(frozen_batch_norm(network, x)) == ("inner.1", "inner.3")
            assert not network.inner[1].running_mean.is_inference()
        gradients = []
        for each in (network, reference):  # `autograd.grad` does not support reentrant checkpoints
            each(x[:1])[0, 0].backward()
            gradients.append([p.grad for p in each.parameters()])
    assert all(gradient.abs().max() > 1e-6 for gradient in gradients[1][:4])
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [None, 2])
def test_inputs_of_several_tensors(size, monkeypatch):
    if size:
        samples_per_pass(monkeypatch, size)

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.norm = nn.Embedding(7, 3), nn.BatchNorm1d(3)

        def forward(self, tokens, mask):
            return self.norm((self.embedding(tokens) * mask[..., None]).sum(1))

    network = Unpacked(Masked().double())
    x = Fields({"tokens": torch.arange(30).view(6, 5) % 7, "mask": torch.ones(6, 5)})
    with torch.no_grad():
        sums = network.network.embedding(x.tensors["tokens"]).sum(1)
    with frozen_batch_norm(network, x) as names:
        assert names == ("network.norm",)
        torch.testing.assert_close(network.network.norm.running_mean, sums.mean(0))
        torch.testing.assert_close(network.network.norm.running_var, sums.var(0, correction=0))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision(dtype, affine):
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=affine, track_running_stats=affine)).to(dtype)
    x = normal(64, 4, dtype=dtype)
    with torch.no_grad():
        expected = network(x)
    with frozen_batch_norm(network, x), torch.no_grad():
        frozen = network(x)
    assert frozen.dtype == dtype
    torch.testing.assert_close(frozen, expected, rtol=8 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)


def test_compiled_parts_that_run_eagerly():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double()
    network, x = torch.compile(plain, backend="eager"), normal(6, 4)
    network(x)
    expected = by_hand(plain, x)(x)
    with torch.compiler.set_stance("force_eager"), frozen_batch_norm(network, x) as names:
        assert names == ("_orig_mod.1",)
        torch.testing.assert_close(network(x), expected)
    assert plain[1].training


def test_the_memory_bound_decides_how_many_pass_at_once():
    """The estimate comes from measured storage: large weights do not count, only what grows with the samples."""
    network = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.BatchNorm1d(256), nn.Linear(256, 2))
    x = torch.randn(1000, 256)
    sizes = []
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    with frozen_batch_norm(network, x):
        assert sizes == [2, 4, 1000]
    sizes.clear()
    with frozen_batch_norm(network, x, memory=batchnorm.LIBRARIES << 20):
        here = set(sizes[2:])
    # A sample takes 1 KiB at each of input and output of ReLU, and 2 KiB in float64.
    assert 200 <= max(here) <= 512
    with frozen_batch_norm(network, x, memory=0):
        assert sizes[-1] == 1


def test_where_memory_runs_out_half_as_many_pass():
    network, x = scattered(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)).double()), normal(32, 4)
    expected = oracles.jacobians(by_hand(network, x), x)

    def full(_, inputs):
        if len(inputs[0]) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = network[2].register_forward_pre_hook(full)
    with frozen_batch_norm(network, x):
        torch.testing.assert_close(oracles.jacobians(network, x), expected, rtol=1e-9, atol=1e-9)
    handle.remove()
