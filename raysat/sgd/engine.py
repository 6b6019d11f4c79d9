"""Step engines: what turns batch indices into SGD steps, and which one a trial gets.

Engines of plain SGD, listed in `raysat.spec.engines`, take `(network, x, y, loss, eta)` and are stateless: `run`
updates the network in place. Given the same batches they differ by rounding alone, and a test compares them. Other
trainings (`raysat.spec.training`) have one engine each, which are `Stateful`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import torch
from torch import Tensor, nn

from raysat.compute.matmul import tune_malloc
from raysat.data.fields import Inputs
from raysat.errors import InputError
from raysat.losses import Loss
from raysat.sgd.asynchronous import AsynchronousEngine
from raysat.sgd.autograd import AutogradEngine
from raysat.sgd.fused import FusedEngine
from raysat.sgd.graph import GraphEngine
from raysat.sgd.optimizers import OptimizerEngine
from raysat.sgd.parallel import ParallelEngine
from raysat.sgd.protocol import Maker, Stateful, StepEngine
from raysat.sgd.stacked import StackedEngine
from raysat.spec.cells import Cell
from raysat.spec.engines import AUTO, ENGINES

__all__ = [
    "AutogradEngine",
    "FusedEngine",
    "GraphEngine",
    "ParallelEngine",
    "StackedEngine",
    "Stateful",
    "StepEngine",
    "build",
    "build_for",
    "choose",
    "maker",
]


def build_for(
    cell: Cell,
    engine: str,
    networks: Sequence[nn.Module],
    x: Inputs,
    y: Tensor,
    loss: Loss,
    etas: Sequence[float],
    micro_batch: int | None,
    ranks: int = 1,
) -> StepEngine:
    """The engine of a cell: that of its training, or for plain SGD the one asked for; cf. `build`.

    Of `stacked`, there may be several networks, each with its stepsize: those of the cell's seeds.
    """
    training, seed = cell.training, cell.init.seed
    set_precision(cell.precision, x.device)
    if engine == "stacked" and ranks == 1:
        tune_malloc()
        return StackedEngine(networks, x, y, loss, etas, micro_batch)
    (network,), (eta,) = networks, etas
    if training.is_plain:
        built = build(engine, network, x, y, loss, eta, micro_batch, ranks, bfloat16=cell.precision == "bfloat16")
        if isinstance(built, AutogradEngine) and built.name == "compiled":
            built.compile_for(cell.batch_size)
        return built
    if cell.precision == "bfloat16":
        raise InputError("precision='bfloat16' is for plain SGD: set precision='full' or leave out trainings.")
    tune_malloc()
    common = network, x, y, loss, eta
    if training.is_asynchronous:
        return AsynchronousEngine(*common, training.learners, training.staleness, seed, micro_batch)
    return OptimizerEngine(*common, training, cell.iterations, cell.batch_size, seed, micro_batch)


def build(
    engine: str,
    network: nn.Module,
    x: Inputs,
    y: Tensor,
    loss: Loss,
    eta: float,
    micro_batch: int | None = None,
    ranks: int = 1,
    *,
    bfloat16: bool = False,
) -> StepEngine:
    """The engine asked for; of `auto`, the one that wins for this network on this device. Several ranks have their own.

    Args:
        engine: `auto`, or a name of `raysat.spec.engines.ENGINES`.
        network: Updated in place.
        x: Inputs of all samples.
        y: Targets of all samples.
        loss: The loss of a sample.
        eta: Stepsize.
        micro_batch: Samples whose gradient is computed at a time (`raysat.compute.micro_batch`). Default: all.
        ranks: Processes among which each batch is split. Default: this one alone.
        bfloat16: Whether forward and backward passes are computed in bfloat16, by `AutogradEngine`.

    Raises:
        InputError: The engine does not know this network, or there is no GPU for `graph`, or for each of the ranks.
    """
    tune_malloc()
    if ranks > 1:
        if bfloat16:
            raise InputError("precision='bfloat16' is for one rank: set ranks_per_trial=1 or precision='full'.")
        return ParallelEngine(network, x, y, loss, eta, micro_batch, ranks=ranks)
    chosen = choose(network, x, bfloat16=bfloat16) if engine == AUTO else engine
    if bfloat16 and not ENGINES[chosen].bfloat16:
        chosen = "autograd"
    if ENGINES[chosen].gpu and x.device.type != "cuda":
        raise InputError(f"engine={chosen!r} needs a GPU, and this trial runs on the CPU: set engine='auto'.")
    return maker(chosen).make(network, x, y, loss, eta, micro_batch, bfloat16=bfloat16, asked=engine != AUTO)


def set_precision(precision: str, device: torch.device) -> None:
    """Let the GPU's products and convolutions of float32 be computed in TF32, or not.

    PyTorch by default computes convolutions so.

    Raises:
        InputError: TF32 is asked for on a CPU.
    """
    if precision == "tf32" and device.type != "cuda":
        raise InputError("precision='tf32' needs a GPU, and this trial runs on the CPU: set precision='full'.")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def choose(network: nn.Module, x: Inputs, *, bfloat16: bool = False) -> str:
    """The name of the engine that wins for a network, where the inputs are, among those that compute in bfloat16."""
    names = [name for name, engine in ENGINES.items() if engine.bfloat16 or not bfloat16]
    return next(name for name in reversed(names) if maker(name).wins(network, x))


def maker(engine: str) -> Maker:
    """The functions of an engine of `raysat.spec.engines.ENGINES`; of `auto` those of `autograd`, which knows all."""
    module, _, name = ENGINES["autograd" if engine == AUTO else engine].maker.partition(":")
    return getattr(import_module(module), name)
