"""The cost of a cell: floating-point operations, and seconds on this machine from a short calibration."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from raysat.data.fields import Inputs, repeated
from raysat.losses import Loss
from raysat.ntk.plain import gradients
from raysat.sgd.engine import build
from raysat.sgd.evaluate import evaluate
from raysat.sgd.fused import layers_of
from raysat.sgd.problem import Problem
from raysat.sgd.schedule import evaluation_iterations
from raysat.sgd.stacked import stackable
from raysat.spec.cells import Cell
from raysat.spec.engines import AUTO, needs_gpu
from raysat.spec.sweep import FEWEST_EVALUATIONS


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one sample, counted by PyTorch as they run.

    Attributes:
        forward: In an evaluation.
        step: In an SGD step: forward and backward.
        fused: Whether the fused engine takes the steps of plain SGD.
        stackable: Whether the network is small enough for the stacked engine.
    """

    forward: int
    step: int
    fused: bool = False
    stackable: bool = False

    def of_steps(self, cell: Cell) -> int:
        """Return the operations of a cell's SGD steps."""
        return cell.samples_at(cell.iterations) * self.step

    def of_evaluations(self, cell: Cell) -> int:
        """Return the operations of a cell's evaluations, including those of the gradient's norm."""
        return evaluated_samples(cell) * self.forward + differentiated_samples(cell) * self.step

    def weight(self, cell: Cell) -> float:
        """Return a cell's share of the time, in operations: its own, and an equivalent for launching its steps.

        A launch takes as long as the operations of a few samples. Measured on two cores for three hidden layers of
        1000: 4 for the fused engine (0.3 ms at b = 1, 1.0 ms at b = 8, 5.3 ms at b = 64), 20 for autograd.
        """
        launch = 4 if self.fused and cell.training.is_plain else 20
        mean_batch = cell.samples_at(cell.iterations) / cell.iterations
        return self.of_steps(cell) * (1 + launch / mean_batch) + self.of_evaluations(cell)

    def within_budget(self, cell: Cell, budget: float) -> Cell:
        """Return the cell with as many evaluations as the budget allows, at least `FEWEST_EVALUATIONS`.

        Args:
            cell: A cell with the number of evaluations wanted.
            budget: The largest cost of the evaluations, as a fraction of the steps' cost.
        """
        once = self.of_evaluations(cell) / max(_evaluations(cell), 1)
        if once == 0:  # a network of elementwise operations, which are not counted
            return cell
        affordable = int(budget * (self.weight(cell) - self.of_evaluations(cell)) / once)
        return replace(cell, evaluations=min(cell.evaluations, max(FEWEST_EVALUATIONS, affordable)))


def _evaluations(cell: Cell) -> int:
    """Return the evaluations of the cell itself: that of w_0 comes with the statistics at initialization."""
    return len(evaluation_iterations(cell.iterations, cell.evaluations)) - 1


def evaluated_samples(cell: Cell) -> int:
    """Return the samples that pass through the network in all of a cell's evaluations."""
    return _evaluations(cell) * ((cell.init.evaluation_samples or cell.init.n) + cell.init.n_test)


def differentiated_samples(cell: Cell) -> int:
    """Return the samples whose gradient is computed for the gradient's norm at a cell's evaluations."""
    return _evaluations(cell) * cell.init.n if cell.gradient_norm else 0


class _Counter(TorchDispatchMode):
    """Counts operations as PyTorch's `FlopCounterMode`, but does not import the compiler, which takes a second."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if formula := flop_registry.get(func.overloadpacket):
            self.total += formula(*args, **kwargs, out_val=result)
        return result


def count(network: nn.Module, x: Inputs, y: Tensor, loss: Loss) -> Flops:
    """Count the operations of a sample, from a batch of two: batch normalization needs at least two."""
    x, y = repeated(x, 2), repeated(y, 2)
    with _Counter() as forward, torch.no_grad():
        network(x)
    with _Counter() as step:
        trained = [p for p in network.parameters() if p.requires_grad]
        gradients(loss.total(network(x), y), trained)
    return Flops(forward.total // 2, step.total // 2, layers_of(network) is not None, stackable(network))


GPU_RATE, GPU_LAUNCH = 2.5e13, 1e-3
"""Assumptions of the dry run about one H100-class GPU, not measured: float32 operations a second, about 40 % of the
peak of 6.7e13 without tensor cores, and the seconds to launch a step."""


def gpu_hours(cell: Cell, flops: Flops) -> float:
    """Return the hours of a cell on one H100-class GPU, by `GPU_RATE` and `GPU_LAUNCH`."""
    work = (flops.of_steps(cell) + flops.of_evaluations(cell)) / GPU_RATE
    return (work + cell.iterations * GPU_LAUNCH) / 3600


@dataclass(frozen=True)
class StepTime:
    """A model of the time of steps and evaluations on this machine, in seconds.

    Attributes:
        launch: Time of a step, independent of its batch size.
        sample: Further time of each sample in a step.
        evaluation: Time of each sample in an evaluation.
    """

    launch: float
    sample: float
    evaluation: float

    def seconds(self, cell: Cell) -> float:
        """Return the estimated seconds of a cell."""
        steps = cell.iterations * self.launch + cell.samples_at(cell.iterations) * self.sample
        return steps + evaluated_samples(cell) * self.evaluation + differentiated_samples(cell) * self.sample


def calibrate(network: nn.Module, x: Inputs, y: Tensor, loss: Loss, engine: str = "auto") -> StepTime:
    """Time some steps at b = 1 and at a larger b, and an evaluation: some seconds at most.

    The larger b is 256 (or n), or less if that many samples would take seconds. The stepsize is tiny but not zero,
    because libraries skip the update at zero.

    Args:
        network: The network, on the device of the data; a copy of it takes the steps.
        x: Inputs.
        y: Targets.
        loss: The loss of a sample.
        engine: The engine that will take the steps; on a CPU, one that needs a GPU is timed as `auto`.
    """
    engine = AUTO if needs_gpu(engine) and x.device.type == "cpu" else engine
    stepper = build(engine, Problem(copy.deepcopy(network), x, y, loss), eta=1e-12)
    steps = stepper.block(1)
    one = torch.zeros(steps, 1, dtype=torch.int64, device=x.device)
    small = _seconds(lambda: stepper.run(one)) / steps
    most = int(min(256, len(x), max(2, 1 / small)))
    many = torch.arange(most, device=x.device).repeat(stepper.block(most), 1)
    large = _seconds(lambda: stepper.run(many)) / len(many)
    sample = max(large - small, 0.0) / max(most - 1, 1)
    chunk = int(min(len(x), 2048, max(1, 1 / small)))
    evaluation = _seconds(lambda: evaluate(network, x[:chunk], y[:chunk], loss, classes=False)) / chunk
    return StepTime(max(small - sample, 0.0), sample, evaluation)


def _seconds(function, least: float = 0.2) -> float:
    """Return the median seconds of a call, over at least `least` seconds, after a first call that does not count."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    function()
    times: list[float] = []
    while sum(times) < least:
        wait()
        begun = time.perf_counter()
        function()
        wait()
        times.append(time.perf_counter() - begun)
    return sorted(times)[len(times) // 2]
