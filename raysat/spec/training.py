"""How a cell is trained, as plain, immutable data. The default is fixed-stepsize SGD, which the theory is about.

Optimizers and schedules, asynchronous learners, and the remedies for large batches of Hoffer, Hubara and Soudry 2017,
"Train longer, generalize better". The remaining remedy, ghost batch normalization, is an option of the models.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields
from typing import Any

from raysat.errors import InputError, among, listed, plain, positive, whole

MOMENTUM = ("momentum", "nesterov")
OPTIMIZERS = ("sgd", *MOMENTUM, "adam")
SCHEDULES = ("constant", "step", "cosine")
SCALINGS = ("none", "linear", "sqrt")
ROUND_ROBIN, RANDOM = "round_robin", "random"

Staleness = str | tuple[float, ...]
"""`round_robin`, `random`, or the frequencies with which a staleness of 0, 1, 2, ... was measured."""


@dataclass(frozen=True)
class Training:
    """A training method. The default is fixed-stepsize SGD, the only one for which the NTK makes a prediction.

    A field that has no effect is reset to its default, so that methods that train alike are equal, and so are the ids
    of their cells.

    Attributes:
        optimizer: `sgd`, `momentum` (Polyak's), `nesterov` or `adam`, from `torch.optim` with its defaults.
        momentum: Coefficient of `momentum` and `nesterov`. Default: 0.9, as in He et al. 2016a and Hoffer et al. 2017.
        schedule: Factor of eta (the learning rate) along the run: `constant`: 1; `step`: 1, from T/2 on 0.1, from 3T/4
            on 0.01 (He et al. 2016a on CIFAR-10); `cosine`: (1 + cos(pi t/T)) / 2 (Loshchilov and Hutter 2017, no
            restart).
        scaling: Factor of the stepsize at batch size b: `none`: 1; `linear`: b/base_batch (Goyal et al. 2017); `sqrt`:
            its square root (Hoffer et al. 2017, section 4).
        base_batch: The small batch size that large batches should imitate. Needed by `scaling`, `noise` and
            `adapt_regime`.
        noise: Whether each sample's gradient is multiplied by `z ~ N(1, b/base_batch - 1)`, which gives a batch of size
            b the gradient noise of a batch of size base_batch (Hoffer et al. 2017, section 4; see `noise_deviation`).
        adapt_regime: Whether a run has as many iterations as base_batch would have under the sweep's budget of samples
            or epochs, with its schedule stretched over them (Hoffer et al. 2017, section 6).
        learners: Number of learners p of asynchronous SGD; 1 is SGD.
        staleness: Of asynchronous SGD: `round_robin`, `random`, or the frequencies with which 0, 1, 2, ... was
            measured (see `raysat.sgd.asynchronous`), which are kept relative to the largest one.
    """

    optimizer: str = "sgd"
    momentum: float = 0.9
    schedule: str = "constant"
    scaling: str = "none"
    base_batch: int = 0
    noise: bool = False
    adapt_regime: bool = False
    learners: int = 1
    staleness: Staleness = ROUND_ROBIN

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        among("optimizer", self.optimizer, OPTIMIZERS)
        among("schedule", self.schedule, SCHEDULES)
        among("scaling", self.scaling, SCALINGS)
        if positive("momentum", self.momentum) >= 1:
            raise InputError(f"momentum={self.momentum!r}: give a number below 1, such as 0.9.")
        whole("base_batch", self.base_batch, 0)
        whole("learners", self.learners, 1)
        object.__setattr__(self, "staleness", _as_staleness(self.staleness))
        if self.needs_base_batch and not self.base_batch:
            raise InputError("scaling, noise and adapt_regime compare with a small batch: give base_batch.")
        if self.is_asynchronous and (self.optimizer, self.schedule, self.noise) != ("sgd", "constant", False):
            raise InputError("asynchronous() is plain SGD: leave out its optimizer, schedule and noise.")
        if self.optimizer not in MOMENTUM:
            self._reset("momentum")
        if not self.needs_base_batch:
            self._reset("base_batch")
        if not self.is_asynchronous:
            self._reset("staleness")

    def _reset(self, name: str) -> None:
        object.__setattr__(self, name, type(self).__dataclass_fields__[name].default)

    @property
    def needs_base_batch(self) -> bool:
        """Whether a setting refers to a small batch."""
        return self.scaling != "none" or self.noise or self.adapt_regime

    @property
    def is_asynchronous(self) -> bool:
        """Whether gradients may be stale."""
        return self.learners > 1 or (not isinstance(self.staleness, str) and len(self.staleness) > 1)

    @property
    def is_plain(self) -> bool:
        """Whether the steps are those of fixed-stepsize SGD; the stepsize and the number of steps may be any."""
        return not self.is_asynchronous and (self.optimizer, self.schedule, self.noise) == ("sgd", "constant", False)

    @property
    def suffix(self) -> str:
        """The label as the end of a cell's name; empty for plain SGD."""
        return "" if self == PLAIN else f", {self.label}"

    @property
    def label(self) -> str:
        """The differences from the default, for rows and figures: `sqrt scaling from 32, noise`; `sgd` if none.

        Two trainings that give different results have different labels.
        """
        parts = [] if self.optimizer == "sgd" else [self.optimizer]
        if self.optimizer in MOMENTUM:
            parts = [f"{self.optimizer} {self.momentum}"]
        if self.schedule != "constant":
            parts.append(f"{self.schedule} schedule")
        if self.scaling != "none":
            parts.append(f"{self.scaling} scaling from {self.base_batch}")
        if self.noise:
            parts.append(f"noise of {self.base_batch}")
        if self.adapt_regime:
            parts.append(f"regime of {self.base_batch}")
        if self.is_asynchronous:
            how = self.staleness if isinstance(self.staleness, str) else _measured_label(self.staleness)
            parts.append(f"{self.learners} learners {how}")
        return ", ".join(parts) or "sgd"

    def stepsize_factor(self, b: int) -> float:
        """The factor of the policy's stepsize at batch size b."""
        ratio = b / self.base_batch if self.base_batch else 1.0
        return {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[self.scaling]

    def noise_deviation(self, b: int) -> float:
        """The standard deviation of z at batch size b; 0 up to base_batch.

        `1/b sum_n z_n g_n` with `z ~ N(1, s^2)` has the covariance `(1 + s^2) C / b`, C the mean of `g g^T` (Hoffer et
        al. 2017, section 4, who neglect the square of the mean gradient compared with C). For `s^2 = b/m - 1` it equals
        `C / m`, the covariance of a batch of m samples; s^2 is proportional to b for large b, as in their paper.
        """
        return math.sqrt(max(b / self.base_batch - 1, 0.0)) if self.noise else 0.0


def asynchronous(learners: int, staleness: Staleness = ROUND_ROBIN, **others: Any) -> Training:
    """Asynchronous SGD with p learners, simulated exactly (see `raysat.sgd.asynchronous`).

    Args:
        learners: Their number p; 1 is SGD.
        staleness: `round_robin` (p - 1 for every step), `random`, or the frequencies of 0, 1, 2, ... as measured, as
            `python -m raysat.asgd` prints it.
        others: Further fields of `Training`.
    """
    if unknown := set(others) - {field.name for field in fields(Training)}:
        raise InputError(f"asynchronous({sorted(unknown)[0]}=): a Training has no such field; leave it out.")
    return Training(learners=learners, staleness=staleness, **others)


def factor(schedule: str, t: int, iterations: int) -> float:
    """The factor of eta at step t of T under a schedule of `SCHEDULES`.

    Example:
        >>> [factor("step", t, 100) for t in (0, 50, 75)]
        [1.0, 0.1, 0.01]
    """
    if schedule == "cosine":
        return (1 + math.cos(math.pi * t / iterations)) / 2
    if schedule == "step":
        return 1.0 if 2 * t < iterations else 0.1 if 4 * t < 3 * iterations else 0.01
    return 1.0


def iterations_of(samples: float, b: int, training: Training) -> int:
    """T under a budget of samples: `samples / b`, rounded, at least 1; with `adapt_regime` base_batch replaces b.

    Raises:
        InputError: T is too large to be counted.
    """
    try:
        return max(1, round(samples / (training.base_batch if training.adapt_regime else b)))
    except OverflowError:
        raise InputError("samples or epochs ask for more iterations than can be counted: lower them.") from None


def _as_staleness(value: object) -> Staleness:
    if isinstance(value, str) and value in (ROUND_ROBIN, RANDOM):
        return value
    numbers: tuple[Any, ...] = () if isinstance(value, str) else tuple(map(plain, listed("staleness", value)))
    real = all(isinstance(number, int | float) and 0 <= number < math.inf for number in numbers)
    if not (numbers and real and sum(numbers) > 0):
        raise InputError(f"staleness={value!r}: use 'round_robin', 'random', or how often 0, 1, 2, ... was measured.")
    largest = max(tau for tau, number in enumerate(numbers) if number > 0)
    return tuple(number / max(numbers) for number in numbers[: largest + 1])


def _measured_label(staleness: tuple[float, ...]) -> str:
    """The mean and a digest of a measured staleness: `measured (mean 2.97, 3fa2c1d0)`."""
    mean = sum(tau * share for tau, share in enumerate(staleness)) / sum(staleness)
    digest = hashlib.sha256(repr(staleness).encode()).hexdigest()[:8]
    return f"measured (mean {mean:.3g}, {digest})"


PLAIN = Training()
"""Fixed-stepsize SGD."""
