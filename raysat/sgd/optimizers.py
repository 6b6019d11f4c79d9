"""The engine for trainings other than plain SGD: optimizers of `torch.optim`, schedules, and multiplicative noise."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from raysat.errors import InputError
from raysat.sgd.autograd import AutogradEngine, OverAutograd
from raysat.sgd.problem import Problem
from raysat.sgd.sampler import normal
from raysat.sgd.torch_optim import optimizers_of, refused, restore
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
        bfloat16: Whether the passes are computed in bfloat16, as by `AutogradEngine`.
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
        *,
        bfloat16: bool = False,
    ) -> None:
        self.network, self.inner = problem.network, AutogradEngine(problem, eta, micro_batch, bfloat16=bfloat16)
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
            self.take(self.inner.gradients(batch, None if noise is None else noise[k]))

    def take(self, gradients: Sequence[Tensor]) -> None:
        """Take one step, given the gradient of the batch, a tensor for each parameter."""
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


def check(training: Training, problem: Problem, iterations: Mapping[int, int]) -> None:
    """Try a training on a network, which is changed.

    Args:
        training: The training.
        problem: The network, whose gradients are replaced by random numbers.
        iterations: T at each batch size.

    Raises:
        InputError: The optimizer cannot be made at some batch size, fails in a step, or does not go on after a
            checkpoint as if it had not stopped.
    """
    if training.is_plain or training.is_asynchronous:
        return
    with torch.random.fork_rng(devices=[]):
        engines = [OptimizerEngine(problem, _TRIED, training, t, b) for b, t in iterations.items()]
        _take(engines[0], 2)
        state = engines[0].state_dict()
        try:
            torch.save(state, stored := io.BytesIO())
            stored.seek(0)
            state = torch.load(stored, weights_only=True)
        except Exception as error:
            raise InputError(
                f"optimizer={training.optimizer!r} has a state that checkpoints, which are data and no code, cannot "
                "hold: let it keep numbers, texts, tensors, and lists and dictionaries of them."
            ) from error
        there = [one.detach().clone() for one in engines[0].inner.parameters]
        _take(engines[0], 2)
        ended = [one.detach().clone() for one in engines[0].inner.parameters]
        again = OptimizerEngine(problem, _TRIED, training, engines[0].iterations, engines[0].b)
        with torch.no_grad():
            torch._foreach_copy_(again.inner.parameters, there)
        try:
            again.load_state_dict(state)
        except Exception as error:
            raise refused(training, error) from error
        _take(again, 2)
    if not all(torch.equal(*both) for both in zip(ended, again.inner.parameters, strict=True)):
        raise InputError(
            f"optimizer={training.optimizer!r} goes on otherwise after a checkpoint than without: let it keep all that "
            "it remembers in its `state` or its `param_groups`, which its `state_dict` returns."
        )


_TRIED = 1e-3
"""The learning rate at which a training is tried."""


def _take(engine: OptimizerEngine, steps: int) -> None:
    """Take some steps with random gradients, the same ones at each step of a run."""
    for _ in range(steps):
        torch.manual_seed(engine.step)
        try:
            engine.take([torch.randn_like(one) for one in engine.inner.parameters])
        except InputError:
            raise
        except Exception as error:
            raise refused(engine.training, error) from error
