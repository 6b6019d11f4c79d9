"""Networks and inputs that once gave wrong results, each against rows by plain backward passes in float64."""

import copy

import oracles
import pytest
import torch
from torch import nn
from zoo.case import Wired

from raysat.errors import InputError
from raysat.ntk import NoStatistics, ntk_statistics, reason_against
from raysat.ntk.dense import dense_kernel

torch.set_num_threads(1)


def samples(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def wired(forward, **parts):
    torch.manual_seed(0)
    return Wired(forward, **parts).double()


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def kernel(network, x):
    rows = oracles.jacobians(copy.deepcopy(network), x).flatten(0, 1)
    return rows @ rows.T / len(x)


def gammas(network, x):
    j = oracles.jacobians(copy.deepcopy(network), x)
    return torch.linalg.eigvalsh(j @ j.mT)[:, -1]


def assert_right(network, x, **options):
    found = ntk_statistics(network, x, k_tolerance=1e-9, **options)
    assert found.gamma == pytest.approx(gammas(network, x).max().item(), rel=1e-6)
    assert found.gamma_mean == pytest.approx(gammas(network, x).mean().item(), rel=1e-6)
    assert found.k_op == pytest.approx(torch.linalg.eigvalsh(kernel(network, x))[-1].item(), rel=1e-6)


def test_a_module_under_two_names_beside_a_parameter_of_no_rule():
    def forward(self, x):
        return self.other(x) * self.scale + self.layer(x)

    layer = nn.Linear(4, 3)
    network = wired(forward, layer=layer, scale=nn.Parameter(torch.randn(3)), other=layer)
    assert_right(network, samples(9, 4))


def test_the_dense_kernel_of_a_module_under_two_names():
    def forward(self, x):
        return self.other(x) * self.scale + self.layer(x)

    layer = nn.Linear(4, 3)
    network, x = wired(forward, layer=layer, scale=nn.Parameter(torch.randn(3)), other=layer), samples(9, 4)
    torch.testing.assert_close(dense_kernel(network, x), kernel(network, x))


def test_a_token_that_few_samples_have_uses_weights_of_its_own():
    def forward(self, x):
        seldom = (x == 9).any(1, keepdim=True).to(self.head.weight)
        rows = self.head(torch.tanh(self.table(x).mean(1)))
        return rows + seldom * (self.table.weight[9] @ self.head.weight.T)

    network = wired(forward, table=nn.Embedding(10, 6), head=nn.Linear(6, 3))
    x = torch.randint(9, (60, 5), generator=torch.Generator().manual_seed(3))
    x[7, 2] = x[31, 0] = 9
    assert_right(network, x)


class Experts(nn.Module):
    """Experts with a capacity of max(4, n / 4) samples per batch; further samples bypass them."""

    def __init__(self):
        super().__init__()
        self.router, self.head = nn.Linear(4, 2), nn.Linear(4, 3)
        self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x):
        gates = self.router(x).softmax(-1)
        out = x.clone()
        for k, expert in enumerate(self.experts):
            at = (gates.argmax(-1) == k).nonzero()[:, 0][: max(4, len(x) // 4)]
            out = out.index_add(0, at, 3 * gates[at, k : k + 1] * expert(x[at]))
        return self.head(out)


@pytest.mark.parametrize("targets", [False, True])
def test_experts_with_a_capacity_mix_samples(targets):
    torch.manual_seed(0)
    network = Experts().double()
    with pytest.raises(NoStatistics, match="mixes"):
        ntk_statistics(network, samples(60, 4), samples(60, 3) if targets else None)


class ChangedByData(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        self.layer.weight.data.clamp_(-0.2, 0.2)
        return self.layer(x)


class CountedByData(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        self.count.data.add_(1)
        return self.layer(x)


@pytest.mark.parametrize("kind", [ChangedByData, CountedByData])
def test_what_changes_by_data_is_left_as_found(kind):
    network = kind().double()
    before = copy.deepcopy(network.state_dict())
    reason_against(network, samples(5, 4))
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_a_parameter_that_is_one_number():
    network = wired(
        lambda self, x: self.head(torch.tanh(self.layer(x))) * self.scale,
        layer=nn.Linear(4, 5), head=nn.Linear(5, 3), scale=nn.Parameter(torch.tensor(2.0)),
    )  # fmt: skip
    x = samples(9, 4)
    found = ntk_statistics(network, x)
    assert "fails" not in found.method_reason
    torch.testing.assert_close(dense_kernel(network, x), kernel(network, x))


def test_weights_that_must_be_parameters():
    def forward(self, x):
        if not isinstance(self.scale, nn.Parameter):
            raise TypeError("scale is no parameter")
        return self.head(torch.tanh(self.layer(x) * self.scale))

    parts = {"layer": nn.Linear(4, 5), "head": nn.Linear(5, 3), "scale": nn.Parameter(torch.randn(5))}
    network, x = wired(forward, **parts), samples(9, 4)
    assert_right(network, x, memory=1)
    torch.testing.assert_close(dense_kernel(network, x), kernel(network, x))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        if torch.is_grad_enabled():
            raise ValueError("no second derivative")
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


def test_a_function_that_raises_where_it_is_differentiated_twice():
    network = wired(lambda self, x: self.head(Once.apply(self.layer(x))), layer=nn.Linear(4, 5), head=nn.Linear(5, 3))
    assert_right(network, samples(9, 4))


def test_a_network_made_in_inference_mode():
    with torch.inference_mode():
        network, x = two_layers(), samples(7, 4)
    assert ntk_statistics(network, x).gamma > 0


@pytest.mark.parametrize("shape", ["squeezed", "without outputs"])
def test_outputs_of_another_shape_are_refused(shape):
    def squeezed(self, x):
        return self.body(x).squeeze()

    def empty(self, x):
        return self.body(x)[:, :0]

    network = wired(squeezed if shape == "squeezed" else empty, body=two_layers())
    with pytest.raises(NoStatistics, match="shape"):
        ntk_statistics(network, samples(9, 4))


def test_the_spectrum_where_the_residual_is_zero():
    network, x = two_layers(), samples(9, 4)
    found = ntk_statistics(network, x, network(x).detach(), spectrum=8)
    assert sum(found.residual_weights) == 0


@pytest.mark.parametrize("options", [{"k_samples": 0}, {"k_samples": -3}, {"dense_samples": -1}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(InputError):
        ntk_statistics(two_layers(), samples(9, 4), **options)


@pytest.mark.parametrize("x", [torch.tensor(1.0), torch.eye(4).to_sparse(), torch.zeros(3, 4, device="meta")])
def test_inputs_without_rows_or_values_are_refused(x):
    with pytest.raises(InputError):
        ntk_statistics(nn.Linear(4, 3), x)


def test_weights_without_values_are_refused():
    with pytest.raises(InputError):
        ntk_statistics(nn.Linear(4, 3, device="meta"), torch.zeros(3, 4))


@pytest.mark.parametrize("y", [torch.eye(3).to_sparse(), torch.zeros(3, 3, device="meta")])
def test_targets_that_are_no_dense_tensor_are_refused(y):
    with pytest.raises(InputError):
        ntk_statistics(nn.Linear(4, 3), torch.zeros(3, 4), y)


def test_a_loss_that_raises_is_refused():
    def broken(outputs, y):
        raise ZeroDivisionError("division by zero")

    with pytest.raises(InputError, match="broken"):
        ntk_statistics(two_layers(), samples(9, 4), samples(9, 3), loss=broken)


def test_the_dense_kernel_takes_fields():
    torch.manual_seed(0)
    network, x = nn.Bilinear(4, 5, 3).double(), (samples(6, 4), samples(6, 5))
    assert dense_kernel(network, x).shape == (18, 18)


def test_lazy_weights_have_no_dense_kernel():
    with pytest.raises(NoStatistics, match="lazy"):
        dense_kernel(nn.LazyLinear(3), samples(6, 4))


def test_a_network_that_differentiates_in_its_forward_without_enabling_gradients():
    def forward(self, x):
        x = x.detach().requires_grad_()
        energy = self.body(x).square().sum()
        return torch.autograd.grad(energy, x, create_graph=True)[0]

    assert_right(wired(forward, body=two_layers()), samples(9, 4))


def test_a_sample_without_gradients_sends_no_network_to_the_slowest_way():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 200, bias=False)).double()
    x = samples(7, 4)
    x[:6] = 0
    assert ntk_statistics(network, x).method == "iteration"


class Counts(nn.Module):
    """Adds one to its buffer, in place."""

    def __init__(self, count):
        super().__init__()
        self.register_buffer("count", count)

    def forward(self, x):
        self.count += 1
        return x


class Scales(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, x):
        return x * self.scale


@pytest.mark.parametrize("view", [lambda count: count, lambda count: count[0], lambda count: count.view(1, 1)])
def test_modules_that_share_a_buffer_still_share_it_in_every_pass(view):
    count = torch.ones(1, dtype=torch.float64)
    network, x = nn.Sequential(Counts(count), two_layers(), Scales(view(count))), samples(6, 4)
    layers = copy.deepcopy(network[1])
    # The scale of each pass is 1 + 1, so that the Jacobian is twice that of the layers alone.
    found = ntk_statistics(network, x, k_tolerance=1e-9)
    assert found.gamma == pytest.approx(4 * gammas(layers, x).max().item(), rel=1e-6)
    assert found.k_op == pytest.approx(4 * torch.linalg.eigvalsh(kernel(layers, x))[-1].item(), rel=1e-6)
    assert count.item() == 1
    assert network[2].scale.untyped_storage().data_ptr() == count.untyped_storage().data_ptr()
