"""The user's transforms of training batches: against a loop of plain PyTorch, and what they may not do."""

import random
import sys
import types

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from raysat import InputError
from raysat.data import Dataset, Fields
from raysat.losses import LOSSES
from raysat.sgd.asynchronous import AsynchronousEngine
from raysat.sgd.optimizers import OptimizerEngine
from raysat.sgd.problem import Problem
from raysat.sgd.sampler import GENERATORS_AT_ONCE, batches, generator
from raysat.sgd.transform import Transform
from raysat.spec.phases import Phase
from raysat.spec.training import Training

ETA, B, N, T, SEED = 0.02, 6, 30, 60, 3


def shaken(x, y, generator):
    """Noise and mixup: inputs and targets change, by draws for each sample and draws that samples share."""
    x.add_(0.3 * torch.randn(x.shape, generator=generator, dtype=x.dtype))
    share = torch.rand(1, generator=generator, dtype=x.dtype)
    other = torch.randperm(len(x), generator=generator)
    return share * x + (1 - share) * x[other], share * y + (1 - share) * y[other]


@pytest.fixture
def own(monkeypatch):
    """Adds a function to a user's module, and returns its import path."""
    module = types.ModuleType("my_transforms")
    monkeypatch.setitem(sys.modules, "my_transforms", module)

    def add(function):
        module.function = function
        return "my_transforms:function"

    return add


def samples():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 5, generator=generator, dtype=torch.float64)
    return x, torch.eye(3, dtype=torch.float64)[torch.randint(0, 3, (N,), generator=generator)]


def small():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()


def flat(net):
    return torch.cat([one.detach().flatten() for one in net.parameters()])


def engine(name, training, micro_batch=None):
    problem = Problem(small(), *samples(), LOSSES["cross_entropy"], Transform(name, SEED))
    return OptimizerEngine(problem, ETA, training, T, B, SEED, micro_batch)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_steps_are_a_loop_of_plain_pytorch_on_changed_batches(own, optimizer):
    x, y = samples()
    net = small()
    optimizers = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    plain = optimizers[optimizer](net.parameters(), lr=ETA)
    for t, batch in enumerate(batches(SEED, 0, T, B, N)):
        inputs, targets = shaken(x[batch], y[batch], generator(SEED, t))
        plain.zero_grad()
        cross_entropy(net(inputs), targets).backward()
        plain.step()
    made = engine(own(shaken), Training(optimizer))
    made.run(batches(SEED, 0, T, B, N))
    torch.testing.assert_close(flat(made.network), flat(net), rtol=0, atol=1e-10)
    assert torch.equal(made.inner.problem.x, x)
    assert torch.equal(made.inner.problem.y, y)


@pytest.mark.parametrize("training", [Training(), Training("adamw")], ids=lambda training: training.label)
def test_neither_parts_of_a_batch_nor_of_a_run_change_the_transform(own, training):
    whole, parts = engine(own(shaken), training), engine(own(shaken), training, micro_batch=2)
    whole.run(batches(SEED, 0, T, B, N))
    for start in range(0, T, 7):
        parts.run(batches(SEED, start, min(7, T - start), B, N))
    torch.testing.assert_close(flat(parts.network), flat(whole.network), rtol=0, atol=1e-12)
    alone = engine(own(shaken), training)
    for start in range(0, T, 7):
        alone.run(batches(SEED, start, min(7, T - start), B, N))
    assert torch.equal(flat(alone.network), flat(whole.network))


def test_one_asynchronous_learner_takes_the_same_steps(own):
    problem = Problem(small(), *samples(), LOSSES["cross_entropy"], Transform(own(shaken), SEED))
    alone, other = AsynchronousEngine(problem, ETA, 1, seed=SEED), engine(own(shaken), Training())
    for one in (alone, other):
        one.run(batches(SEED, 0, T, B, N))
    torch.testing.assert_close(flat(alone.network), flat(other.network), rtol=0, atol=1e-12)


def test_the_generator_is_of_seed_and_step_alone():
    steps = [0, 1, 2, GENERATORS_AT_ONCE - 1, GENERATORS_AT_ONCE, 10**12]
    draws = [torch.rand(4, generator=generator(seed, step)) for seed in (0, 1, 1 << 40) for step in steps]
    assert len({tuple(one.tolist()) for one in draws}) == len(draws)
    assert torch.equal(torch.rand(4, generator=generator(1 << 40, 10**12)), draws[-1])
    many = torch.cat([torch.rand(8, generator=generator(0, step), dtype=torch.float64) for step in range(2000)])
    assert many.mean().item() == pytest.approx(0.5, abs=4 / (12 * len(many)) ** 0.5)


@pytest.mark.parametrize("x", [{"tokens": torch.arange(12).view(4, 3), "mask": torch.ones(4, 3).bool()}, None])
def test_inputs_of_several_tensors_come_as_the_user_gave_them(own, x):
    x = x or (torch.arange(12).view(4, 3), torch.ones(4, 3))
    seen = []

    def masked(x, y, generator):
        seen.append(x)
        tokens, mask = x.values() if isinstance(x, dict) else x
        changed = tokens * (torch.rand(tokens.shape, generator=generator) < 0.5), mask
        return dict(zip(x, changed, strict=True)) if isinstance(x, dict) else changed, y

    y = torch.zeros(4, 1)
    data = Dataset(x=x, y=y, transform=own(masked))
    made, same = Transform(data.transform, SEED)(data.x, y, 0)
    assert isinstance(made, Fields)
    assert made.named == isinstance(x, dict)
    assert torch.equal(same, y)
    assert [type(one) for one in seen] == [type(x)]
    assert list(made.tensors) == list(data.x.tensors)


def from_the_global_one(x, y, generator):
    return x + torch.randn(x.shape), y


def of_torchvision(x, y, generator):
    """What is written for the global generator may be seeded from the step's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        return from_the_global_one(x, y, generator)


def test_what_draws_from_the_global_generator_may_be_seeded_from_the_steps_own(own):
    transform = Transform(own(of_torchvision), SEED)
    transform.try_on(*samples(), [4])
    (one, _), (other, _) = (transform(*(t[:4] for t in samples()), step) for step in (0, 1))
    assert not torch.equal(one, other)


fresh = np.random.default_rng()


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (from_the_global_one, "draws from a global generator of PyTorch, NumPy or Python: draw from its argument"),
        (lambda x, y, g: (x * np.random.rand(), y), "draws from a global generator"),
        (lambda x, y, g: (x * random.random(), y), "draws from a global generator"),
        (lambda x, y, g: (x * fresh.random(), y), "returns other values for the same arguments: let it draw from its"),
        (lambda x, y, g: x, "returns Tensor: return the pair x, y"),
        (lambda x, y, g: (x[:, :2], y), r"was given x of \[6, 5\], torch.float64, cpu, and returns \[6, 2\]"),
        (lambda x, y, g: (x.float(), y), r"returns \[6, 5\], torch.float32, cpu: let it keep shapes, types"),
        (
            lambda x, y, g: (x, y.argmax(1)),
            r"was given y of \[6, 3\], torch.float64, cpu, and returns \[6\], ",
        ),
        (lambda x, y, g: (None, y), "and returns NoneType"),
        (lambda x, y, g: ({"x": x}, y), r"and returns \{'x': "),
        (lambda x, y, g: (x / 0 * 0, y), "returns x with NaN: let it make none"),
        (lambda x, y, g: (x, y * float("nan")), "returns y with NaN"),
        (lambda x, y: (x, y), "fails on a batch of 6 .*3 were given.*it is called with x, y and a torch.Generator"),
        (lambda x, y, g: sys.exit(1), r"fails on a batch of 6 \(SystemExit"),
    ],
)
def test_a_transform_that_cannot_be_is_one_sentence(own, function, words):
    with pytest.raises(InputError, match=words) as raised:
        Transform(own(function), SEED).try_on(*samples(), [B])
    assert str(raised.value).startswith("transform='my_transforms:function' ")


@pytest.mark.parametrize("value", [shaken, "shaken", "", 3])
def test_a_transform_is_an_import_path(value):
    words = "give the import path of a function, 'module:function', by which every process finds it"
    with pytest.raises(InputError, match=words):
        Dataset(*samples(), transform=value)
    if value:
        with pytest.raises(InputError, match=words):
            Training(transform=value)


def test_a_data_set_keeps_its_transform():
    data = Dataset(*samples(), transform="my_transforms:function")
    assert data.map(torch.clone).transform == data.transform == "my_transforms:function"
    assert Dataset(*samples()).transform is None


def test_a_phase_with_a_draw_of_its_own_changes_its_batches_anew(own):
    name = own(lambda x, y, generator: (x + torch.rand((), generator=generator), y))
    plain, drawn = Transform(name, SEED), Transform(name, SEED, [Phase(10, 2, 1)])
    x, y = torch.zeros(B, 1), torch.zeros(B, 1)
    apart = [float((plain(x, y, step)[0] - drawn(x, y, step)[0]).abs().max()) for step in range(20)]
    assert apart[:10] == [0.0] * 10
    assert min(apart[10:]) > 0
