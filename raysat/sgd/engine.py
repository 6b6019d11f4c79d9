"""Step engines: what turns batch indices into SGD steps, and which one a trial gets.

All of them take `(network, x, y, loss, eta)`, hold no state but the network's own parameters, which `run` changes in
place, and see the same batches. They differ by rounding alone, and a test makes them agree.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol, runtime_checkable

from jaxtyping import Int64
from torch import Tensor, nn

from raysat.losses import Loss
from raysat.sgd.autograd import AutogradEngine
from raysat.sgd.fused import FusedEngine, layers_of
from raysat.sgd.graph import GraphEngine
from raysat.sgd.matmul import keep_memory
from raysat.spec import InputError

__all__ = ["AutogradEngine", "Engine", "FusedEngine", "GraphEngine", "StepEngine", "build"]


class Engine(Enum):
    """The engines, each with where it wins."""

    AUTOGRAD = "autograd", "on a CPU, for every module that is not fully connected"
    FUSED = "fused", "on a CPU, for fully-connected networks: by 3 to 6 times at b = 1 to 8, by a tenth at large b"
    GRAPH = "graph", "on a GPU, for any module: one launch for many iterations"

    def __init__(self, label: str, wins: str) -> None:
        self.label, self.wins = label, wins


@runtime_checkable
@runtime_checkable
class StepEngine(Protocol):
    """What a trial asks of an engine.

    Attributes:
        name: As it stands in the trial's row.
        matmul: Where its matrix products are computed, one of `raysat.sgd.matmul.Matmul`.
    """

    name: str
    matmul: str

    def run(self, batches: Int64[Tensor, "steps b"]) -> None:
        """One SGD step for each row of indices."""


def build(engine: str, network: nn.Module, x: Tensor, y: Tensor, loss: Loss, eta: float) -> StepEngine:
    """The engine asked for; of `auto`, the one that wins for this network on this device.

    Args:
        engine: `auto`, or the label of an `Engine`.
        network: Updated in place.
        x: Inputs of all samples.
        y: Targets of all samples.
        loss: The loss of a sample.
        eta: Stepsize.

    Raises:
        InputError: The engine does not know this network, or there is no GPU for `graph`.
    """
    keep_memory()
    by_label = {known.label: known for known in Engine}
    chosen = choose(network, x) if engine == "auto" else by_label[engine]
    if chosen is Engine.FUSED:
        return FusedEngine(network, x, y, loss, eta)
    if chosen is Engine.GRAPH:
        if x.device.type != "cuda":
            raise InputError("engine='graph' needs a GPU, and this trial runs on the CPU: set engine='auto'.")
        return GraphEngine(AutogradEngine(network, x, y, loss, eta), optional=engine == "auto")
    return AutogradEngine(network, x, y, loss, eta)


def choose(network: nn.Module, x: Tensor) -> Engine:
    """The engine that wins for a network, where the inputs are."""
    if x.device.type == "cuda":
        return Engine.GRAPH
    return Engine.FUSED if layers_of(network) else Engine.AUTOGRAD
