"""The engine for trainings other than plain SGD: optimizers of `torch.optim`, schedules, and multiplicative noise."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from raysat.sgd.autograd import AutogradEngine, OverAutograd
from raysat.sgd.problem import Problem
from raysat.sgd.sampler import normal
from raysat.spec.training import Training, factor


def optimizer_of(training: Training, parameters: list[Tensor], eta: float) -> torch.optim.Optimizer:
    """Return the optimizer of a training, with PyTorch's defaults for the options that it does not name."""
    if training.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=eta)
    momentum = training.momentum if training.optimizer in ("momentum", "nesterov") else 0.0
    return torch.optim.SGD(parameters, lr=eta, momentum=momentum, nesterov=training.optimizer == "nesterov")


class OptimizerEngine(OverAutograd):
    """Steps of an optimizer under a schedule.

    Args:
        problem: Its network is updated in place.
        eta: Stepsize, before the schedule.
        training: Optimizer, schedule and noise.
        iterations: T, over which the schedule runs.
        seed: The trial's seed, for the noise.
        micro_batch: Samples whose gradient is computed at a time (`raysat.compute.micro_batch`). Default: all.
    """

    name = "optimizer"
    matmul = "torch"

    def __init__(
        self,
        problem: Problem,
        eta: float,
        training: Training,
        iterations: int,
        seed: int = 0,
        micro_batch: int | None = None,
    ) -> None:
        self.network, self.inner = problem.network, AutogradEngine(problem, eta, micro_batch)
        self.eta, self.training, self.iterations, self.seed = eta, training, iterations, seed
        self.optimizer = optimizer_of(training, self.inner.parameters, eta)
        self.step = 0

    def run(self, batches: Int64[Tensor, "steps b"]) -> None:
        """Take one step for each row of indices."""
        steps, b = batches.shape
        deviation = self.training.noise_deviation(b)
        noise = 1 + deviation * normal(self.seed, self.step, steps, b, str(batches.device)) if deviation else None
        for k, batch in enumerate(batches):
            gradients = self.inner.gradients(batch, None if noise is None else noise[k])
            for parameter, value in zip(self.inner.parameters, gradients, strict=True):
                parameter.grad = value
            for group in self.optimizer.param_groups:
                group["lr"] = self.eta * factor(self.training.schedule, self.step, self.iterations)
            self.optimizer.step()
            self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the engine's state, without the network, for a checkpoint."""
        return {"step": self.step, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.step = state["step"]
        self.optimizer.load_state_dict(state["optimizer"])
