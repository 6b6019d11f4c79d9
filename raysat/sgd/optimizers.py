"""The engine for trainings other than plain SGD: optimizers of `torch.optim`, schedules, and multiplicative noise."""

from __future__ import annotations

from typing import Any

from jaxtyping import Int64
from torch import Tensor, nn

from raysat.sgd.autograd import AutogradEngine, OverAutograd
from raysat.sgd.problem import Problem
from raysat.sgd.sampler import normal
from raysat.sgd.torch_optim import optimizers_of, restore
from raysat.spec.training import Training


class OptimizerEngine(OverAutograd):
    """Steps of an optimizer under a schedule.

    Args:
        problem: Its network is updated in place.
        eta: Learning rate (stepsize), before warm-up and schedule.
        training: Optimizer, clipping, warm-up, schedule and noise.
        iterations: T, over which the schedule runs.
        b: Batch size, which settings of the optimizer and the warm-up may follow.
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
        b: int,
        seed: int = 0,
        micro_batch: int | None = None,
    ) -> None:
        self.network, self.inner = problem.network, AutogradEngine(problem, eta, micro_batch)
        self.eta, self.training, self.iterations, self.b, self.seed = eta, training, iterations, b, seed
        self.optimizers = optimizers_of(training, problem.network, eta, b)
        self.rates = [[group["lr"] for group in one.param_groups] for one in self.optimizers]
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
            if self.training.clip:
                nn.utils.clip_grad_norm_(self.inner.parameters, self.training.clip)
            factor = self.training.factor(self.step, self.iterations, self.b)
            for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
                optimizer.step()
            self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the engine's state, without the network, for a checkpoint."""
        return {"step": self.step, "optimizers": [one.state_dict() for one in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.step = state["step"]
        stored = state["optimizers"] if "optimizers" in state else [state["optimizer"]]  # before there were several
        for optimizer, own in zip(self.optimizers, stored, strict=True):
            restore(optimizer, own)
