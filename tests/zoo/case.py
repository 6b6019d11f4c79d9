"""What a case of the zoo is: a network and samples, and the network whose Jacobian is meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysat.data.fields import Fields

N = 7
"""Samples of most cases: another number than any other dimension, so that no two can be taken for each other."""

Build = Callable[[], tuple[nn.Module, Tensor | Fields]]


def as_given(network: nn.Module, x: Tensor | Fields) -> None:
    """Most networks are meant as they are."""


def evaluated(network: nn.Module, x: Tensor | Fields) -> None:
    """Every module in evaluation mode: random layers off."""
    network.eval()


def batch_statistics_held(network: nn.Module, x: Tensor | Fields) -> None:
    """Random layers off; each call of a batch normalization with the mean and variance of all samples as constants."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for module in network.modules():
        module.training = module in norms and module.training
    seen = {m: [] for m in norms if m.training or m.running_mean is None}

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        over = [d for d in range(inputs[0].ndim) if d != 1]
        seen[module].append(torch.var_mean(inputs[0], over, correction=0)[::-1])

    handles = [module.register_forward_pre_hook(record) for module in seen]
    with torch.no_grad():
        network(x)  # all samples at once: each layer sees what those before it give with their constants
    for handle in handles:
        handle.remove()
    for module, calls in seen.items():
        module.forward = partial(_normalized, module, cycle(calls))


def _normalized(module: nn.Module, calls: Iterator[tuple[Tensor, Tensor]], z: Tensor) -> Tensor:
    return F.batch_norm(z, *next(calls), module.weight, module.bias, False, 0.0, module.eps)


@dataclass(frozen=True)
class Case:
    """A network that users bring, with samples.

    Attributes:
        kind: Under which heading it stands.
        name: Its name among all cases.
        build: Makes network and samples, in float32, from the generator's state.
        loss: `mse`, or `cross_entropy`: labels, or tokens where the outputs are [n, L, V].
        meant: Turns the network into the one whose Jacobian is meant, in place.
        options: Of `ntk_statistics`.
        needs: A package without which there is no such network.
        may_mix: Gradients of a batch are not the sum of those of its samples: a refusal that says so is right, too.
    """

    kind: str
    name: str
    build: Build
    loss: str = "mse"
    meant: Callable[[nn.Module, Tensor | Fields], None] = as_given
    options: Mapping[str, object] = field(default_factory=dict)
    needs: str = ""
    may_mix: bool = False

    def made(self, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor | Fields]:
        """Network and samples; the same weights, whatever the dtype."""
        torch.manual_seed(0)
        network, x = self.build()
        return network.to(dtype), cast(x, dtype)

    def targets(self, outputs: Tensor) -> Tensor:
        """Targets for outputs of the network."""
        generator = torch.Generator().manual_seed(1)
        if self.loss == "mse":
            return (torch.randn(outputs.shape, generator=generator) + 0.5).to(outputs)
        return torch.randint(outputs.shape[-1], outputs.shape[:-1], generator=generator)

    def __str__(self) -> str:
        return self.name


CASES: dict[str, Case] = {}
"""All of them, by name."""


def add(kind: str, name: str, build: Build, **fields: object) -> None:
    """One more case."""
    assert name not in CASES, name
    CASES[name] = Case(kind, name, build, **fields)


def case(kind: str, name: str, **fields: object) -> Callable[[Build], Build]:
    """The same for a function that builds."""

    def register(build: Build) -> Build:
        add(kind, name, build, **fields)
        return build

    return register


def cast(x: Tensor | Fields, dtype: torch.dtype) -> Tensor | Fields:
    """The same samples, numbers in another dtype."""
    if isinstance(x, Fields):
        return x.map(lambda tensor: cast(tensor, dtype))
    return x.to(dtype) if x.is_floating_point() else x.clone()


class Wired(nn.Module):
    """A network of some parts and a function of them and the samples: `forward(parts, x)`."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.wiring = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.wiring(self, x)


def read_out(*layers: nn.Module, x: Tensor, outputs: int = 3) -> tuple[nn.Module, Tensor]:
    """The layers, and a linear readout of all that comes out of them."""
    body = nn.Sequential(*layers, nn.Tanh(), nn.Flatten())
    training = {module: module.training for module in body.modules()}
    with torch.no_grad():
        size = body.eval()(x.clone()).shape[1]  # a layer may change its input in place
    for module, mode in training.items():
        module.training = mode
    return nn.Sequential(*body, nn.Linear(size, outputs)), x


def vectors(*shape: int, n: int = N) -> Tensor:
    """n samples of normal numbers."""
    return torch.randn(n, *shape)


def tokens(length: int, vocabulary: int, n: int = N) -> Tensor:
    """n sequences of tokens."""
    return torch.randint(vocabulary, (n, length))
