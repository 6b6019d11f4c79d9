import copy
import dataclasses
import math
import sys
import types
from itertools import accumulate

import pytest
import torch

from raysat import InputError, mlp, models
from raysat.losses import LOSSES
from raysat.sgd.autograd import AutogradEngine
from raysat.sgd.optimizers import OptimizerEngine, check
from raysat.sgd.problem import Problem
from raysat.sgd.sampler import batches, normal
from raysat.sgd.torch_optim import optimizers_of
from raysat.spec.training import TORCH, Training, factor

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
    engine = OptimizerEngine(Problem(network(), *problem, loss), ETA, training, T, B)
    engine.run(batches(0, 0, steps, B, N))
    return flat(engine.network.parameters())


def resumed(make, tmp_path):
    """The weights after T steps of a run that is stopped after 10, and goes on in another engine from a checkpoint."""
    first, second = make(), make()
    first.run(batches(0, 0, 10, B, N))
    torch.save((first.network.state_dict(), first.state_dict()), tmp_path / "a.pt")
    weights, state = torch.load(tmp_path / "a.pt", weights_only=True)
    second.network.load_state_dict(weights)
    second.load_state_dict(state)
    second.run(batches(0, 10, T - 10, B, N))
    return flat(second.network.parameters())


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
        ("linear", lambda t: (T - t) / T),
    ],
)
def test_a_schedule_is_its_formula(problem, schedule, formula):
    expected = by_formula(problem, RULES["sgd"], formula)
    torch.testing.assert_close(trained(problem, Training(schedule=schedule)), expected, rtol=1e-9, atol=1e-10)
    assert factor(schedule, 0, T) == 1


@pytest.mark.parametrize("warm", [{"warmup": 10}, {"warmup_samples": 10 * B + 1}])
def test_warm_up_rises_linearly_and_the_schedule_runs_over_the_rest(problem, warm):
    def formula(t):
        return (t + 1) / 10 if t < 10 else math.cos(math.pi * (t - 10) / (2 * (T - 10))) ** 2

    expected = by_formula(problem, RULES["sgd"], formula)
    made = trained(problem, Training(schedule="cosine", **warm))
    torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-10)


def test_a_clipped_gradient_has_the_largest_norm(problem):
    def clipped(gradients):
        norm = gradients[-1].square().sum().sqrt().item()
        shortened.append(norm > most)
        return gradients[-1] * min(1.0, most / (norm + 1e-6))

    most, shortened = 0.8, []
    expected = by_formula(problem, clipped)
    assert len(set(shortened)) == 2
    torch.testing.assert_close(trained(problem, Training(clip=most)), expected, rtol=1e-9, atol=1e-10)


def test_adamw_decays_its_weights_apart_from_its_gradients(problem):
    """Loshchilov and Hutter 2019, Algorithm 2: `w <- w - eta (adam + decay w)`."""
    x, y = problem
    net, gradients = network(), []
    w = flat(net.parameters())
    for batch in batches(0, 0, T, B, N):
        torch.nn.utils.vector_to_parameters(w, net.parameters())
        value = (net(x[batch]) - y[batch]).square().sum() / (2 * B)
        gradients.append(flat(torch.autograd.grad(value, list(net.parameters()))))
        w = (1 - ETA * 0.1) * w - ETA * adam(gradients)
    made = trained(problem, Training("adamw", options={"weight_decay": 0.1}))
    torch.testing.assert_close(made, w, rtol=1e-9, atol=1e-10)


RECIPES = {
    "adamw, clipped, warm-up, cosine": (
        Training("adamw", options={"weight_decay": 0.1, "betas": [0.9, 0.95]}, clip=0.5, warmup=20, schedule="cosine"),
        lambda net: [torch.optim.AdamW(net.parameters(), lr=ETA, weight_decay=0.1, betas=(0.9, 0.95))],
    ),
    "momentum with decay": (
        Training("momentum", options={"weight_decay": 5e-4}, clip=0.5, warmup=20, schedule="cosine"),
        lambda net: [torch.optim.SGD(net.parameters(), lr=ETA, momentum=0.9, weight_decay=5e-4)],
    ),
    "muon, and adamw for the rest": (
        Training("muon", options={"weight_decay": 0.02}, clip=0.5, warmup=20, schedule="cosine"),
        lambda net: [
            torch.optim.Muon([net[0].weight, net[2].weight], lr=ETA, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([net[0].bias, net[2].bias], lr=ETA, weight_decay=0.02),
        ],
    ),
}


def small():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_a_loop_of_plain_pytorch(problem, recipe):
    training, made = RECIPES[recipe]
    x, y = problem
    steps, net, expected = 200, small(), small()
    engine = OptimizerEngine(Problem(net, *problem, LOSS), ETA, training, steps, B)
    optimizers = made(expected)
    for t, batch in enumerate(batches(0, 0, steps, B, N)):
        for optimizer in optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                warm = (t + 1) / 20
                group["lr"] = ETA * (warm if t < 20 else (1 + math.cos(math.pi * (t - 20) / (steps - 20))) / 2)
        ((expected(x[batch]) - y[batch]).square().sum() / (2 * B)).backward()
        torch.nn.utils.clip_grad_norm_(expected.parameters(), 0.5)
        for optimizer in optimizers:
            optimizer.step()
        engine.run(batch[None])
        value, other = ((one(x) - y).square().mean().item() for one in (net, expected))
        assert value == pytest.approx(other, rel=1e-6), t


@pytest.mark.parametrize("optimizer", TORCH)
def test_every_optimizer_of_torch_lowers_the_loss_and_goes_on_in_the_same_bits(problem, optimizer, tmp_path):
    x, y = problem
    training = Training(optimizer, clip=1.0, warmup=5, schedule="linear")
    whole = OptimizerEngine(Problem(small(), *problem, LOSS), 0.01, training, T, B)
    before = LOSS.total(whole.network(x), y).item()
    whole.run(batches(0, 0, T, B, N))
    assert LOSS.total(whole.network(x), y).item() < before
    again = resumed(lambda: OptimizerEngine(Problem(small(), *problem, LOSS), 0.01, training, T, B), tmp_path)
    assert torch.equal(again, flat(whole.network.parameters()))


class Signs(torch.optim.Optimizer):
    """Sign descent with a decay of its own, and a state."""

    def __init__(self, params, lr, decay=0.0):
        super().__init__(params, {"lr": lr, "decay": decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for w in group["params"]:
                state = self.state[w]
                state["mean"] = 0.9 * state.get("mean", torch.zeros_like(w)) + w.grad
                w -= group["lr"] * (state["mean"].sign() + group["decay"] * w)


class Remembering(torch.optim.Optimizer):
    """SGD with a rate of 1, 1/2, 1/3, ..., and in different places the step at which it is."""

    def __init__(self, params, lr, where):
        super().__init__(params, {"lr": lr})
        self.where, self.steps = where, 0

    @torch.no_grad()
    def step(self, closure=None):
        weights = self.param_groups[0]["params"]
        if self.where == "nested":  # in float64 beside float32 weights, in lists and dictionaries
            for w in weights:
                state = self.state[w]
                sums = state.setdefault("sums", [{"of": torch.zeros_like(w, dtype=torch.float64)}])[0]
                sums["of"] += w.grad.double() / 3
                w -= self.param_groups[0]["lr"] * sums["of"].to(w.dtype)
            return
        if self.where == "attribute":
            self.steps = steps = self.steps + 1
        elif self.where == "object":
            steps = self.state["steps"] = types.SimpleNamespace(steps=self.steps)
            steps = 1
        else:
            steps = self.state["steps"] = self.state.get("steps", 0) + 1
        for w in weights:
            w -= self.param_groups[0]["lr"] / steps * w.grad


def by_name(named_parameters, lr, slow=0.1):
    """Biases learn at a tenth of the rate."""
    groups = {True: [], False: []}
    for name, w in named_parameters:
        groups[name.endswith("bias")].append(w)
    return torch.optim.SGD([{"params": groups[False]}, {"params": groups[True], "lr": slow * lr}], lr=lr)


@pytest.fixture
def own(monkeypatch):
    module = types.ModuleType("my_optimizers")
    module.Signs, module.by_name, module.nothing = Signs, by_name, lambda params, lr: None
    module.Remembering = Remembering
    monkeypatch.setitem(sys.modules, "my_optimizers", module)


@pytest.mark.parametrize(
    ("training", "made"),
    [
        (Training("my_optimizers:Signs", options={"decay": 0.01}), lambda net: Signs(net.parameters(), ETA, 0.01)),
        (
            Training("my_optimizers:by_name", options={"slow": 0.2}),
            lambda net: torch.optim.SGD(
                [
                    {"params": [net[0].weight, net[2].weight], "lr": ETA},
                    {"params": [net[0].bias, net[2].bias], "lr": 0.2 * ETA},
                ]
            ),
        ),
    ],
    ids=["class", "function"],
)
def test_an_optimizer_of_ones_own_is_a_loop_of_plain_pytorch_and_goes_on_in_the_same_bits(
    own, problem, training, made, tmp_path
):
    training = dataclasses.replace(training, schedule="linear")
    x, y = problem
    engine, net = OptimizerEngine(Problem(small(), *problem, LOSS), ETA, training, T, B), small()
    optimizer = made(net)
    rates = [group["lr"] for group in optimizer.param_groups]
    for t, batch in enumerate(batches(0, 0, T, B, N)):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (T - t) / T
        optimizer.zero_grad()
        ((net(x[batch]) - y[batch]).square().sum() / (2 * B)).backward()
        optimizer.step()
        engine.run(batch[None])
    torch.testing.assert_close(flat(engine.network.parameters()), flat(net.parameters()), rtol=1e-9, atol=1e-12)
    again = resumed(lambda: OptimizerEngine(Problem(small(), *problem, LOSS), ETA, training, T, B), tmp_path)
    assert torch.equal(again, flat(engine.network.parameters()))


@pytest.mark.parametrize(
    ("training", "words"),
    [
        (Training("my_optimizers:Signs", options={"slow": 1.0}), "has no option slow: use decay"),
        (Training("my_optimizers:nothing"), "makes a NoneType: return a torch.optim.Optimizer"),
        (Training("my_optimizers:absent"), "has no function absent"),
        (Training("my_optimizers:Remembering", options={"where": "attribute"}), "goes on otherwise after a checkpoint"),
        (
            Training("my_optimizers:Remembering", options={"where": "object"}),
            "checkpoints, .* hold: let it keep numbers",
        ),
        (Training("torch.optim:LBFGS"), "it is called without a closure, for dense gradients"),
        (Training("torch.optim:SparseAdam"), "it is called without a closure, for dense gradients"),
        (Training("builtins:dict"), "does not work"),  # it has no signature
        (Training("no_such_module_here:Signs"), "put no_such_module_here.py next to the sweep file"),
    ],
)
def test_an_optimizer_of_ones_own_that_cannot_be_is_refused(own, problem, training, words):
    with pytest.raises(InputError, match=words):
        check(training, Problem(small(), *problem, LOSS), {4: T})


@pytest.mark.parametrize("where", ["nested", "key"])
def test_the_state_of_ones_own_optimizer_may_be_nested_of_another_precision_and_of_no_parameter(
    own, problem, where, tmp_path
):
    training, problem = (
        Training("my_optimizers:Remembering", options={"where": where}),
        [one.float() for one in problem],
    )

    def make():
        return OptimizerEngine(Problem(small().float(), *problem, LOSS), ETA, training, T, B)

    check(training, Problem(small().float(), *problem, LOSS), {B: T})
    whole = make()
    whole.run(batches(0, 0, T, B, N))
    assert torch.equal(resumed(make, tmp_path), flat(whole.network.parameters()))


def test_the_steps_of_an_optimizer_are_computed_in_bfloat16_if_asked(problem):
    """As of `torch.autocast`; weights, moments and clipping stay in float32."""
    x, y = (one.float() for one in problem)
    training = Training("adamw", clip=0.5)
    made, net = small().float(), small().float()
    OptimizerEngine(Problem(made, x, y, LOSS), 0.01, training, T, B, bfloat16=True).run(batches(0, 0, T, B, N))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    for batch in batches(0, 0, T, B, N):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = net(x[batch])
        ((outputs.float() - y[batch]).square().sum() / (2 * B)).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
    torch.testing.assert_close(flat(made.parameters()), flat(net.parameters()), rtol=1e-5, atol=1e-6)
    full = small().float()
    OptimizerEngine(Problem(full, x, y, LOSS), 0.01, training, T, B).run(batches(0, 0, T, B, N))
    assert not torch.equal(flat(full.parameters()), flat(made.parameters()))


def test_muon_leaves_embeddings_and_vectors_to_adamw():
    net = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 3))
    bags = torch.nn.Sequential(torch.nn.EmbeddingBag(7, 4), torch.nn.Linear(4, 3, bias=False))
    taken = [
        [id(w) for group in one.param_groups for w in group["params"]]
        for one in optimizers_of(Training("muon"), bags, 0.1, B)
    ]
    assert taken == [[id(bags[1].weight)], [id(bags[0].weight)]]
    muon, adamw = optimizers_of(Training("muon", options={"weight_decay": 0.3}), net, 0.1, B)
    assert [id(one) for one in muon.param_groups[0]["params"]] == [id(net[2].weight)]
    assert len(adamw.param_groups[0]["params"]) == 4
    assert adamw.defaults["weight_decay"] == 0.3


@pytest.mark.parametrize(
    ("training", "words"),
    [
        (Training("adamw", options={"decay": 0.1}), "has no option decay: use betas, eps, weight_decay"),
        (Training("adamw", options={"weight_decay": -1.0}), "does not work .*weight_decay"),
        (Training("adamw", options={"betas": 0.9}), "does not work"),
        (Training("adamw", options={"betas": 0.9}, scaling="half_life", base_batch=4), "give two numbers and one"),
        (Training("adam", options={"betas": "ab"}, scaling="half_life", base_batch=4), "give two numbers and one"),
        (Training("adam", options={"eps": None}, scaling="adam_sqrt", base_batch=4), "give two numbers and one"),
        (Training("momentum", options={"momentum": 0.8}), "options has momentum"),
        (Training("adamw", options={"betas": (0.9, 0.95)}, scaling="adam_sqrt", base_batch=1), "at b = 16, 16 times"),
    ],
)
def test_options_that_cannot_be_are_refused_before_a_step(problem, training, words):
    with pytest.raises(InputError, match=words):
        check(training, Problem(small(), *problem, LOSS), {4: T, 16: T})


def test_muon_without_a_matrix_is_refused(problem):
    with pytest.raises(InputError, match="this network has none: use adamw"):
        check(Training("muon"), Problem(torch.nn.LayerNorm(5), *problem, LOSS), {4: T})


def test_the_square_root_rule_and_half_lives_are_their_formulas():
    """Malladi et al. 2022, definition 5.2; Marek et al. 2025: beta_2 forgets half after as many samples."""
    net, options = small(), {"betas": (0.9, 0.99), "eps": 1e-6}
    rule = Training("adam", options=options, scaling="adam_sqrt", base_batch=8)
    assert rule.stepsize_factor(32) == 2
    (made,) = optimizers_of(rule, net, 0.1, 32)
    assert made.defaults["betas"] == pytest.approx((0.6, 0.96))
    assert made.defaults["eps"] == pytest.approx(5e-7)
    (same,) = optimizers_of(rule, net, 0.1, 8)
    assert (same.defaults["betas"], same.defaults["eps"]) == (pytest.approx((0.9, 0.99)), pytest.approx(1e-6))
    halved = Training("adamw", options=options, scaling="half_life", base_batch=8)
    assert halved.stepsize_factor(32) == 1
    for b in (2, 8, 32):
        (made,) = optimizers_of(halved, net, 0.1, b)
        first, second = made.defaults["betas"]
        assert first == 0.9
        assert b * math.log(0.5) / math.log(second) == pytest.approx(8 * math.log(0.5) / math.log(0.99))


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
    again = resumed(lambda: OptimizerEngine(Problem(network(), *problem, LOSS), ETA, training, T, B), tmp_path)
    assert torch.equal(again, whole)


def test_a_checkpoint_from_when_there_was_one_optimizer_is_taken_up(problem):
    training = Training("adam")
    first, second = (OptimizerEngine(Problem(network(), *problem, LOSS), ETA, training, T, B) for _ in range(2))
    first.run(batches(0, 0, 10, B, N))
    (stored,) = first.state_dict()["optimizers"]
    second.network.load_state_dict(first.network.state_dict())
    second.load_state_dict({"step": 10, "optimizer": copy.deepcopy(stored)})
    for engine in (first, second):
        engine.run(batches(0, 10, T - 10, B, N))
    assert torch.equal(flat(first.network.parameters()), flat(second.network.parameters()))


def test_a_batch_in_parts_has_the_same_gradient_and_noise(problem):
    training = Training("momentum", noise=True, base_batch=2)
    engine = OptimizerEngine(Problem(network(), *problem, LOSS), ETA, training, T, B, micro_batch=3)
    engine.run(batches(0, 0, T, B, N))
    assert engine.micro_batch == 3
    torch.testing.assert_close(flat(engine.network.parameters()), trained(problem, training), rtol=1e-11, atol=1e-11)
