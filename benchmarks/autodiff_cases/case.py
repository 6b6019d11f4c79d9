"""What a case is, how its samples are drawn, and how a table of functions becomes a list of cases."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def normal(n: int, *shape: int) -> Tensor:
    return torch.randn(n, *shape)


def positive(n: int, *shape: int) -> Tensor:
    """Between 0.5 and 2."""
    return 0.5 + 1.5 * torch.rand(n, *shape)


def small(n: int, *shape: int) -> Tensor:
    """Between -0.7 and 0.7, so that they stay within (-1, 1) as they are multiplied by a weight."""
    return 1.4 * torch.rand(n, *shape) - 0.7


def with_a_zero(n: int, *shape: int) -> Tensor:
    """One exact zero in each last dimension."""
    x = torch.randn(n, *shape)
    x[..., 1] = 0
    return x


def tokens(n: int, *shape: int) -> Tensor:
    """Indices below 6."""
    return torch.randint(6, (n, *shape))


def fixed(*shape: int) -> Tensor:
    """A constant without structure."""
    return torch.sin(1 + 1.7 * torch.arange(math.prod(shape)) ** 1.3).view(shape)


BAND = torch.ones(5, 5, dtype=torch.bool).tril()
"""What a place in a sequence of five may see: itself and what is before."""


@dataclass(frozen=True)
class Case:
    """A function or a module to differentiate.

    Attributes:
        name: Its name.
        build: Makes the module, or returns the function, of a batch [n, *shape].
        shape: Of one sample.
        draw: Makes the samples.
        stops: It holds something constant on purpose, so that plain autograd is right though it is no derivative.
    """

    name: str
    build: Callable[[], Callable[[Tensor], Tensor]]
    shape: tuple[int, ...]
    draw: Callable[..., Tensor] = normal
    stops: bool = False


class Weighted(nn.Module):
    """A function of a weight, the same for all samples, and of the samples: `function(w, x)`."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], w: Tensor):
        super().__init__()
        self.function, self.w = function, nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.w, x)


def functions(shape: tuple[int, ...], table: dict[str, Callable], draw: Callable = normal, stops=False) -> list[Case]:
    return [Case(name, lambda f=f: f, shape, draw, stops) for name, f in table.items()]


def weighted(shape: tuple[int, ...], w: tuple[int, ...], table: dict[str, Callable], draw: Callable = normal):
    return [Case(name, lambda f=f: Weighted(f, draw(*w)), shape, draw) for name, f in table.items()]


def spd(h: Tensor) -> Tensor:
    """A positive definite matrix with distinct eigenvalues."""
    size = h.shape[-1]
    return h @ h.mT + torch.diag(1.0 + torch.arange(size))


def regular(h: Tensor) -> Tensor:
    """A matrix far from singular."""
    return h + 3 * torch.eye(h.shape[-1])
