"""Inputs of several tensors, and how engines take them, parameters that nothing uses, and weighted rows."""

import copy
import math

import oracles
import pytest
import torch
from pooled import Pooled
from torch import nn
from torch.nn import functional as F

from raysat import ntk_statistics
from raysat.compute.micro_batch import max_micro_batch, sample_bytes
from raysat.data import Dataset, Fields
from raysat.data.loading import _cast, _subset
from raysat.data.preprocessing import preprocess
from raysat.errors import InputError
from raysat.losses import LOSSES, resolve
from raysat.models import Unpacked, adapt, build
from raysat.models.linearized import Linearized
from raysat.models.mlp import MLP
from raysat.sgd.asynchronous import AsynchronousEngine
from raysat.sgd.cost import calibrate, count
from raysat.sgd.engine import build as engine_of
from raysat.sgd.optimizers import OptimizerEngine
from raysat.sgd.parallel import ParallelEngine
from raysat.sgd.problem import Problem
from raysat.sgd.sampler import batches
from raysat.sgd.torch_optim import optimizers_of
from raysat.spec.cells import Model
from raysat.spec.training import Training

CROSS, N, INPUTS, C = LOSSES["cross_entropy"], 12, 4, 3
LABELS = torch.arange(N) % C
HOT = torch.eye(C, dtype=torch.float64)[LABELS]
SEVERAL = (torch.rand(N, C, generator=torch.Generator().manual_seed(2)) > 0.4).double()


def binary(outputs, y):
    return F.binary_cross_entropy_with_logits(outputs, y, reduction="none").sum(-1)


def padded(n=N, length=5):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 9, (n, length), generator=generator)
    mask = (torch.arange(length) < torch.randint(1, length + 1, (n, 1), generator=generator)).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def test_adapt_leaves_one_tensor_alone_and_wraps_for_several():
    network, x = nn.Linear(INPUTS, C).double(), features()
    assert adapt(network, x) == (network, x)
    pooled, several = Pooled(), padded()
    wrapped, fields = adapt(pooled, several)
    assert torch.equal(wrapped(fields), pooled(**several))
    assert adapt(wrapped, fields) == (wrapped, fields)
    positional, fields = adapt(pooled, tuple(several.values()))
    torch.testing.assert_close(positional(fields[3:5]), pooled(**several)[3:5])


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ({}, "x has no tensor"),
        ({"a": torch.ones(3), "b": [1, 2, 3]}, "x has 'b' of type list: give a torch.Tensor"),
        ((torch.ones(3), torch.tensor(1.0)), r"x has 1 of shape \[\]"),
        ((torch.ones(3), torch.ones(4)), r"lengths \{0: 3, 1: 4\}: give a row"),
    ],
)
def test_inputs_that_do_not_go_together_are_refused(x, words):
    with pytest.raises(InputError, match=words):
        adapt(Pooled(), x)


@pytest.mark.parametrize("given", [dict, lambda x: tuple(x.values()), lambda x: list(x.values()), Fields])
def test_statistics_of_several_tensors(given):
    torch.manual_seed(0)
    network, x = Pooled().double(), padded()
    expected = oracles.statistics(Unpacked(network), Fields(x), LABELS, "cross_entropy")
    found = ntk_statistics(network, given(x), LABELS, loss="cross_entropy", k_tolerance=1e-9)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-6), name


def tokens(**changes):
    return Dataset(**({"x": padded(), "y": LABELS, "vocabulary": 9} | changes))


def test_a_data_set_of_several_tensors():
    data = tokens(x_test=padded(4), y_test=torch.tensor([0, 2, 1, 0], dtype=torch.int16))
    assert (data.n, data.n_test, data.outputs, data.classes, data.vocabulary) == (N, 4, C, True, 9)
    assert data.input_shape == {"input_ids": (5,), "attention_mask": (5,)}
    assert tokens(x=tuple(padded().values())).input_shape == {0: (5,), 1: (5,)}
    assert data.nbytes == 8 * (2 * 5 + 1) * (N + 4)
    assert data.to(torch.device("cpu")) is data
    assert data.x.to(torch.device("meta")).device == torch.device("meta")


FLOATING = {"pixels": torch.randn(N, 3, dtype=torch.float64), "mask": torch.ones(N, 3, dtype=torch.bool)}


def test_several_tensors_are_cut_and_cast_and_not_preprocessed():
    data = tokens()
    cut = _subset("own", data, 5, None)
    assert (cut.n, cut.outputs, len(cut.x.tensors["attention_mask"])) == (5, C, 5)
    assert preprocess(cut, "center") is cut
    mixed = Dataset(x=FLOATING, y=HOT)
    cast = _cast(mixed, torch.float32)
    assert [tensor.dtype for tensor in cast.x.tensors.values()] == [torch.float32, torch.bool]
    assert cast.y.dtype == torch.float32
    assert preprocess(mixed, "none") is mixed
    with pytest.raises(InputError, match=r"'center' is for one floating tensor.*preprocessing='none'"):
        preprocess(mixed, "center")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": {"a": torch.zeros(0, 3)}}, r"x of shape \[0, 3\]: give at least one"),
        ({"x": {"a": torch.zeros(N, 3), "b": torch.zeros(5, 3)}}, r"Dataset's x has tensors of the lengths"),
        ({"x": {"a": torch.full((N, 3), math.nan)}}, r"NaN in x\['a'\]: remove"),
        ({"y": LABELS[:5]}, "12 inputs in x and 5 targets in y"),
        ({"x_test": padded(), "y_test": LABELS[:, None]}, r"y_test of shape \[12, 1\]: give y_test.flatten\(\)"),
        ({"x_test": tuple(padded().values()), "y_test": LABELS}, "x and x_test of other tensors"),
        ({"x_test": {k: v.int() for k, v in padded().items()}, "y_test": LABELS}, "torch.int32.*differ in the number"),
    ],
)
def test_a_data_set_of_tensors_that_do_not_fit_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        tokens(**changes)


def test_an_additive_mask_may_be_infinite():
    assert tokens(x={"a": torch.full((N, 3), -math.inf)}, vocabulary=None).n == N


def vocabular(width, input_shape, outputs, vocabulary):
    return Pooled(width, vocabulary, outputs)


def test_a_builder_is_told_the_vocabulary_and_gets_its_tensors(monkeypatch):
    monkeypatch.setattr("raysat.models.resolve", lambda name: vocabular)
    data = tokens()
    built = build(Model("my:vocabular"), 6, data.input_shape, data.outputs, 0, data.vocabulary)
    assert built(data.x).shape == (N, C)
    assert built.network.tokens.num_embeddings == 9
    linearized = build(
        Model("my:vocabular", (("linearized", True),)), 6, data.input_shape, data.outputs, 0, data.vocabulary
    )
    assert isinstance(linearized, Linearized)
    torch.testing.assert_close(linearized(data.x), built(data.x))
    with pytest.raises(InputError, match=r"mlp\(\) takes one tensor a sample, and the data set has input_ids"):
        build(Model("mlp"), 6, data.input_shape, data.outputs, 0)
    with pytest.raises(InputError, match="one of 9, but the targets are of 3 classes: give tokens"):
        build(Model("gpt", (("heads", 1),)), 6, (5,), 3, 0, 9)


# Training


ENGINES = ("autograd", "compiled")


def wrapped():
    torch.manual_seed(0)
    return Unpacked(Pooled().double())


def stepped(network, x, y, loss, eta, chosen):
    """Plain SGD, as plainly as possible."""
    network = copy.deepcopy(network)
    for batch in chosen:
        value = loss.total(network(x.index_select(0, batch)), y[batch]) / len(batch)
        value.backward()
        with torch.no_grad():
            for p in network.parameters():
                if p.grad is not None:
                    p -= eta * p.grad
                    p.grad = None
    return network


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_engines_take_several_tensors_and_leave_unused_parameters(engine):
    network = wrapped()
    x, chosen = Fields(padded()), batches(0, 0, 10, 4, N)
    expected = stepped(network, x, LABELS, CROSS, 0.3, chosen)
    before = network.network.unused.weight.detach().clone()
    engine_of(engine, Problem(network, x, LABELS, CROSS), 0.3, micro_batch=3).run(chosen)
    for found, wanted in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted)
    assert torch.equal(network.network.unused.weight, before)


@pytest.mark.parametrize("parts", [None, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "adam"])
def test_optimizers_leave_unused_parameters(optimizer, parts):
    network, x, chosen = wrapped(), Fields(padded()), batches(0, 0, 6, 4, N)
    before = copy.deepcopy(network)
    training = Training(optimizer=optimizer)
    OptimizerEngine(Problem(network, x, LABELS, CROSS), 0.1, training, 6, chosen.shape[1], micro_batch=parts).run(
        chosen
    )
    expected = copy.deepcopy(before)
    (taken,) = optimizers_of(Training(optimizer=optimizer), expected, 0.1, 4)
    for batch in chosen:
        taken.zero_grad()
        (CROSS.total(expected(x.index_select(0, batch)), LABELS[batch]) / 4).backward()
        taken.step()
    for found, wanted in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted)
    assert torch.equal(network.network.unused.weight, before.network.unused.weight)


def test_noisy_gradients_and_stale_ones_leave_unused_parameters():
    for engine in (
        lambda *common: OptimizerEngine(*common, Training(noise=True, base_batch=2), 6, 4),
        lambda *common: AsynchronousEngine(*common, 2),
    ):
        network = wrapped()
        before = copy.deepcopy(network)
        engine(Problem(network, Fields(padded()), LABELS, CROSS), 0.1).run(batches(0, 0, 6, 4, N))
        assert torch.equal(network.network.unused.weight, before.network.unused.weight)
        assert not torch.equal(network.network.head.weight, before.network.head.weight)


def test_ranks_take_several_tensors_and_leave_unused_parameters():
    network, x, chosen = wrapped(), Fields(padded()), batches(0, 0, 5, 3, N)
    expected = stepped(network, x, LABELS, CROSS, 0.3, chosen)
    ParallelEngine(Problem(network, x, LABELS, CROSS), 0.3, ranks=2).run(chosen)
    for found, wanted in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_linearized_network_leaves_unused_parameters():
    network = Linearized(wrapped())
    engine_of("auto", Problem(network, Fields(padded()), LABELS, CROSS), 0.3).run(batches(0, 0, 5, 3, N))
    moved = dict(zip(network.names, [offset.abs().max().item() for offset in network.offsets], strict=True))
    assert {name for name, most in moved.items() if most == 0} == {"network.unused.weight", "network.unused.bias"}


def test_costs_of_several_tensors_are_those_of_one_sample():
    network, x = wrapped(), Fields(padded())
    found = count(network, x, LABELS, CROSS)
    assert found.forward == 2 * (5 * 6 * 6 + 6 * C)  # the embedding and what is elementwise are not counted
    assert found.step == 3 * found.forward
    assert not found.fused
    assert calibrate(network, x, LABELS, CROSS).launch >= 0
    assert sample_bytes(network, x, LABELS, CROSS) >= 8 * (5 * 6 + 6 + C)
    assert max_micro_batch(network, x, LABELS, CROSS) >= 1


def features():
    return torch.randn(N, INPUTS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("y", [SEVERAL, HOT * 3])
@pytest.mark.parametrize("engine", ["fused", "stacked"])
def test_written_out_engines_take_weighted_rows_and_losses_of_ones_own(engine, y):
    chosen = batches(0, 0, 20, 4, N)
    for loss in (CROSS, resolve(binary)):
        torch.manual_seed(0)
        network = MLP(8, INPUTS, C, depth=1).double()
        expected = stepped(network, features(), y, loss, 0.1, chosen)
        engine_of(engine, Problem(network, features(), y, loss), 0.1).run(chosen)
        for found, wanted in zip(network.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(found, wanted)
