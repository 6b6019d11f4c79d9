"""Schedules, label smoothing and averages of weights, each against a loop of plain PyTorch in float64."""

import math
import sys
import types
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from raysat import InputError
from raysat.losses import LOSSES, CrossEntropy
from raysat.sgd.optimizers import OptimizerEngine, check
from raysat.sgd.problem import Problem
from raysat.sgd.sampler import batches
from raysat.spec.training import TORCH_SCHEDULES, Training

ETA, B, N, T, WARM = 0.02, 4, 30, 200, 20


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (N,), generator=generator)


def small(*layers):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 8), *layers, torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()


def engine(problem, training, net=None):
    return OptimizerEngine(Problem(net or small(), *problem, LOSSES["cross_entropy"]), ETA, training, T, B)


def flat(net):
    return torch.cat([one.detach().flatten() for one in net.parameters()])


def plain(problem, made, rates=None, after=lambda net: None, net=None, **smoothing):
    """The weights after T steps of an optimizer; `rates` is called before each step, `after` after it."""
    x, y = problem
    net = net or small()
    optimizer = made(net)
    for t, batch in enumerate(batches(0, 0, T, B, N)):
        optimizer.zero_grad()
        (rates or (lambda optimizer, t: None))(optimizer, t)
        cross_entropy(net(x[batch]), y[batch], **smoothing).backward()
        optimizer.step()
        after(net)
    return net


def resumed(problem, training, tmp_path, steps=50):
    """The engine after T steps of a run that is stopped, and goes on in another engine from a checkpoint."""
    first, second = engine(problem, training), engine(problem, training)
    first.run(batches(0, 0, steps, B, N))
    torch.save((first.network.state_dict(), first.state_dict()), tmp_path / "a.pt")
    weights, state = torch.load(tmp_path / "a.pt", weights_only=True)
    second.network.load_state_dict(weights)
    second.load_state_dict(state)
    second.run(batches(0, steps, T - steps, B, N))
    return second


def ran(problem, training, net=None):
    made = engine(problem, training, net)
    made.run(batches(0, 0, T, B, N))
    return made


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=ETA, momentum=0.9)


OPTIONS = {
    "ConstantLR": {"factor": 0.5, "total_iters": 60},
    "CosineAnnealingLR": {"eta_min": 1e-3},
    "CosineAnnealingWarmRestarts": {"T_0": 30, "T_mult": 2},
    "CyclicLR": {"base_lr": 1e-3, "step_size_up": 30},
    "ExponentialLR": {"gamma": 0.99},
    "LinearLR": {"start_factor": 0.1, "total_iters": 90},
    "MultiStepLR": {"milestones": (50, 100), "gamma": 0.5},
    "OneCycleLR": {"pct_start": 0.2},
    "PolynomialLR": {"total_iters": 100, "power": 2.0},
    "StepLR": {"step_size": 40, "gamma": 0.5},
}
FILLED = {
    "CosineAnnealingLR": lambda left: {"T_max": left},
    "OneCycleLR": lambda left: {"total_steps": left, "max_lr": ETA},
    "CyclicLR": lambda left: {"max_lr": ETA},
}


@pytest.mark.parametrize("warm", [0, WARM])
@pytest.mark.parametrize("name", TORCH_SCHEDULES)
def test_a_scheduler_of_torch_is_a_loop_of_plain_pytorch_and_goes_on_in_the_same_bits(problem, name, warm, tmp_path):
    """The scheduler begins after the warm-up, which rises to the rate with which the scheduler begins."""
    made = {}

    def rates(optimizer, t):
        if not made:
            kind = getattr(lr_scheduler, name)
            made["scheduler"] = kind(optimizer, **OPTIONS[name] | FILLED.get(name, lambda left: {})(T - warm))
            made["first"] = optimizer.param_groups[0]["lr"]
        if t < warm:
            optimizer.param_groups[0]["lr"] = made["first"] * (t + 1) / warm
        elif t == warm:
            optimizer.param_groups[0]["lr"] = made["first"]
        else:
            made["scheduler"].step()

    training = Training("momentum", warmup=warm, schedule=name, schedule_options=OPTIONS[name])
    expected = plain(problem, sgd, rates)
    whole = ran(problem, training)
    torch.testing.assert_close(flat(whole.network), flat(expected), rtol=1e-9, atol=1e-10)
    for steps in (10, 50):
        assert torch.equal(flat(resumed(problem, training, tmp_path, steps).network), flat(whole.network))


def test_each_group_of_parameters_and_each_optimizer_has_its_own_rates(problem, own):
    """Muon and AdamW together, and groups of one's own under a cycle."""
    training = Training("muon", schedule="StepLR", schedule_options={"step_size": 40})
    made = ran(problem, training)
    assert [one.param_groups[0]["lr"] for one in made.optimizers] == pytest.approx([ETA * 1e-5] * 2)
    made = ran(problem, Training("my_recipes:grouped", schedule="OneCycleLR"))
    groups = made.optimizers[0].param_groups
    assert groups[1]["lr"] == pytest.approx(groups[0]["lr"] / 10)
    assert groups[0]["max_lr"] == ETA


def decay(step, half=50.0):
    return 0.5 ** (step / half)


def grouped(named_parameters, lr):
    made = [one for _, one in named_parameters]
    return torch.optim.AdamW([{"params": made[:2]}, {"params": made[2:], "lr": lr / 10}], lr=lr)


class Halving(lr_scheduler.LRScheduler):
    """A scheduler of one's own."""

    def get_lr(self):
        return [rate * 0.5 ** (self.last_epoch // 50) for rate in self.base_lrs]


@pytest.fixture
def own(monkeypatch):
    module = types.ModuleType("my_recipes")
    module.decay, module.grouped, module.Halving = decay, grouped, Halving
    module.to_the_end = lambda step, iterations: 1 - step / iterations
    module.nothing = lambda step: None
    module.infinite = lambda step: math.inf if step else 1.0
    module.two = lambda step, other: 1.0
    monkeypatch.setitem(sys.modules, "my_recipes", module)


@pytest.mark.parametrize(
    ("name", "options", "factor"),
    [
        ("my_recipes:decay", {}, decay),
        ("my_recipes:decay", {"half": 30.0}, lambda t: decay(t, 30.0)),
        ("my_recipes:to_the_end", {}, lambda t: 1 - t / (T - WARM)),
        ("my_recipes:Halving", {}, lambda t: 0.5 ** (t // 50)),
    ],
)
def test_a_schedule_of_ones_own_begins_after_the_warm_up(own, problem, name, options, factor, tmp_path):
    def rates(optimizer, t):
        optimizer.param_groups[0]["lr"] = ETA * ((t + 1) / WARM if t < WARM else factor(t - WARM))

    training = Training("momentum", warmup_samples=WARM * B, schedule=name, schedule_options=options)
    whole = ran(problem, training)
    torch.testing.assert_close(flat(whole.network), flat(plain(problem, sgd, rates)), rtol=1e-9, atol=1e-10)
    assert torch.equal(flat(resumed(problem, training, tmp_path).network), flat(whole.network))


@pytest.mark.parametrize(
    ("training", "words"),
    [
        (Training(schedule="StepLR"), "schedule='StepLR' does not work .*step_size"),
        (Training(schedule="StepLR", schedule_options={"step": 3}), "has no option step: use step_size, gamma"),
        (Training(schedule="OneCycleLR", schedule_options={"max_lr": 0.1}), "max_lr, which is the sweep's stepsize"),
        (Training(schedule="OneCycleLR", schedule_options={"total_steps": 9}), "is over after 9 of 200 iterations"),
        (Training("adagrad", schedule="CyclicLR", schedule_options={"base_lr": 0.1}), "does not work .*momentum"),
        (Training(schedule="torch.optim.lr_scheduler:ReduceLROnPlateau"), "follows a metric"),
        (Training(schedule="torch.optim.lr_scheduler:LambdaLR"), "does not work .*lr_lambda"),
        (Training(schedule="my_recipes:nothing"), "does not work .*NoneType"),
        (Training(schedule="my_recipes:infinite"), "is inf at step"),
        (Training(schedule="my_recipes:two"), "does not work .*other"),
        (Training(schedule="my_recipes:absent"), "has no function absent"),
        (Training(schedule="my_recipes:decay", schedule_options={"third": 3}), "has no option third: use half"),
        (Training(schedule="builtins:dict"), "is no function, and no scheduler of PyTorch"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_before_a_step(own, problem, training, words):
    with pytest.raises(InputError, match=words):
        check(training, Problem(small(), *problem, LOSSES["cross_entropy"]), {B: T})


@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
def test_a_run_may_be_shorter_than_its_warm_up_and_than_four_steps(own, problem, iterations):
    for schedule in ("cosine", "OneCycleLR", "my_recipes:to_the_end"):
        training = Training("momentum", warmup=5, schedule=schedule, average=0.9)
        check(training, Problem(small(), *problem, LOSSES["cross_entropy"]), {B: iterations})
        made = OptimizerEngine(Problem(small(), *problem, LOSSES["cross_entropy"]), ETA, training, iterations, B)
        made.run(batches(0, 0, iterations, B, N))
        assert flat(made.network).isfinite().all()


@pytest.mark.parametrize("rows", [False, True], ids=["labels", "rows"])
def test_the_gradient_is_that_of_smoothed_targets(problem, rows):
    x, y = problem
    expected = plain(problem, sgd, label_smoothing=0.1)
    given = torch.nn.functional.one_hot(y, 3).double() if rows else y
    made = ran((x, given), Training("momentum", label_smoothing=0.1))
    torch.testing.assert_close(flat(made.network), flat(expected), rtol=1e-9, atol=1e-10)


def test_positions_of_weight_zero_stay_left_out_and_the_residual_is_the_gradient(problem):
    smoothed, z = CrossEntropy(0.2), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[1.0, 0, 0], [0, 0, 0], [2.0, 1, 0], [0, 0, 0.5]], dtype=torch.float64)
    for targets in (y, torch.tensor([0, 2, 1, 1])):
        (gradient,) = torch.autograd.grad(smoothed.total(z, targets), z)
        torch.testing.assert_close(gradient, smoothed.residual(z.detach(), targets))
    assert smoothed.residual(z.detach(), y)[1].abs().max() == 0
    mixed = 0.8 * y + 0.2 * y.mean(-1, keepdim=True)
    torch.testing.assert_close(smoothed.total(z, y), LOSSES["cross_entropy"].total(z, mixed))


def test_noise_multiplies_the_gradients_of_smoothed_targets(problem):
    training = Training(label_smoothing=0.1, noise=True, base_batch=2)
    x, y = problem
    smooth = 0.9 * torch.nn.functional.one_hot(y, 3).double() + 0.1 / 3
    made, other = ran(problem, training), ran((x, smooth), replace(training, label_smoothing=0.0))
    torch.testing.assert_close(flat(made.network), flat(other.network), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("average", [0.97, "uniform"])
def test_the_average_is_that_of_pytorch_with_the_buffers_of_the_network(problem, average, tmp_path):
    """`AveragedModel` with its defaults: parameters averaged from the first step on, buffers copied."""
    net = small(torch.nn.BatchNorm1d(8))
    how = {"multi_avg_fn": get_ema_multi_avg_fn(average)} if average != "uniform" else {}
    model = AveragedModel(net, **how)
    sums, count = torch.zeros_like(flat(net)), 0

    def after(net):
        nonlocal sums, count
        model.update_parameters(net)
        sums, count = sums + flat(net), count + 1

    expected = plain(problem, sgd, after=after, net=net)
    made = ran(problem, Training("momentum", average=average), small(torch.nn.BatchNorm1d(8)))
    torch.testing.assert_close(flat(made.network), flat(expected), rtol=1e-9, atol=1e-10)
    raw = flat(made.network)
    with made.averaged():
        averaged, buffers = flat(made.network), [one.clone() for one in made.network.buffers()]
        outputs = made.network.eval()(problem[0])
        made.network.train()
    torch.testing.assert_close(averaged, flat(model.module), rtol=1e-6, atol=1e-8)
    if average == "uniform":
        torch.testing.assert_close(averaged, sums / count, rtol=1e-9, atol=1e-10)
    for own, buffer in zip(buffers, model.module.buffers(), strict=True):
        torch.testing.assert_close(own, buffer)
    torch.testing.assert_close(outputs, model.module.eval()(problem[0]), rtol=1e-6, atol=1e-6)
    assert torch.equal(flat(made.network), raw)  # training goes on with the weights themselves


def test_an_average_and_all_else_together_go_on_in_the_same_bits(problem, tmp_path):
    training = Training(
        "muon",
        clip=1.0,
        warmup=WARM,
        schedule="StepLR",
        schedule_options={"step_size": 40},
        label_smoothing=0.1,
        average=0.99,
    )
    whole, again = ran(problem, training), resumed(problem, training, tmp_path)
    assert torch.equal(flat(again.network), flat(whole.network))
    assert all(torch.equal(*both) for both in zip(again.average, whole.average, strict=True))
