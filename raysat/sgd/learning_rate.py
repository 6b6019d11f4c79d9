"""The learning rates of a training's optimizers along a run: the warm-up, and then the schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import __version__
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from raysat.errors import InputError
from raysat.messages.failures import named
from raysat.sgd.torch_optim import arguments_of, check_names
from raysat.spec.references import is_reference
from raysat.spec.training import SCHEDULES, Training, factor
from raysat.text import shown
from raysat.user_code import plugins

PEAK = {lr_scheduler.OneCycleLR: "max_lr", lr_scheduler.CyclicLR: "max_lr"}
"""Schedulers that set rates of their own, and their argument that is the sweep's stepsize instead."""

LENGTH = {lr_scheduler.OneCycleLR: "total_steps", lr_scheduler.CosineAnnealingLR: "T_max"}
"""Schedulers that must be told how long they run: for the iterations after the warm-up, if the options do not say."""


class LearningRates:
    """Sets the learning rates of optimizers at each step.

    After a warm-up of `warm` steps the rates are those of the schedule, which then begins: the optimizers' own times a
    factor, or those that a scheduler of PyTorch sets. At step t of the warm-up they are (t+1)/warm times the ones with
    which the schedule begins.

    Args:
        training: Names the warm-up and the schedule.
        optimizers: With the rates from which the schedule starts.
        iterations: T.
        b: Batch size, which a warm-up in samples follows.

    Raises:
        InputError: The schedule cannot be made with its options, ends before the run, or cannot follow batch sizes.
    """

    def __init__(self, training: Training, optimizers: Sequence[Optimizer], iterations: int, b: int) -> None:
        self.training, self.optimizers, self.warm = training, optimizers, training.warmup_iterations(b)
        self.length = max(1, iterations - self.warm)
        self.b, self.share = b, 1.0  # of the rates, what a batch schedule makes of them
        self.schedulers: list[LRScheduler] = []
        self.factor: Callable[[int], float] = lambda t: 1.0
        name = training.schedule
        kind = plugins.resolve(name) if is_reference(name) else getattr(lr_scheduler, name, None)
        if name in SCHEDULES:
            self.factor = partial(factor, name, iterations=self.length)
        elif isinstance(kind, type) and issubclass(kind, LRScheduler):
            self.schedulers = [self._scheduler(kind, one) for one in optimizers]
        elif kind is None or isinstance(kind, type):
            raise InputError(
                f"schedule={name!r} is no function, and no scheduler of PyTorch {__version__}: use another."
            )
        else:
            own = {"iterations": self.length} if "iterations" in arguments_of(kind) else {}
            self._check_options(kind)
            self.factor = partial(kind, **own | dict(training.schedule_options))
            for t in {0, self.length // 2, self.length - 1}:
                self._factor_at(t)
        if self.schedulers and training.batch_schedule and training.scaling != "none":
            raise InputError(
                f"schedule={name!r} sets rates of its own, which do not follow a batch_schedule: use one of "
                f"{', '.join(SCHEDULES)}, or scaling='none'."
            )
        self.rates = [[group["lr"] for group in one.param_groups] for one in optimizers]

    def follow(self, b: int) -> None:
        """Let the rates that are set from here on be those of a batch size."""
        self.share = self.training.stepsize_factor(b) / self.training.stepsize_factor(self.b)

    def set(self, step: int) -> None:
        """Set the rates of a step."""
        if self.schedulers and step > self.warm:
            return  # each has set its own after the step before
        share = (step + 1) / self.warm if step < self.warm else self._factor_at(step - self.warm)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * share * self.share

    def advance(self, step: int) -> None:
        """Go on to the next step, after one that has been taken."""
        try:
            for scheduler in self.schedulers if step >= self.warm else ():
                scheduler.step()
        except Exception as error:
            raise self._refused(error) from error

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the schedulers' states; the rates themselves are in those of the optimizers."""
        return [one.state_dict() for one in self.schedulers]

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Restore what `state_dict` returned."""
        for scheduler, state in zip(self.schedulers, states, strict=True):
            scheduler.load_state_dict(state)

    def _scheduler(self, kind: type[LRScheduler], optimizer: Optimizer) -> LRScheduler:
        name, options = self.training.schedule, dict[str, Any](self.training.schedule_options)
        if issubclass(kind, lr_scheduler.ReduceLROnPlateau):
            raise InputError(f"schedule={name!r} follows a metric, and schedules here follow the step: use another.")
        if (peak := PEAK.get(kind)) in options:
            raise InputError(f"schedule_options has {peak}, which is the sweep's stepsize: leave it out.")
        self._check_options(kind)
        own: dict[str, Any] = {peak: [group["lr"] for group in optimizer.param_groups]} if peak else {}
        length = {LENGTH[kind]: self.length} if kind in LENGTH and "epochs" not in options else {}
        try:
            made: Any = kind(optimizer, **length | own | options)
        except Exception as error:
            raise self._refused(error) from error
        if kind is lr_scheduler.OneCycleLR and made.total_steps < self.length:
            raise InputError(
                f"schedule='OneCycleLR' is over after {made.total_steps} of {self.length} iterations: leave its length "
                "out, or raise it."
            )
        return made

    def _check_options(self, kind: Callable[..., Any]) -> None:
        known = arguments_of(kind)
        own = (*list(known)[:1], "last_epoch", "iterations")  # the first is the optimizer, or the step
        names = (name for name, _ in self.training.schedule_options)
        check_names(f"schedule={self.training.schedule!r}", names, known, own)

    def _factor_at(self, t: int) -> float:
        try:
            value = float(given := self.factor(t))
        except Exception as error:
            raise self._refused(error) from error
        if not math.isfinite(value):
            raise InputError(f"schedule={self.training.schedule!r} is {shown(given)} at step {t}: return a number.")
        return value

    def _refused(self, error: Exception) -> InputError:
        return InputError(
            f"schedule={self.training.schedule!r} does not work ({named(error)}): fix it or its schedule_options."
        )
