"""Judges the statistics of a network that was drawn: right, wrong, or refused for a reason that is true."""

from __future__ import annotations

import re
from dataclasses import dataclass

import oracles
import torch
from grammar import Drawn
from zoo.case import batch_statistics_held

from raysat import ntk_statistics
from raysat.errors import InputError

QUANTITIES = ("loss_init", "gamma", "gamma_mean", "k_op", "b_star", "noise_scale")
SLACK = {torch.float64: 1e-6, torch.float32: 2e-4}


@dataclass(frozen=True)
class Verdict:
    """What came of a draw.

    Attributes:
        word: `right`, `wrong`, `refused`, or `nothing to compare`, where no output depends on any parameter.
        why: What is wrong, or the reason of the refusal.
    """

    word: str
    why: str = ""


def judge(drawn: Drawn, dtype: torch.dtype = torch.float64) -> Verdict:
    """Statistics at k_tolerance = 1e-9 against plain autograd, one sample and one output at a time, in float64.

    Args:
        drawn: The network; it is left as it was, but for its dtype.
        dtype: In which the statistics are computed.
    """
    network = drawn.network.to(dtype)
    x = drawn.x.to(dtype) if drawn.x.is_floating_point() else drawn.x
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        shape = _evaluated_shape(drawn, x)
    if drawn.loss == "mse":
        y = torch.randn(shape, generator=generator).to(dtype) + 0.5
    else:
        y = torch.randint(shape[-1], shape[:-1], generator=generator)
    try:
        found = ntk_statistics(network, x, y, loss=drawn.loss, k_tolerance=1e-9, memory=drawn.memory)
    except InputError as error:
        return _refusal(drawn, str(error))
    except Exception as error:
        return Verdict("wrong", f"{type(error).__name__}: {error}")
    expected = _expected(drawn, y.double() if y.is_floating_point() else y)
    if expected["k_op"] < 1e-12:
        return Verdict("nothing to compare")
    off = {name: (getattr(found, name), expected[name]) for name in QUANTITIES}
    off = {name: pair for name, pair in off.items() if not _near(name, *pair, SLACK[dtype])}
    if found.k_samples < len(x):  # where rows are formed, as many as memory holds; n K of a part is a part of n K
        off.pop("k_op", None), off.pop("b_star", None)
        if found.k_op * found.k_samples > expected["k_op"] * len(x) * (1 + SLACK[dtype]):
            off["k_op of a part"] = found.k_op, expected["k_op"]
    return Verdict("wrong", f"{off} by {found.method}: {found.method_reason}") if off else Verdict("right")


def _near(name: str, value: float, exact: float, slack: float) -> bool:
    # One minus nearly one: the noise scale of samples that agree is no more exact than the norms it is made of.
    scale = exact + 1 if name == "noise_scale" else exact
    return abs(value - exact) <= slack * abs(scale)


def _evaluated_shape(drawn: Drawn, x: torch.Tensor) -> tuple[int, ...]:
    modes = {module: module.training for module in drawn.network.modules()}
    shape = drawn.network.eval()(x.clone()).shape
    for module, mode in modes.items():
        module.training = mode
    return tuple(shape)


def _expected(drawn: Drawn, y: torch.Tensor) -> dict[str, float]:
    """By the oracle, of the network that is meant; which the network is turned into."""
    x = drawn.x.double() if drawn.x.is_floating_point() else drawn.x
    network = drawn.network.double()
    batch_statistics_held(network, x)
    return oracles.statistics(network, x, y, drawn.loss)


def _refusal(drawn: Drawn, reason: str) -> Verdict:
    """A refusal is right only where its reason is true of the network."""
    network = drawn.network.double()
    x = drawn.x.double() if drawn.x.is_floating_point() else drawn.x
    if re.search("mixes the samples", reason):
        with torch.no_grad():
            together, alone = network(x.clone()), torch.cat([network(x[k : k + 1].clone()) for k in range(len(x))])
        true = drawn.mixes and not torch.allclose(together, alone)
    elif re.search("draws random numbers", reason):
        with torch.no_grad():
            true = drawn.draws and not torch.equal(network(x.clone()), network(x.clone()))
    elif re.search("depends on no trainable parameter", reason):
        true = not network(x.clone()).requires_grad
    else:
        true = False
    return Verdict("refused" if true else "wrong", reason)
