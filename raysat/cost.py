"""What a cell costs: floating-point operations, and seconds on this machine from a short calibration."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from raysat.losses import Loss
from raysat.sgd.engine import build
from raysat.sgd.evaluate import evaluate
from raysat.sgd.schedule import evaluation_iterations
from raysat.spec import Cell


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one sample, counted by PyTorch as they run.

    Attributes:
        forward: Of an evaluation.
        step: Of its part in an SGD step: forward and backward.
    """

    forward: int
    step: int

    def of_steps(self, cell: Cell) -> int:
        """Operations of a cell's SGD steps."""
        return cell.iterations * cell.batch_size * self.step

    def of_evaluations(self, cell: Cell) -> int:
        """Operations of a cell's evaluations of the full loss."""
        evaluations = len(evaluation_iterations(cell.iterations, cell.evaluations))
        return evaluations * (cell.init.n + cell.init.n_test) * self.forward

    def weight(self, cell: Cell) -> float:
        """A cell's share of the time, in operations: its own, and what it takes to launch a step.

        A step on one sample takes about as long as 40 samples' work more (measured for three hidden layers of 1000 on
        two cores: 2.9 ms at b = 1, 3.4 ms at b = 8, 8 ms at b = 64).
        """
        return self.of_steps(cell) * (1 + 40 / cell.batch_size) + self.of_evaluations(cell)


def count(network: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Flops:
    """Count the operations of the first sample."""
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        network(x[:1])
    with FlopCounterMode(display=False) as step:
        value = loss.total(network(x[:1]), y[:1])
        torch.autograd.grad(value, [p for p in network.parameters() if p.requires_grad])
    return Flops(forward.get_total_flops(), step.get_total_flops())


GPU_RATE, GPU_LAUNCH = 2.5e13, 1e-3
"""What the dry run assumes of one H100-class GPU, unmeasured: float32 operations a second, about 40 % of the peak of
6.7e13 without tensor cores, and seconds to launch a step."""


def gpu_hours(cell: Cell, flops: Flops) -> float:
    """Hours of a cell on one H100-class GPU, by `GPU_RATE` and `GPU_LAUNCH`."""
    work = (flops.of_steps(cell) + flops.of_evaluations(cell)) / GPU_RATE
    return (work + cell.iterations * GPU_LAUNCH) / 3600


@dataclass(frozen=True)
class Pace:
    """Seconds on this machine.

    Attributes:
        launch: Of a step, whatever its batch.
        sample: Of one sample in a step.
        evaluation: Of one sample in an evaluation.
    """

    launch: float
    sample: float
    evaluation: float

    def seconds(self, cell: Cell) -> float:
        """Estimated seconds of a cell."""
        evaluations = len(evaluation_iterations(cell.iterations, cell.evaluations))
        steps = cell.iterations * (self.launch + cell.batch_size * self.sample)
        return steps + evaluations * (cell.init.n + cell.init.n_test) * self.evaluation


def calibrate(network: nn.Module, x: Tensor, y: Tensor, loss: Loss, engine: str = "auto") -> Pace:
    """Time a few steps at b = 1 and at a larger b, and an evaluation: some seconds at most; weights stay.

    The larger b is 256 (or n), or less where that many samples would take seconds.

    Args:
        network: On the CPU, like the data.
        x: Inputs.
        y: Targets.
        loss: The loss of a sample.
        engine: The engine that will take the steps; a GPU's is timed as `auto`.
    """
    taker = build("auto" if engine == "graph" else engine, network, x, y, loss, eta=0.0)
    steps = 16 if taker.name == "fused" else 1  # a block of them
    small = _seconds(lambda: taker.run(torch.zeros(steps, 1, dtype=torch.int64))) / steps
    most = int(min(256, len(x), max(2, 1 / small)))
    large = _seconds(lambda: taker.run(torch.arange(most)[None]))
    sample = max(large - small, 0.0) / max(most - 1, 1)
    chunk = int(min(len(x), 2048, max(1, 1 / small)))
    evaluation = _seconds(lambda: evaluate(network, x[:chunk], y[:chunk], loss, classes=False)) / chunk
    return Pace(max(small - sample, 0.0), sample, evaluation)


def _seconds(function, least: float = 0.2) -> float:
    """Median seconds of a call, over at least `least` seconds, after one that is not counted."""
    function()
    times: list[float] = []
    while sum(times) < least:
        begun = time.perf_counter()
        function()
        times.append(time.perf_counter() - begun)
    return sorted(times)[len(times) // 2]
