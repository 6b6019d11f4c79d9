import math
from itertools import accumulate

import pytest
import torch

from raysat import mlp, models
from raysat.losses import LOSSES
from raysat.sgd.autograd import AutogradEngine
from raysat.sgd.optimizers import OptimizerEngine
from raysat.sgd.problem import Problem
from raysat.sgd.sampler import batches, normal
from raysat.spec.training import Training, factor

LOSS, ETA, B, N, T = LOSSES["mse"], 0.05, 4, 30, 50


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 5, generator=generator, dtype=torch.float64)
    return x, torch.randn(N, 2, generator=generator, dtype=torch.float64)


def network():
    return models.build(mlp(1), 8, (5,), 2, 0).double()


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def trained(problem, training, steps=T, loss=LOSS):
    engine = OptimizerEngine(Problem(network(), *problem, loss), ETA, training, T)
    engine.run(batches(0, 0, steps, B, N))
    return flat(engine.network.parameters())


def by_formula(problem, rule, schedule=lambda t: 1.0):
    """`w <- w - eta_t u_t`, u_t what a rule makes of the gradients so far."""
    x, y = problem
    net, gradients = network(), []
    w = flat(net.parameters())
    for t, batch in enumerate(batches(0, 0, T, B, N)):
        torch.nn.utils.vector_to_parameters(w, net.parameters())
        value = (net(x[batch]) - y[batch]).square().sum() / (2 * B)
        gradients.append(flat(torch.autograd.grad(value, list(net.parameters()))))
        w = w - ETA * schedule(t) * rule(gradients)
    return w


def momentum(gradients):
    """Polyak's velocity, `v <- mu v + g` (Sutskever et al. 2013, in PyTorch's form)."""
    return list(accumulate(gradients, lambda v, g: 0.8 * v + g))[-1]


def adam(gradients, eps=1e-8):
    """Kingma and Ba 2015, Algorithm 1."""
    k = len(gradients)
    m = sum(0.1 * 0.9 ** (k - 1 - i) * g for i, g in enumerate(gradients)) / (1 - 0.9**k)
    v = sum(0.001 * 0.999 ** (k - 1 - i) * g**2 for i, g in enumerate(gradients)) / (1 - 0.999**k)
    return m / (v.sqrt() + eps)


RULES = {
    "sgd": lambda gradients: gradients[-1],
    "momentum": momentum,
    "nesterov": lambda gradients: gradients[-1] + 0.8 * momentum(gradients),
    "adam": adam,
}


@pytest.mark.parametrize("optimizer", RULES)
def test_an_optimizer_is_its_formula(problem, optimizer):
    expected = by_formula(problem, RULES[optimizer])
    torch.testing.assert_close(trained(problem, Training(optimizer, momentum=0.8)), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("schedule", "formula"),
    [
        ("step", lambda t: 1.0 if t < T / 2 else 0.1 if t < 3 * T / 4 else 0.01),
        ("cosine", lambda t: math.cos(math.pi * t / (2 * T)) ** 2),
    ],
)
def test_a_schedule_is_its_formula(problem, schedule, formula):
    expected = by_formula(problem, RULES["sgd"], formula)
    torch.testing.assert_close(trained(problem, Training(schedule=schedule)), expected, rtol=1e-9, atol=1e-10)
    assert factor(schedule, 0, T) == 1


def test_without_anything_it_is_the_autograd_engine(problem):
    engine = AutogradEngine(Problem(network(), *problem, LOSS), ETA)
    engine.run(batches(0, 0, T, B, N))
    torch.testing.assert_close(trained(problem, Training()), flat(engine.network.parameters()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_noise_multiplies_each_samples_gradient(problem, loss):
    """Against gradients taken sample by sample, at b = 4 and base batch 2: z ~ N(1, 1)."""
    x, y = problem
    y = torch.eye(2, dtype=torch.float64)[y.argmax(1)] if loss == "cross_entropy" else y
    net = network()
    for batch, noise in zip(batches(0, 0, T, B, N), normal(0, 0, T, B), strict=True):
        total = torch.zeros_like(flat(net.parameters()))
        for i, z in zip(batch, noise, strict=True):
            value = LOSSES[loss].total(net(x[i][None]), y[i][None])
            total += (1 + z) * flat(torch.autograd.grad(value, list(net.parameters()))) / B
        torch.nn.utils.vector_to_parameters(flat(net.parameters()) - ETA * total, net.parameters())
    noisy = trained((x, y), Training(noise=True, base_batch=2), loss=LOSSES[loss])
    torch.testing.assert_close(noisy, flat(net.parameters()), rtol=1e-9, atol=1e-10)


def test_noise_gives_a_large_batch_the_gradient_noise_of_the_small_one(problem):
    """Covariance of the mean over many draws with replacement: b = 24 with noise of base batch 3, against b = 3."""
    x, y = problem
    net = network()
    rows = [
        flat(torch.autograd.grad(LOSS.total(net(a[None]), t[None]), list(net.parameters())))
        for a, t in zip(x, y, strict=True)
    ]
    samples = torch.stack(rows)
    samples -= samples.mean(0)  # where the mean gradient is neglected, as the paper does, the match is exact
    small = samples[batches(0, 0, 20_000, 3, N, "with_replacement")].mean(1)
    deviation = Training(noise=True, base_batch=3).noise_deviation(24)
    z = 1 + deviation * normal(1, 0, 20_000, 24)
    large = (samples[batches(1, 0, 20_000, 24, N, "with_replacement")] * z[..., None]).mean(1)
    plain = samples[batches(2, 0, 20_000, 24, N, "with_replacement")].mean(1)
    expected = samples.square().mean(0).sum().item() / 3
    assert small.var(0).sum().item() == pytest.approx(expected, rel=0.03)
    assert large.var(0).sum().item() == pytest.approx(expected, rel=0.03)
    assert plain.var(0).sum().item() == pytest.approx(expected / 8, rel=0.03)


def test_noise_is_standard_normal_and_depends_on_seed_and_step_alone():
    z = normal(3, 0, 50_000, 4)
    assert z.mean().abs() < 0.01
    assert z.std().item() == pytest.approx(1, abs=0.01)
    assert (z**4).mean().item() == pytest.approx(3, abs=0.1)
    assert torch.corrcoef(z.T).sub(torch.eye(4)).abs().max() < 0.02
    assert torch.equal(z[7:9], normal(3, 7, 2, 4))


@pytest.mark.parametrize("optimizer", RULES)
def test_a_run_that_was_stopped_goes_on_in_the_same_bits(problem, optimizer, tmp_path):
    training = Training(optimizer, schedule="cosine", noise=True, base_batch=2)
    whole = trained(problem, training)
    first, second = (OptimizerEngine(Problem(network(), *problem, LOSS), ETA, training, T) for _ in range(2))
    first.run(batches(0, 0, 10, B, N))
    torch.save((first.network.state_dict(), first.state_dict()), tmp_path / "a.pt")
    weights, state = torch.load(tmp_path / "a.pt", weights_only=True)
    second.network.load_state_dict(weights)
    second.load_state_dict(state)
    second.run(batches(0, 10, T - 10, B, N))
    assert torch.equal(flat(second.network.parameters()), whole)


def test_a_batch_in_parts_has_the_same_gradient_and_noise(problem):
    training = Training("momentum", noise=True, base_batch=2)
    engine = OptimizerEngine(Problem(network(), *problem, LOSS), ETA, training, T, micro_batch=3)
    engine.run(batches(0, 0, T, B, N))
    assert engine.micro_batch == 3
    torch.testing.assert_close(flat(engine.network.parameters()), trained(problem, training), rtol=1e-11, atol=1e-11)
