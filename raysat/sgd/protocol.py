"""The interface of step engines, and the record by which an engine's file registers it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from raysat.data.fields import Inputs


@runtime_checkable
class StepEngine(Protocol):
    """The interface through which a trial uses an engine.

    Attributes:
        name: The name in the trial's row.
        matmul: The library that computes its matrix products, one of `raysat.compute.matmul.Matmul`.
    """

    name: str
    matmul: str

    @property
    def micro_batch(self) -> int:
        """Samples whose gradient is computed at a time; halved when memory runs out."""
        ...

    @property
    def run(self) -> Callable[..., None]:
        """Takes one SGD step for each row of indices, [steps, b]. `StackedEngine` takes one tensor for each network."""
        ...

    def block(self, b: int) -> int:
        """Return how many steps of batch size b are computed together; a call of `run` should divide no such block."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """An engine with state besides the network's parameters."""

    def state_dict(self) -> dict[str, Any]:
        """Return the engine's state, without the network, for a checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        ...


@runtime_checkable
class Averaging(Protocol):
    """An engine that may average the weights of its steps."""

    def averaged(self) -> AbstractContextManager[None]:
        """Let the network have the average inside the block, if there is one."""
        ...


def never(_network: nn.Module, _x: Inputs) -> bool:
    """Return False: the default of `wins`, for engines that `auto` never selects."""
    return False


def fits(_anything: object) -> None:
    """Accept anything: the default check, for engines that run any network on any device."""


@dataclass(frozen=True)
class Maker:
    """The functions of an engine of plain SGD, defined in the engine's file; `raysat.spec.engines.ENGINES` names them.

    Attributes:
        make: Makes the engine from `(problem, eta, micro_batch, *, bfloat16, asked)`: the arguments of
            `AutogradEngine`, and whether the sweep names this engine; otherwise `auto` selected it.
        wins: Whether `auto` selects it for a network and inputs, whose device counts. Default: never.
        check: Raises `InputError` for a network that it cannot train. Default: it trains any.
        check_device: Raises `InputError` if a device's machine lacks something it needs. Default: it needs nothing.
    """

    make: Callable[..., StepEngine]
    wins: Callable[[nn.Module, Inputs], bool] = never
    check: Callable[[nn.Module], object] = fits
    check_device: Callable[[torch.device], object] = fits
