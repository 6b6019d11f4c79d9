"""Statistics of every kind of network that users bring are right, or rejected for an admissible reason."""

import inspect
import pkgutil
import re
import subprocess
import sys
from contextlib import contextmanager
from functools import cache
from importlib import import_module

import numpy as np
import oracles
import pytest
import torch
from torch import nn
from zoo import CASES, classes
from zoo.case import cast
from zoo.refused import REFUSED

from raysat.data.fields import Fields
from raysat.errors import InputError
from raysat.ntk import NoStatistics, ntk_statistics, reason_against

QUANTITIES = ("loss_init", "gamma", "gamma_mean", "k_op", "b_star", "noise_scale")
EXACT = 1e-9
SLACK = {torch.float64: 1e-6, torch.float32: 2e-4}


@cache
def expected(name):
    """Return the statistics of a case by the oracle, in float64, and its targets."""
    case = CASES[name]
    network, x = case.made()
    case.meant(network, x)
    y = case.targets(oracles.outputs(network, x))
    return oracles.statistics(network, x, y, case.loss), y


def made(case, dtype):
    if case.needs:
        pytest.importorskip(case.needs)
    found, y = expected(case.name)
    network, x = case.made(dtype)
    return found, network, x, cast(y, dtype)


@contextmanager
def left_as_found(network, *tensors):
    """Check that all that a caller can see of a network, of tensors and of the process is unchanged afterwards."""
    before = everything(network, tensors)
    yield
    after = everything(network, tensors)
    assert after.keys() == before.keys()
    assert [what for what in before if before[what] != after[what]] == []


def everything(network, tensors):
    found = {
        "grad mode": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "torch random": bits(torch.get_rng_state()),
        "numpy random": repr(np.random.get_state()),
    }
    for index, tensor in enumerate(tensors):
        for name, part in tensor.tensors.items() if isinstance(tensor, Fields) else [("", tensor)]:
            found[f"tensor {index} {name}"] = bits(part), part.requires_grad, bits(part.grad)
    for name, p in network.named_parameters(remove_duplicate=False):
        found[name] = id(p), bits(p), p.requires_grad, id(p.grad) if p.grad is not None else None, bits(p.grad)
    for name, b in network.named_buffers(remove_duplicate=False):
        found[name] = id(b), bits(b)
    for name, module in network.named_modules():
        hooks = [len(value) for key, value in sorted(vars(module).items()) if key.endswith("_hooks")]
        own = sorted(key for key in vars(module) if key != "last")  # a network may keep its last output
        found[f"module {name}"] = type(module), module.training, hooks, own, vars(module).get("forward")
    return found


def bits(tensor):
    return (
        None if tensor is None else tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
    )


def agree(found, values, slack, names=QUANTITIES):
    wrong = {name: (getattr(found, name), values[name]) for name in names}
    return {name: pair for name, pair in wrong.items() if not abs(pair[0] - pair[1]) <= slack * abs(pair[1])}


def refusal_of_mixing(case, network, x, y):
    """Return whether a case that may mix samples is rejected, which must be for this reason."""
    reason = reason_against(network, x, y, loss=case.loss)
    assert not reason or re.search("mix|cannot be held constant", reason), reason
    return bool(reason)


@pytest.mark.parametrize("dtype", SLACK, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=str)
def test_every_statistic_is_that_of_plain_autograd(case, dtype):
    values, network, x, y = made(case, dtype)
    if case.may_mix and refusal_of_mixing(case, network, x, y):
        return
    with left_as_found(network, x, y):
        found = ntk_statistics(network, x, y, loss=case.loss, k_tolerance=EXACT, **case.options)
    assert agree(found, values, SLACK[dtype]) == {}, (found.method, found.method_reason)


@pytest.mark.parametrize("case", CASES.values(), ids=str)
def test_by_default_k_op_is_right_to_its_residual(case):
    values, network, x, y = made(case, torch.float32)
    if case.may_mix and refusal_of_mixing(case, network, x, y):
        return
    with left_as_found(network, x, y):
        found = ntk_statistics(network, x, y, loss=case.loss, **case.options)
    assert found.k_op_residual <= 1e-3
    assert values["k_op"] * (1 - found.k_op_residual - 1e-4) <= found.k_op <= values["k_op"] * (1 + 1e-4)
    assert agree(found, values, 1e-3, ("loss_init", "gamma", "gamma_mean", "noise_scale")) == {}


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.kind == "random layers"], ids=str)
def test_random_layers_that_were_turned_off_are_named(case):
    _, network, x, y = made(case, torch.float32)
    found = ntk_statistics(network, x, y, loss=case.loss)
    names = {name or type(network).__name__ for name, _ in network.named_modules()}  # the network itself has none
    off = [name for name in found.off.split(",") if name]
    assert bool(off) == network.training
    assert all(name.strip() in names for name in off), found.off


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.kind == "BatchNorm in training"], ids=str)
def test_norms_whose_statistics_were_held_are_named(case):
    _, network, x, y = made(case, torch.float32)
    if case.may_mix and refusal_of_mixing(case, network, x, y):  # a norm called twice has statistics for each call
        return
    found = ntk_statistics(network, x, y, loss=case.loss)
    held = {
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None)
    }
    assert {name.strip() for name in found.frozen_norms.split(",") if name} == held


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_what_is_refused_is_told_why_and_what_to_do(case):
    if case.needs:
        pytest.importorskip(case.needs)
    network, x = case.made()
    y = torch.zeros(len(x), 3)
    with pytest.raises(InputError) as error:
        ntk_statistics(network, x, y)
    message = str(error.value)
    assert isinstance(error.value, NoStatistics), type(error.value)
    assert [words for words in case.words if not re.search(words, message)] == [], message
    assert "Traceback" not in message
    assert reason_against(network, x, y) == message


# --- every class of torch.nn ------------------------------------------------------------------------------------------


def public_classes():
    """Return every subclass of Module with a public name in torch.nn or a module below torch.nn.modules."""
    modules = [
        nn,
        *(import_module(found.name) for found in pkgutil.iter_modules(nn.modules.__path__, "torch.nn.modules.")),
    ]
    return {
        member
        for module in modules
        for name, member in vars(module).items()
        if inspect.isclass(member) and issubclass(member, nn.Module) and not name.startswith("_")
    }


def covered():
    """Return the classes of which some case has an instance."""
    cases = [case for case in CASES.values() if not case.needs]
    return {type(module) for case in cases for module in case.made()[0].modules()}


def test_every_class_of_torch_nn_is_decided():
    decided = covered() | set(classes.WITHOUT_PARAMETERS) | classes.ABSTRACT | classes.LAZY
    undecided = sorted(kind.__name__ for kind in public_classes() - decided)
    assert undecided == [], "add a case to tests/zoo, or a line to tests/zoo/classes.py"


@pytest.mark.parametrize("kind", classes.WITHOUT_PARAMETERS, ids=lambda kind: kind.__name__)
def test_what_is_said_to_hold_no_parameters_holds_none(kind):
    assert list(classes.WITHOUT_PARAMETERS[kind]().parameters()) == []


# --- whatever the caller's context ------------------------------------------------------------------------------------


@contextmanager
def default_dtype(dtype):
    kept = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(kept)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def matmul_precision(precision):
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(kept)


CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64 by default": lambda: default_dtype(torch.float64),
    "the meta device by default": lambda: default_device("meta"),
    "matrix products of less precision": lambda: matmul_precision("medium"),
    "detect_anomaly": lambda: torch.autograd.detect_anomaly(check_nan=False),
}
WITHIN = (
    "residual network with dropout, train",
    "LSTM with dropout, train",
    "TransformerEncoder, post-norm, train with dropout",
    "TransformerEncoder, padded, eval",
    "spectral_norm, parametrization, train",
    "a buffer that forward changes and uses",
    "the gradient of an energy",
    "experts, the best by index",
    "checkpointing, reentrant",
    "BERT, padded, train",
)


@cache
def outside(name):
    case = CASES[name]
    network, x = case.made(torch.float32)
    return ntk_statistics(network, x, cast(expected(name)[1], torch.float32), loss=case.loss)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", WITHIN)
def test_the_callers_context_changes_nothing(name, context):
    _, network, x, y = made(CASES[name], torch.float32)
    reference = outside(name)
    for p in list(network.parameters())[::2]:
        p.grad = torch.full_like(p, 0.25)
    with CONTEXTS[context](), left_as_found(network, x, y):
        found = ntk_statistics(network, x, y, loss=CASES[name].loss)
    assert agree(found, {name: getattr(reference, name) for name in QUANTITIES}, 1e-5) == {}
    assert (found.off, found.frozen_norms, found.method) == (reference.off, reference.frozen_norms, reference.method)


def test_samples_made_in_inference_mode_or_that_require_a_gradient():
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(7, 4), torch.randn(7, 3)
    reference = {name: getattr(ntk_statistics(network, x, y), name) for name in QUANTITIES}
    with torch.inference_mode():
        made_within = x.clone(), y.clone()
        assert agree(ntk_statistics(network, *made_within), reference, 1e-6) == {}
    assert agree(ntk_statistics(network, *made_within), reference, 1e-6) == {}
    leaf = x.clone().requires_grad_()
    with left_as_found(network, leaf):
        assert agree(ntk_statistics(network, leaf, y), reference, 1e-6) == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["Conv2d", "LSTM", "BERT, eval", "LayerNorm at positions"])
def test_networks_of_half_precision_have_the_statistics_of_their_weights_in_float32(name, dtype):
    _, network, x, y = made(CASES[name], dtype)
    wide = CASES[name].made(dtype)[0].float()
    reference = ntk_statistics(wide, cast(x, torch.float32), y.float(), k_tolerance=1e-6)
    with left_as_found(network, x, y):
        found = ntk_statistics(network, x, y, k_tolerance=1e-6)
    assert agree(found, {name: getattr(reference, name) for name in QUANTITIES}, 1e-4) == {}
    assert found.statistics_dtype == "float32"


def test_the_state_of_random_is_left_alone():
    """Run in a separate process, because the type checks of the tests draw from `random`."""
    code = """
import random, torch
from torch import nn
from raysat import ntk_statistics

class Draws(nn.Module):
    def forward(self, x):
        return x * random.choice([0.5, 2.0]) if self.training else x

network = nn.Sequential(nn.Linear(4, 5), Draws(), nn.Linear(5, 3))
before = random.getstate()
found = ntk_statistics(network, torch.randn(7, 4), torch.randn(7, 3))
assert found.off == "1", found.off
assert random.getstate() == before
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
