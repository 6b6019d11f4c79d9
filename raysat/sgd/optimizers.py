"""The engine for trainings other than plain SGD: optimizers, schedules, averages, changed batches and noise."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from raysat.errors import InputError
from raysat.losses import CrossEntropy
from raysat.sgd.autograd import AutogradEngine, OverAutograd
from raysat.sgd.learning_rate import LearningRates
from raysat.sgd.problem import Problem
from raysat.sgd.sampler import normal
from raysat.sgd.torch_optim import follow, optimizers_of, refused, restore
from raysat.spec import phases
from raysat.spec.references import is_reference
from raysat.spec.training import Training
from raysat.storage.checkpoint import unpacked


class OptimizerEngine(OverAutograd):
    """Steps of an optimizer under a schedule, and the average of their weights.

    Args:
        problem: Its network is updated in place, on batches that its transform has changed, if it has one.
        eta: Learning rate (stepsize), before warm-up and schedule.
        training: Optimizer, clipping, warm-up, schedule, noise, label smoothing and average.
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
        if training.label_smoothing:
            assert isinstance(problem.loss, CrossEntropy)  # a sweep refuses others
            problem = replace(problem, loss=CrossEntropy(training.label_smoothing))
        self.network, self.inner = problem.network, AutogradEngine(problem, eta, micro_batch, bfloat16=bfloat16)
        self.training, self.seed, self.step, self.b = training, seed, 0, b
        self.optimizers = optimizers_of(training, problem.network, eta, b)
        self.rates = LearningRates(training, self.optimizers, iterations, b)
        self.average: list[Tensor] = []  # of the weights after each step so far, in the order of the parameters

    def run(self, batches: Int64[Tensor, "steps b"]) -> None:
        """Take one step for each row of indices."""
        steps, b = batches.shape
        if b != self.b:
            self.follow(b)
        deviation = self.training.noise_deviation(b)
        noise = 1 + deviation * normal(self.seed, self.step, steps, b, str(batches.device)) if deviation else None
        for k, batch in enumerate(batches):
            self.take(self.inner.gradients(batch, None if noise is None else noise[k], self.step))

    def follow(self, b: int) -> None:
        """Let the settings that follow the batch size be those of b: of the steps from here on."""
        follow(self.optimizers, self.training, b)
        self.rates.follow(b)
        self.b = b

    def take(self, gradients: Sequence[Tensor]) -> None:
        """Take one step, given the gradient of the batch, a tensor for each parameter."""
        for parameter, value in zip(self.inner.parameters, gradients, strict=True):
            parameter.grad = value
        if self.training.clip:
            nn.utils.clip_grad_norm_(self.inner.parameters, self.training.clip)
        self.rates.set(self.step)
        for optimizer in self.optimizers:
            optimizer.step()
        self.rates.advance(self.step)
        self.step += 1
        if self.training.average:
            self._add_to_average()

    def weights(self) -> list[Tensor]:
        """Return copies of the weights that are trained."""
        return [one.detach().clone() for one in self.inner.parameters]

    def _add_to_average(self) -> None:
        """Add the weights after step t: the first are the average; then `a <- a + (w_t - a) (1 - decay)`, or `/ t`."""
        if not self.average:
            self.average = self.weights()
            return
        decay = self.training.average
        share = 1 - decay if isinstance(decay, float) else 1 / self.step
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.inner.parameters, share)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the network have the average of its weights inside the block; without a step or an average, its own."""
        if not self.average:
            yield
            return
        own = self.weights()
        try:
            with torch.no_grad():
                torch._foreach_copy_(self.inner.parameters, self.average)
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.inner.parameters, own)

    def state_dict(self) -> dict[str, Any]:
        """Return the engine's state, without the network, for a checkpoint."""
        optimizers = [one.state_dict() for one in self.optimizers]
        own = {"schedulers": self.rates.state_dict(), "average": self.average}
        return {"step": self.step, "optimizers": optimizers, **{name: one for name, one in own.items() if one}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.step = state["step"]
        stored = state["optimizers"] if "optimizers" in state else [state["optimizer"]]  # before there were several
        for optimizer, own in zip(self.optimizers, stored, strict=True):
            restore(optimizer, own)
        self.rates.load_state_dict(state.get("schedulers", []))
        if self.training.batch_schedule:  # the optimizers' settings are those of the last step's batch
            self.follow(self.b)
        self.average = [
            one.to(like.device) for one, like in zip(state.get("average", []), self.inner.parameters, strict=False)
        ]


def check(training: Training, problem: Problem, iterations: Mapping[int, int]) -> None:
    """Try a training on a network, which is changed.

    Args:
        training: The training.
        problem: The network, whose gradients are replaced by random numbers.
        iterations: T at each batch size.

    Raises:
        InputError: Optimizer or schedule cannot be made at some batch size, fail in a step, or do not go on after a
            checkpoint as if they had not stopped.
    """
    if training.is_plain or training.is_asynchronous:
        return
    with torch.random.fork_rng(devices=[]):
        for b, t in iterations.items():
            engine = OptimizerEngine(problem, _TRIED, training, t, b)
            for one in phases.spans(training.batch_schedule, b):
                engine.follow(one.b)
        b, t = next(iter(iterations.items()))
        at_once = replace(training, warmup=0, warmup_samples=0)  # the schedule's own steps are to be tried
        engine = OptimizerEngine(problem, _TRIED, at_once, t, b)
        _take(engine, min(2, (t + 1) // 2))
        if not any(map(is_reference, (training.optimizer, training.schedule))):
            return
        there, state = engine.weights(), _stored(engine)
        _take(engine, min(2, t // 2))
        ended = engine.weights()
        with torch.no_grad():
            torch._foreach_copy_(engine.inner.parameters, there)
        again = OptimizerEngine(problem, _TRIED, at_once, t, b)  # at the stored weights, as in a trial
        try:
            again.load_state_dict(state)
        except Exception as error:
            raise refused(training, error) from error
        _take(again, min(2, t // 2))
    if _distance(again.weights(), ended) > ROUNDING * _distance(there, ended):
        raise InputError(
            f"{_what(training)} goes on otherwise after a checkpoint than without: let it keep all that it remembers "
            "where its `state_dict` returns it, an optimizer in its `state` or its `param_groups`."
        )


ROUNDING = 1e-3
"""The fraction of a step by which two runs may differ. Default: 1e-3, far above the effect of another order of
summation, and far below that of a state that was lost."""


def _distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return math.sqrt(sum((a - b).double().square().sum().item() for a, b in zip(one, other, strict=True)))


def _stored(engine: OptimizerEngine) -> dict[str, Any]:
    """Return an engine's state as a checkpoint would."""
    try:
        torch.save(engine.state_dict(), stored := io.BytesIO())
        return unpacked(stored.getvalue())
    except Exception as error:
        raise InputError(
            f"{_what(engine.training)} has a state that checkpoints, which are data and no code, cannot hold: let it "
            "keep numbers, texts, tensors, and lists and dictionaries of them."
        ) from error


def _what(training: Training) -> str:
    return " with ".join(f"{name}={getattr(training, name)!r}" for name in ("optimizer", "schedule"))


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
