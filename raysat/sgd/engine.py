"""Step engines, which turn batch indices into SGD steps, and the choice of one for a trial.

Engines of plain SGD, listed in `raysat.spec.engines`, take `(problem, eta)` and are stateless: `run` updates the
network in place. Given the same batches they differ by rounding alone, and a test compares them. Other trainings
(`raysat.spec.training`) have one engine each; these are `Stateful`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import torch
from torch import nn

from raysat.compute.matmul import tune_malloc
from raysat.data.fields import Inputs
from raysat.errors import InputError
from raysat.sgd.asynchronous import AsynchronousEngine
from raysat.sgd.autograd import AutogradEngine
from raysat.sgd.fused import FusedEngine
from raysat.sgd.graph import GraphEngine
from raysat.sgd.optimizers import OptimizerEngine
from raysat.sgd.parallel import ParallelEngine
from raysat.sgd.problem import Problem
from raysat.sgd.protocol import Averaging, Maker, Stateful, StepEngine
from raysat.sgd.stacked import StackedEngine
from raysat.spec.cells import Cell
from raysat.spec.engines import AUTO, ENGINES

__all__ = [
    "AutogradEngine",
    "Averaging",
    "FusedEngine",
    "GraphEngine",
    "ParallelEngine",
    "Problem",
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
    problems: Sequence[Problem],
    etas: Sequence[float],
    micro_batch: int | None,
    ranks: int = 1,
) -> StepEngine:
    """Return the engine of a cell: that of its training, or for plain SGD the one requested; cf. `build`.

    `stacked` takes several problems, each with its stepsize: those of the cell's seeds.
    """
    training, seed, bfloat16 = cell.training, cell.init.seed, cell.precision == "bfloat16"
    set_precision(cell.precision, problems[0].x.device)
    if engine == "stacked" and ranks == 1:
        tune_malloc()
        return StackedEngine(problems, etas, micro_batch)
    (problem,), (eta,) = problems, etas
    if training.is_plain:
        built = build(engine, problem, eta, micro_batch, ranks, bfloat16=bfloat16)
        if isinstance(built, AutogradEngine) and built.name == "compiled":
            built.compile_for(cell.batch_size)
        return built
    tune_malloc()
    if training.is_asynchronous:
        how = training.learners, training.staleness, seed, micro_batch
        return AsynchronousEngine(problem, eta, *how, bfloat16=bfloat16)
    how = training, cell.iterations, cell.batch_size, seed, micro_batch
    return OptimizerEngine(problem, eta, *how, bfloat16=bfloat16)


def build(
    engine: str,
    problem: Problem,
    eta: float,
    micro_batch: int | None = None,
    ranks: int = 1,
    *,
    bfloat16: bool = False,
) -> StepEngine:
    """Return the engine requested; for `auto`, the one that wins for this network and device. Ranks have their own.

    Args:
        engine: `auto`, or a name of `raysat.spec.engines.ENGINES`.
        problem: Its network is updated in place.
        eta: Stepsize.
        micro_batch: Samples whose gradient is computed at a time (`raysat.compute.micro_batch`). Default: all.
        ranks: Processes among which each batch is split. Default: 1, this process alone.
        bfloat16: Whether forward and backward passes are computed in bfloat16, by `AutogradEngine`.

    Raises:
        InputError: The engine cannot train this network, or a GPU is missing, for `graph` or for one of the ranks.
    """
    tune_malloc()
    assert problem.transform is None  # a training with a transform is not plain, and has an engine of its own
    if ranks > 1:
        if bfloat16:
            raise InputError("precision='bfloat16' is for one rank: set ranks_per_trial=1 or precision='full'.")
        return ParallelEngine(problem, eta, micro_batch, ranks=ranks)
    chosen = choose(problem.network, problem.x, bfloat16=bfloat16) if engine == AUTO else engine
    if bfloat16 and not ENGINES[chosen].bfloat16:
        chosen = "autograd"
    if ENGINES[chosen].gpu and problem.x.device.type != "cuda":
        raise InputError(f"engine={chosen!r} needs a GPU, and this trial runs on the CPU: set engine='auto'.")
    return maker(chosen).make(problem, eta, micro_batch, bfloat16=bfloat16, asked=engine != AUTO)


def set_precision(precision: str, device: torch.device) -> None:
    """Turn TF32 on or off for float32 products and convolutions on a GPU.

    By default PyTorch uses it for convolutions.

    Raises:
        InputError: TF32 is requested on a CPU.
    """
    if precision == "tf32" and device.type != "cuda":
        raise InputError("precision='tf32' needs a GPU, and this trial runs on the CPU: set precision='full'.")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def choose(network: nn.Module, x: Inputs, *, bfloat16: bool = False) -> str:
    """Return the engine that wins for a network and inputs; with `bfloat16`, among those that compute in it."""
    names = [name for name, engine in ENGINES.items() if engine.bfloat16 or not bfloat16]
    return next(name for name in reversed(names) if maker(name).wins(network, x))


def maker(engine: str) -> Maker:
    """Return the functions of an engine of `ENGINES`; for `auto` those of `autograd`, which trains any network."""
    module, _, name = ENGINES["autograd" if engine == AUTO else engine].maker.partition(":")
    return getattr(import_module(module), name)
