"""How a cell is trained, as plain, immutable data. The default is fixed-stepsize SGD, which the theory is about.

Optimizers and schedules, rules by which their settings follow the batch size, asynchronous learners, and the remedies
for large batches of Hoffer, Hubara and Soudry 2017, "Train longer, generalize better". The remaining remedy, ghost
batch normalization, is an option of the models.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, fields
from typing import Any

from raysat.errors import InputError, among, boolean, listed, plain, positive, whole
from raysat.spec import phases
from raysat.spec.labels import AUGMENTED
from raysat.spec.options import as_options, worded
from raysat.spec.references import import_path, is_reference
from raysat.text import shown

MOMENTUM = ("momentum", "nesterov")
TORCH = (
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "asgd",
    "muon",
    "nadam",
    "radam",
    "rmsprop",
    "rprop",
)
"""Optimizers of `torch.optim`, by their names in lower case; without those that need a closure or sparse gradients."""
OPTIMIZERS = ("sgd", *MOMENTUM, *TORCH)
SCHEDULES = ("constant", "step", "cosine", "linear")
TORCH_SCHEDULES = (
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "PolynomialLR",
    "StepLR",
)
"""Schedulers of `torch.optim.lr_scheduler`, without those that follow a metric or take functions or schedulers."""
PLATEAU = "ReduceLROnPlateau"
UNIFORM = "uniform"
ADAM_SQRT, HALF_LIFE = "adam_sqrt", "half_life"
SCALINGS = ("none", "linear", "sqrt", ADAM_SQRT, HALF_LIFE)
OF_ADAM = ("adam", "adamw", "nadam", "radam")
"""Those with beta_1, beta_2 and eps, which the rules `adam_sqrt` and `half_life` scale."""

ROUND_ROBIN, RANDOM = "round_robin", "random"

Staleness = str | tuple[float, ...]
"""`round_robin`, `random`, or the frequencies with which a staleness of 0, 1, 2, ... was measured."""


@dataclass(frozen=True)
class Training:
    """A training method. The default is fixed-stepsize SGD, the only one for which the NTK makes a prediction.

    A field that has no effect is reset to its default, so that methods that train alike are equal, and so are the ids
    of their cells.

    Attributes:
        optimizer: `sgd`, `momentum` (Polyak's), `nesterov`, or an optimizer of `torch.optim` such as `adamw` or `muon`
            (`TORCH`), with its defaults; or the import path `module:name` of one's own, a subclass of
            `torch.optim.Optimizer`, or a function `(named parameters, lr, **options)` that returns an optimizer, such
            as one with parameter groups. The sweep's stepsize is its learning rate `lr`; groups with other rates keep
            their ratio to it.
        momentum: Coefficient of `momentum` and `nesterov`. Default: 0.9, as in He et al. 2016a and Hoffer et al. 2017.
        options: Further arguments of the optimizer's class, such as `{"weight_decay": 0.1, "betas": (0.9, 0.95)}`; kept
            as sorted pairs. Default: none.
        clip: Largest norm of the gradient of all weights, to which a larger one is scaled (Pascanu et al. 2013).
            Default: 0, no clipping.
        warmup: Iterations of linear warm-up, with eta (t+1)/warmup at step t (Goyal et al. 2017, section 2.2); the
            schedule runs over those that follow. Default: 0.
        warmup_samples: The same in samples, so that every batch size warms up over equally many: samples/b iterations,
            rounded. Default: 0.
        schedule: Factor of eta (the learning rate) along the run: `constant`: 1; `step`: 1, from T/2 on 0.1, from 3T/4
            on 0.01 (He et al. 2016a on CIFAR-10); `cosine`: (1 + cos(pi t/T)) / 2 (Loshchilov and Hutter 2017, no
            restart); `linear`: 1 - t/T. Or a scheduler of `torch.optim.lr_scheduler` by name (`TORCH_SCHEDULES`), which
            takes a step after each step of the optimizer and whose base learning rate is the sweep's stepsize; or the
            import path `module:name` of one's own, a function `(step, **options)` that returns the factor at a step,
            or a subclass of `LRScheduler`. Each begins after the warm-up, with step 0 and the iterations that are left
            for T; a function that has an argument `iterations` is told how many these are. Default: constant.
        schedule_options: Arguments of such a scheduler or function, such as `{"step_size": 100}`; kept as sorted pairs.
            `OneCycleLR` and `CyclicLR` have the sweep's stepsize for max_lr, and cycle the momentum too unless
            `cycle_momentum` is False; `T_max` of `CosineAnnealingLR` and `total_steps` of `OneCycleLR` are the
            iterations after the warm-up unless given. Default: PyTorch's.
        scaling: What follows the batch size, with kappa = b/base_batch: `none`; `linear`: eta is multiplied by kappa
            (Goyal et al. 2017); `sqrt`: by its square root (Hoffer et al. 2017, section 4). For Adam and its variants
            (`OF_ADAM`) also `adam_sqrt`: eta by sqrt(kappa), eps by 1/sqrt(kappa), and 1 - beta by kappa (Malladi et
            al. 2022, definition 5.2); `half_life`: beta_2 becomes beta_2^kappa, so that its half-life is the same
            number of samples at every b (Marek et al. 2025).
        base_batch: The small batch size that large batches should imitate. Needed by `scaling`, `noise` and
            `adapt_regime`.
        batch_schedule: Pairs (iteration, factor), such as `((100, 4),)`: from iteration 100 on batches of 4 b, with b
            the cell's batch size. What `scaling` makes follow the batch size follows these, with kappa = factor
            b/base_batch, and T is that at which a budget of samples is used up. A third number, as in `((100, 4, 1),)`,
            draws other samples for the steps from there on, for each number its own, under `epochs` with a new pass;
            such a run is a branch (`raysat.analysis.branches`) and in no fit. Default: none, b throughout.
        noise: Whether each sample's gradient is multiplied by `z ~ N(1, b/base_batch - 1)`, which gives a batch of size
            b the gradient noise of a batch of size base_batch (Hoffer et al. 2017, section 4; see `noise_deviation`).
        adapt_regime: Whether a run has as many iterations as base_batch would have under the sweep's budget of samples
            or epochs, with its schedule stretched over them (Hoffer et al. 2017, section 6).
        label_smoothing: The share of each target that is spread evenly over all classes, in the cross-entropy whose
            gradient is taken (Szegedy et al. 2016, section 7). The losses that are measured have none. Default: 0.
        average: Decay of an exponential moving average of the weights, taken after each step, such as 0.999, or
            `uniform` for the mean of all since the first (Polyak and Juditsky 1992). All that is measured along a run
            is of the average, with the buffers of the network that is trained (as in `AveragedModel` of PyTorch);
            training goes on with the weights themselves. Default: 0, no average.
        transform: Import path `module:function` of a function `(x, y, generator) -> (x, y)` that changes the batch of
            each step, such as by random crops (data augmentation), and nothing that is measured (see
            `raysat.sgd.transform`). Default: empty, that of the data set, if it has one.
        learners: Number of learners p of asynchronous SGD; 1 is SGD.
        staleness: Of asynchronous SGD: `round_robin`, `random`, or the frequencies with which 0, 1, 2, ... was
            measured (see `raysat.sgd.asynchronous`), which are kept relative to the largest one.
        code: Digest of the user's own code that `optimizer`, `schedule` and `transform` reach; set when a sweep is laid
            out.
    """

    optimizer: str = "sgd"
    momentum: float = 0.9
    options: Any = ()
    clip: float = 0.0
    warmup: int = 0
    warmup_samples: int = 0
    schedule: str = "constant"
    schedule_options: Any = ()
    scaling: str = "none"
    base_batch: int = 0
    batch_schedule: Any = ()
    noise: bool = False
    adapt_regime: bool = False
    label_smoothing: float = 0.0
    average: float | str = 0.0
    transform: str = ""
    learners: int = 1
    staleness: Staleness = ROUND_ROBIN
    code: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        if not (isinstance(self.optimizer, str) and is_reference(self.optimizer)):
            among("optimizer", self.optimizer, (*OPTIMIZERS, "module:name"))
        if self.schedule == PLATEAU:
            raise InputError(f"schedule={PLATEAU!r} follows a metric, and schedules here follow the step: use another.")
        if not (isinstance(self.schedule, str) and is_reference(self.schedule)):
            among("schedule", self.schedule, (*SCHEDULES, *TORCH_SCHEDULES, "module:name"))
        among("scaling", self.scaling, SCALINGS)
        if positive("momentum", self.momentum) >= 1:
            raise InputError(f"momentum={self.momentum!r}: give a number below 1, such as 0.9.")
        for name in ("options", "schedule_options"):
            object.__setattr__(self, name, as_options(name, getattr(self, name)))
        if self.schedule_options and self.schedule in SCHEDULES:
            raise InputError(f"schedule={self.schedule!r} has no options: leave schedule_options out.")
        object.__setattr__(self, "clip", positive("clip", self.clip) if self.clip else 0.0)
        object.__setattr__(self, "batch_schedule", phases.as_schedule(self.batch_schedule))
        for name in ("base_batch", "warmup", "warmup_samples"):
            whole(name, getattr(self, name), 0)
        for name in ("noise", "adapt_regime"):
            boolean(name, getattr(self, name))
        object.__setattr__(self, "label_smoothing", _as_share("label_smoothing", self.label_smoothing, "0.1"))
        if self.average != UNIFORM:
            object.__setattr__(self, "average", _as_share("average", self.average, "0.999, or 'uniform'"))
        if self.transform:
            import_path("transform", self.transform)
        if self.warmup and self.warmup_samples:
            raise InputError("warmup counts iterations and warmup_samples samples: give one of them.")
        if self.scaling in (ADAM_SQRT, HALF_LIFE) and self.optimizer not in OF_ADAM:
            raise InputError(f"scaling={self.scaling!r} is of {', '.join(OF_ADAM)}: use linear or sqrt.")
        whole("learners", self.learners, 1)
        object.__setattr__(self, "staleness", _as_staleness(self.staleness))
        if self.needs_base_batch and not self.base_batch:
            raise InputError("scaling, noise and adapt_regime compare with a small batch: give base_batch.")
        if self.is_asynchronous and not self._steps_are_plain:
            raise InputError("asynchronous() is plain SGD: leave out its optimizer, schedule, noise and the like.")
        if self.batch_schedule and (self.noise or self.adapt_regime):
            raise InputError("batch_schedule changes the batch that noise and adapt_regime imitate: leave one out.")
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
        """Whether the steps are those of fixed-stepsize SGD on the samples, for any stepsize and number of steps."""
        return not self.is_asynchronous and not self.transform and self._steps_are_plain

    @property
    def _steps_are_plain(self) -> bool:
        steps = self.optimizer, self.options, self.clip, self.warmup, self.warmup_samples, self.schedule, self.noise
        plain = steps == ("sgd", (), 0.0, 0, 0, "constant", False)
        return plain and not (self.label_smoothing or self.average or self.batch_schedule)

    @property
    def names(self) -> tuple[str, str, str]:
        """What may be the import path of a user's own."""
        return self.optimizer, self.schedule, self.transform

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
        if self.options:
            parts = [f"{self.optimizer if not parts else parts[0]} {worded(self.options)}"]
        if self.clip:
            parts.append(f"clipped to {self.clip:.12g}")
        if self.warmup or self.warmup_samples:
            parts.append(
                f"warm-up of {self.warmup or self.warmup_samples} {'iterations' if self.warmup else 'samples'}"
            )
        if self.schedule != "constant":
            parts.append(f"{self.schedule} schedule {worded(self.schedule_options)}".rstrip())
        if self.scaling != "none":
            parts.append(f"{self.scaling} scaling from {self.base_batch}")
        parts += phases.worded(self.batch_schedule)
        if self.noise:
            parts.append(f"noise of {self.base_batch}")
        if self.adapt_regime:
            parts.append(f"regime of {self.base_batch}")
        if self.label_smoothing:
            parts.append(f"label smoothing {self.label_smoothing!r}")
        if self.average:
            parts.append(f"{self.average} average")
        if self.transform:
            parts.append(f"{AUGMENTED}{self.transform}")
        if self.is_asynchronous:
            how = self.staleness if isinstance(self.staleness, str) else _measured_label(self.staleness)
            parts.append(f"{self.learners} learners {how}")
        return ", ".join(parts) or "sgd"

    def stepsize_factor(self, b: int) -> float:
        """The factor of the policy's stepsize at batch size b."""
        ratio = b / self.base_batch if self.base_batch else 1.0
        return {"linear": ratio, "sqrt": math.sqrt(ratio), ADAM_SQRT: math.sqrt(ratio)}.get(self.scaling, 1.0)

    def betas(self, beta_1: float, beta_2: float, b: int) -> tuple[float, float]:
        """Adam's beta_1 and beta_2 at batch size b, given those of base_batch.

        Raises:
            InputError: Under `adam_sqrt` one would be negative.
        """
        kappa = b / self.base_batch if self.base_batch else 1.0
        if self.scaling == HALF_LIFE:
            return beta_1, beta_2**kappa
        if self.scaling != ADAM_SQRT:
            return beta_1, beta_2
        if (least := min(1 - kappa * (1 - beta) for beta in (beta_1, beta_2))) < 0:
            raise InputError(
                f"scaling='adam_sqrt' makes a beta of {least:.3g} at b = {b}, {kappa:g} times base_batch: raise "
                "base_batch, or leave out the larger batch sizes."
            )
        return 1 - kappa * (1 - beta_1), 1 - kappa * (1 - beta_2)

    def eps_divisor(self, b: int) -> float:
        """By what Adam's eps is divided at batch size b."""
        return math.sqrt(b / self.base_batch) if self.scaling == ADAM_SQRT else 1.0

    def warmup_iterations(self, b: int) -> int:
        """The iterations of the warm-up at batch size b."""
        return self.warmup or round(phases.steps_of(self.batch_schedule, b, self.warmup_samples))

    def noise_deviation(self, b: int) -> float:
        """The standard deviation of z at batch size b; 0 up to base_batch.

        `1/b sum_n z_n g_n` with `z ~ N(1, s^2)` has the covariance `(1 + s^2) C / b`, C the mean of `g g^T` (Hoffer et
        al. 2017, section 4, who neglect the square of the mean gradient compared with C). For `s^2 = b/m - 1` it equals
        `C / m`, the covariance of a batch of m samples; s^2 is proportional to b for large b, as in their paper.
        """
        return math.sqrt(max(b / self.base_batch - 1, 0.0)) if self.noise else 0.0


def words_of(label: object) -> list[str]:
    """Return the words of a `Training.label`, among which are the import paths that it names."""
    return re.split(r"[ ,]+", label) if isinstance(label, str) else []


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
    if schedule == "linear":
        return 1 - t / iterations
    if schedule == "step":
        return 1.0 if 2 * t < iterations else 0.1 if 4 * t < 3 * iterations else 0.01
    return 1.0


def iterations_of(samples: float, b: int, training: Training) -> int:
    """T under a budget of samples, rounded, at least 1: `samples / b`, or what the batch schedule makes of it.

    With `adapt_regime` base_batch replaces b.

    Raises:
        InputError: T is too large to be counted.
    """
    try:
        size = training.base_batch if training.adapt_regime else b
        return max(1, round(phases.steps_of(training.batch_schedule, size, samples)))
    except OverflowError:
        raise InputError("samples or epochs ask for more iterations than can be counted: lower them.") from None


def _as_share(field: str, value: object, example: str) -> float:
    """A number from 0 to 1, without 1."""
    try:
        share = positive(field, value) if value else 0.0
    except InputError:
        share = math.nan
    if not share < 1:
        raise InputError(f"{field}={shown(value)}: give a number from 0 to below 1, such as {example}.")
    return share


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
