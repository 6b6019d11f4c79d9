"""What is run: a `Cell` is one trial, and cells share an `Initialization`, whose NTK statistics are computed once.

An identity is the hash of everything that can change a result, and of nothing else: the sweep's name, the number of
CPUs a trial gets or the interval between checkpoints are not part of it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property

from raysat.errors import plain
from raysat.spec import goals, phases
from raysat.spec.stepsizes import Stepsize
from raysat.spec.training import PLAIN, Training

RESULTS_VERSION = 2
"""Part of every identity. Raise it when a change to the code changes the results of cells."""

PREPROCESSINGS = ("none", "center", "standardize", "unit_norm")
SAMPLINGS = ("without_replacement", "with_replacement", "epochs")
DTYPES = ("float32", "float64")
LOSS_NAMES = ("mse", "cross_entropy")
PRECISIONS = ("full", "tf32", "bfloat16")


def identity(*parts: object) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the canonical JSON of dataclasses and plain values.

    Fields at their default are omitted, so adding a field whose default keeps today's behaviour leaves existing ids
    unchanged.
    """
    text = json.dumps([RESULTS_VERSION, *map(_plain, parts)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(part: object) -> object:
    if not is_dataclass(part):
        return part
    values = {field.name: (getattr(part, field.name), field.default) for field in fields(part)}
    return {name: _plain(value) for name, (value, default) in values.items() if value != default}


@dataclass(frozen=True)
class Model:
    """An architecture as plain data: a built-in name or an import path, and the builder's options.

    Attributes:
        builder: A built-in architecture's name, or `module:function`.
        options: The builder's options, as sorted pairs.
        has_width: False for an architecture that a width does not change; it is run once for all widths.
    """

    builder: str
    options: tuple[tuple[str, float | int | str | bool], ...] = ()
    has_width: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple((name, plain(value)) for name, value in self.options))

    def option(self, name: str) -> float | int | str | bool | None:
        """The value of one option; None if the architecture does not have it."""
        return dict(self.options).get(name)

    @property
    def label(self) -> str:
        """The model's name in rows and figures: `mlp`, or the function's import path."""
        return self.builder


@dataclass(frozen=True)
class Initialization:
    """The part of a cell on which the statistics at initialization depend.

    Attributes:
        dataset: A built-in name, or `module:function`.
        preprocessing: One of `PREPROCESSINGS`.
        n: Number of training samples used.
        n_test: Number of test samples used.
        model: The architecture.
        width: Its width; 0 if the architecture has none.
        seed: Seed of the weights and of the batches.
        loss: `mse`, `cross_entropy`, or `module:function`.
        dtype: `float32` or `float64`.
        k_samples: Number of samples from which k_op is computed; at most n.
        k_tolerance: Relative residual at which the computation of k_op stops.
        spectrum: Products with K for each spectral measure; 0 for none.
        dense_samples: Samples of the dense kernel; 0 for none.
        evaluation_samples: Training samples over which the loss is evaluated; 0 for all n.
        code: Digest of the user's own code that the data set, the model and the loss use (`raysat.user_code.identity`);
            empty for built-in ones.
    """

    dataset: str
    preprocessing: str
    n: int
    n_test: int
    model: Model
    width: int
    seed: int
    dtype: str
    k_samples: int
    k_tolerance: float
    loss: str = "mse"
    spectrum: int = 0
    dense_samples: int = 0
    evaluation_samples: int = 0
    code: str = ""

    @property
    def init_id(self) -> str:
        """The key of the statistics."""
        return identity("init", self)

    @property
    def name(self) -> str:
        """The initialization in words, for messages."""
        return f"{self.dataset}, {self.model.label}, width {self.width}, seed {self.seed}"


@dataclass(frozen=True)
class Cell:
    """One trial to be run, as plain data.

    Attributes:
        init: The initialization, on which its statistics at w_0 depend.
        batch_size: b, between 1 and n.
        stepsize: The policy from which eta follows.
        iterations: T.
        sampling: One of `SAMPLINGS`.
        evaluations: About how many times the loss is evaluated after w_0, log-spaced.
        target_loss: The trial ends once the full training loss is at most this; None to run all iterations.
        ntk_at: Iterations at which the NTK statistics are computed again.
        training: How it is trained. Default: plain SGD.
        gradient_norm: Whether evaluations measure the norm of the full gradient.
        precision: One of `PRECISIONS`.
        target: The trial ends once this target of another metric than the training loss is reached
            (`raysat.spec.goals`).
    """

    init: Initialization
    batch_size: int
    stepsize: Stepsize
    iterations: int
    sampling: str
    evaluations: int
    target_loss: float | None
    ntk_at: tuple[int, ...] = ()
    training: Training = PLAIN
    gradient_norm: bool = False
    precision: str = "full"
    target: str | None = None

    @property
    def goal(self) -> goals.Target | None:
        """The target at which the trial ends; None if it runs all iterations."""
        return goals.end(self.target, self.target_loss)

    @cached_property
    def cell_id(self) -> str:
        """The only key of the cell: of its row, its part-files, its checkpoint."""
        return identity("cell", self)

    def samples_at(self, t: int) -> int:
        """The samples of its first t steps: t b, unless its training has a batch schedule."""
        return int(phases.samples_at(self.training.batch_schedule, self.batch_size, t))

    @property
    def largest_batch(self) -> int:
        """The largest batch of its steps."""
        return max(one.b for one in phases.spans(self.training.batch_schedule, self.batch_size))

    @property
    def name(self) -> str:
        """The cell in words, for messages."""
        return f"{self.init.name}, b = {self.batch_size}, {self.stepsize.name}{self.training.suffix}"
