"""Step engines: what turns batch indices into SGD steps, and which one a trial gets.

Engines of plain SGD, listed in `Engine`, take `(network, x, y, loss, eta)` and are stateless: `run` updates the network
in place. Given the same batches they differ by rounding alone, and a test compares them. Other trainings
(`raysat.spec.training`) have one engine each, which are `Stateful`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from raysat.compute.matmul import keep_memory
from raysat.data.fields import Inputs
from raysat.errors import InputError
from raysat.losses import Loss
from raysat.sgd.asynchronous import AsynchronousEngine
from raysat.sgd.autograd import AutogradEngine
from raysat.sgd.fused import FusedEngine, layers_of
from raysat.sgd.graph import GraphEngine
from raysat.sgd.optimizers import OptimizerEngine
from raysat.sgd.parallel import ParallelEngine
from raysat.sgd.stacked import StackedEngine
from raysat.spec.cells import Cell

__all__ = [
    "AutogradEngine",
    "Engine",
    "FusedEngine",
    "GraphEngine",
    "ParallelEngine",
    "StackedEngine",
    "Stateful",
    "StepEngine",
    "build",
    "build_for",
]


class Engine(Enum):
    """The engines, each with where it wins."""

    AUTOGRAD = "autograd", "on a CPU, for every module that is not fully connected"
    FUSED = "fused", "on a CPU, for fully-connected networks: over autograd by 3 to 9 times at b <= 8, a sixth at 512"
    STACKED = (
        "stacked",
        "on a CPU, for several seeds of small fully-connected networks at b <= 32: over fused by 1.1 to 2.3",
    )
    COMPILED = (
        "compiled",
        "on a CPU, for trials of minutes of convolutions (by a fifth) and attention (by a tenth)",
    )
    GRAPH = "graph", "on a GPU, for any module: one launch for many iterations of the engine above that fits"

    def __init__(self, label: str, wins: str) -> None:
        self.label, self.wins = label, wins


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
    def at_once(self) -> int:
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


def build_for(
    cell: Cell,
    engine: str,
    networks: Sequence[nn.Module],
    x: Inputs,
    y: Tensor,
    loss: Loss,
    etas: Sequence[float],
    at_once: int | None,
    ranks: int = 1,
) -> StepEngine:
    """The engine of a cell: that of its training, or for plain SGD the one asked for; cf. `build`.

    Of `stacked`, there may be several networks, each with its stepsize: those of the cell's seeds.
    """
    training, seed = cell.training, cell.init.seed
    set_precision(cell.precision, x.device)
    if engine == "stacked" and ranks == 1:
        keep_memory()
        return StackedEngine(networks, x, y, loss, etas, at_once)
    (network,), (eta,) = networks, etas
    if training.is_plain:
        built = build(engine, network, x, y, loss, eta, at_once, ranks, bfloat16=cell.precision == "bfloat16")
        if isinstance(built, AutogradEngine) and built.name == "compiled":
            built.compile_for(cell.batch_size)
        return built
    if cell.precision == "bfloat16":
        raise InputError("precision='bfloat16' is for plain SGD: set precision='full' or leave out trainings.")
    keep_memory()
    common = network, x, y, loss, eta
    if training.is_asynchronous:
        return AsynchronousEngine(*common, training.learners, training.staleness, seed, at_once)
    return OptimizerEngine(*common, training, cell.iterations, seed, at_once)


def build(
    engine: str,
    network: nn.Module,
    x: Inputs,
    y: Tensor,
    loss: Loss,
    eta: float,
    at_once: int | None = None,
    ranks: int = 1,
    *,
    bfloat16: bool = False,
) -> StepEngine:
    """The engine asked for; of `auto`, the one that wins for this network on this device. Several ranks have their own.

    Args:
        engine: `auto`, or the label of an `Engine`.
        network: Updated in place.
        x: Inputs of all samples.
        y: Targets of all samples.
        loss: The loss of a sample.
        eta: Stepsize.
        at_once: Samples whose gradient is computed at a time (`raysat.compute.micro_batch`). Default: all.
        ranks: Processes among which each batch is split. Default: this one alone.
        bfloat16: Whether forward and backward passes are computed in bfloat16, by `AutogradEngine`.

    Raises:
        InputError: The engine does not know this network, or there is no GPU for `graph`, or for each of the ranks.
    """
    keep_memory()
    if ranks > 1:
        if bfloat16:
            raise InputError("precision='bfloat16' is for one rank: set ranks_per_trial=1 or precision='full'.")
        return ParallelEngine(network, x, y, loss, eta, at_once, ranks=ranks)
    by_label = {known.label: known for known in Engine}
    chosen = choose(network, x) if engine == "auto" else by_label[engine]
    if bfloat16 and chosen is Engine.FUSED:
        chosen = Engine.AUTOGRAD
    common = network, x, y, loss, eta, at_once
    if chosen is Engine.GRAPH:
        if x.device.type != "cuda":
            raise InputError("engine='graph' needs a GPU, and this trial runs on the CPU: set engine='auto'.")
        fused = layers_of(network) and not bfloat16
        inner = FusedEngine(*common) if fused else AutogradEngine(*common, bfloat16=bfloat16)
        return GraphEngine(inner, optional=engine == "auto")
    if chosen is Engine.FUSED:
        return FusedEngine(*common)
    if chosen is Engine.STACKED:
        return StackedEngine([network], x, y, loss, [eta], at_once)
    return AutogradEngine(*common, bfloat16=bfloat16, compiled=chosen is Engine.COMPILED)


def set_precision(precision: str, device: torch.device) -> None:
    """Let the GPU's products and convolutions of float32 be computed in TF32, or not.

    PyTorch by default computes convolutions so.

    Raises:
        InputError: TF32 is asked for on a CPU.
    """
    if precision == "tf32" and device.type != "cuda":
        raise InputError("precision='tf32' needs a GPU, and this trial runs on the CPU: set precision='full'.")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def choose(network: nn.Module, x: Inputs) -> Engine:
    """The engine that wins for a network, where the inputs are."""
    if x.device.type == "cuda":
        return Engine.GRAPH
    return Engine.FUSED if layers_of(network) else Engine.AUTOGRAD
