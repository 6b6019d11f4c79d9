"""What a trial asks of an engine, and what an engine's file says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from raysat.data.fields import Inputs


@runtime_checkable
class StepEngine(Protocol):
    """What a trial asks of an engine.

    Attributes:
        name: As it stands in the trial's row.
        matmul: Where its matrix products are computed, one of `raysat.compute.matmul.Matmul`.
    """

    name: str
    matmul: str

    @property
    def micro_batch(self) -> int:
        """Samples whose gradient is computed at a time, halved as memory runs out."""
        ...

    @property
    def run(self) -> Callable[..., None]:
        """One SGD step for each row of indices, [steps, b]; `StackedEngine` takes as many such as it has networks."""
        ...

    def block(self, b: int) -> int:
        """The steps of batch size b that are computed together, and that a call of `run` should not divide."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """An engine that holds more than the network's parameters."""

    def state_dict(self) -> dict[str, Any]:
        """All that it holds beside the network, for a checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        ...


def never(_network: nn.Module, _x: Inputs) -> bool:
    """Of an engine that `auto` does not take."""
    return False


def fits(_anything: object) -> None:
    """Of an engine that takes any network, or runs on any device."""


@dataclass(frozen=True)
class Maker:
    """The functions of an engine of plain SGD, which its own file has (`raysat.spec.engines.ENGINES`).

    Attributes:
        make: Makes it, from `(problem, eta, micro_batch, *, bfloat16, asked)`: the arguments of `AutogradEngine`, and
            whether the sweep names this engine, which `auto` has taken else.
        wins: Whether `auto` takes it for a network, where the inputs are. Default: never.
        check: Raises `InputError` for a network that it does not know. Default: it knows all.
        check_device: Raises `InputError` where a device's machine lacks something. Default: it needs nothing.
    """

    make: Callable[..., StepEngine]
    wins: Callable[[nn.Module, Inputs], bool] = never
    check: Callable[[nn.Module], object] = fits
    check_device: Callable[[torch.device], object] = fits
