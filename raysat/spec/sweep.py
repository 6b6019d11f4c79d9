"""What a user asks for: a `Sweep`, plain and immutable data, which is the product of its axes.

Each point of the product is a *cell*: one training run with one batch size b, one stepsize (learning rate) eta and one
seed. Cells that differ only in batch size, stepsize and other settings of training share one `Initialization`
(`raysat.spec.cells`), and with it the statistics of the network at w_0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from raysat.errors import InputError, boolean, plain, positive, whole
from raysat.spec import checks, goals
from raysat.spec.branches import Branches
from raysat.spec.cells import DTYPES, PRECISIONS, PREPROCESSINGS, SAMPLINGS, Cell, Initialization, Model
from raysat.spec.checks import NUMBER, anything, at_least, one_of, optional, several
from raysat.spec.engines import AUTO, ENGINES
from raysat.spec.prices import Prices, as_prices
from raysat.spec.settings import AXIS, EXECUTION, SHARED, checked, named, setting
from raysat.spec.stepsizes import AUTO_START, Stepsize, half_octave
from raysat.spec.training import PLAIN, Training, iterations_of

FEWEST_EVALUATIONS = 7
"""L(w_T) and six log-spaced points before it: kept of the curve however cheap the steps are compared with it."""


def powers_of_two(n: int) -> tuple[int, ...]:
    """The powers of two below n, and n itself: `powers_of_two(10) == (1, 2, 4, 8, 10)`."""
    n = whole("powers_of_two", n, 1)
    return (*(1 << k for k in range(n.bit_length()) if 1 << k < n), n)


@dataclass(frozen=True)
class Sweep:
    """A sweep: the product of its axes, and the settings that hold for all of it.

    A *cell* is one point of the product: one training run. T is its number of iterations, w_t its weights after t of
    them, and L(w) its loss over the training set. N(b) is the number of iterations after which the loss reaches a
    target at batch size b; b_N is the critical batch size fitted to N(b). `h` is the decay of log L per iteration over
    a run; b_h is fitted to it. gamma and k_op are the statistics at initialization that predict both
    (`raysat.saturation.formulas`). A grid of stepsizes has two readings: *free*, the best of all stepsizes, and
    *stable*, the best of those below `eta_limit`, at which SGD on the linearized network is stable.

    Axes:
        models: Architectures: `mlp(...)`, `linear()`, or an import path `module:function`.
        widths: Hidden widths. An architecture without a width is run once.
        batch_sizes: Batch sizes, each between 1 and the number of training samples.
        stepsizes: Stepsize (learning rate) policies: `fixed`, `fixed_fraction`, `theory`, `grid`.
        seeds: Number of seeds (0, 1, ...), or the seeds themselves. A seed draws the weights and the batches.
        trainings: How cells are trained: `Training(...)`, `asynchronous(...)` (see `raysat.spec.training`). Default:
            plain SGD.

    Attributes that are part of every cell's identity:
        dataset: A built-in name, or an import path `module:function`.
        iterations: T. Give exactly one of `iterations`, `samples` and `epochs`.
        samples: A budget of samples instead: `T = samples / b`, rounded, at least 1.
        epochs: The same in passes over the n training samples: `T = epochs n / b`.
        n_train: Training samples used, a fixed random subset. Default: all.
        n_test: Test samples used. Default: all, but at most `n_train`, so that a sweep made small by `n_train` does not
            spend its time on evaluating the test loss.
        preprocessing: `none`, `center`, `standardize` or `unit_norm` (see `raysat.data.preprocess`). Default: center;
            the paper does not say. The mean of uncentred data adds a direction of its own to the kernel, and that
            direction then sets k_op.
        sampling: `without_replacement` (the paper's section 2: a uniform subset of fixed size, drawn again each
            iteration; default), `with_replacement`, or `epochs` (shuffled passes).
        evaluations: Approximate maximum number of log-spaced evaluations of the full loss. Default: 30, which resolves
            N(b) to about a third at T = 4,000 before interpolation.
        evaluation_budget: Cost of a trial's evaluations, at most, as a fraction of the cost of its iterations; counted
            in operations, so that it does not depend on the machine. If `evaluations` would cost more, there are fewer
            of them, but never fewer than `FEWEST_EVALUATIONS`. Default: 0.5.
        evaluation_samples: Number of training samples over which the loss is evaluated: the first ones, which are in
            random order. The training loss, and with it h and N(b), then refers to these samples only. Default: all.
        loss: `mse` (eq. 2.1; default), `cross_entropy`, or the import path of a function `(outputs, y) -> losses [n]`
            (see `raysat.losses.Custom`). For losses other than `mse` the statistics are those of the generalized
            Gauss-Newton kernel, beyond the paper's theorem; a loss that is not convex in the outputs has no statistics.
        target: Stop a trial once this holds: a metric and its level, such as `test_accuracy >= 0.9`,
            `train_accuracy >= 0.99`, `test_loss <= 0.3` or `train_loss <= 0.3`. The stepsizes of a grid race to it
            (`race`), and the answer is about this metric. Default: run all iterations.
        target_loss: Short for `target="train_loss <= ..."`. Give one of the two.
        dtype: `float32` (default) or `float64`.
        precision: Precision of the matrix products in the steps: `full` (default), that of `dtype`; `tf32`, on GPUs
            that have it; or `bfloat16`, forward and backward passes under PyTorch's autocast, the weights and their
            updates in float32. Statistics and evaluations are always in full precision.
        k_samples: Number of samples from which k_op is computed. Default: 4096; the operator norm hardly changes with
            more. gamma, a maximum, is always taken over every sample.
        k_tolerance: Relative residual ||Kv - lambda v|| / lambda of k_op. Default: 1e-3; the error of the eigenvalue
            is of the order of its square.
        spectrum: Number of products with K for the residual's spectral measure, which the forecast needs (64 suffice).
            Default: 0, none.
        dense_samples: Number of samples of a dense kernel, from which lambda_min and the tight gamma are computed.
            Default: 0, none.
        ntk_at: Iterations at which the statistics are computed again, each a row of `ntk` with the drift of K. Default:
            none; critical batch sizes measured along a run start small and grow (Merrill et al. 2025).
        gradient_norm: Whether each evaluation also measures ||grad L(w_t)||^2 over all n samples, which costs about
            three times as much as the loss. Default: False.

    Attributes that are not:
        name: The folder under the results. Letters, digits, `-`, `_` and `.`.
        targets: Targets for which the analysis estimates N(b): training losses as numbers, others as texts, such as
            `(0.05, "test_accuracy >= 0.9")`. Default: `target`, or if it is of the training loss or not given, training
            losses that the analysis chooses from the curves.
        branches: Iterations at which the runs branch into ones with larger batches, by which the critical batch is
            measured along training (`raysat.spec.branches`). Default: none.
        checkpoint_seconds: Interval between a trial's checkpoints in seconds. Default: 60.
        cpus_per_trial: CPU cores of a trial. Default: 1.
        gpus_per_trial: GPUs of a trial, or a fraction of one. Default: one for each rank if the cluster has GPUs, else
            0.
        ranks_per_trial: Processes that share a trial's batches, on one node, each with a GPU of its own if the trial
            has any. For batches that are too large for one GPU. Default: 1.
        engine: The implementation of the steps: `auto` or one of `raysat.spec.engines.ENGINES`, which differ by
            rounding alone. Default: auto, the fastest for the model and the device.
        adaptive: Whether `batch_sizes` are candidates only, and as many of them are run as are needed to know b_N (see
            `raysat.driver.adaptive`). Default: False, all are run.
        interval_ratio: Upper over lower end of b_N's 95 % interval below which an adaptive sweep stops. Default: 1.44,
            1.2 either way: 20 % is the overhead at which Zhang et al. (2024) place the critical batch size.
        minutes: A time budget in minutes: trials that still run then are stopped, and the report covers those that have
            ended. The cheapest cells run first, so that small batch sizes give early results, and the same command
            continues where it stopped. Default: none.
        race: Whether, given a `target`, a trial of a grid stepsize ends as soon as it can no longer be the best of
            its seed and batch size, with the status `beaten` (see `raysat.spec.race`). If False, all of them run to
            their end, and beaten ones are run again. Default: True; among the same stepsizes the same one is the best,
            and its curve is the same (`grid(auto=True)` may try others where N has several minima).
        prices: What an hour of a device costs, by a part of its name: `{"H200": 3.5}`, or the path of a YAML file with
            a line `H200: 3.5` for each; `cpu` is a core. The analysis then also says what a target costs, and
            `raysat communication` the frontier of time against cost. Default: none.
    """

    name: str = field(metadata=setting(EXECUTION, checks.folder_name))
    dataset: str = field(metadata=setting(SHARED, checks.data_set))
    models: tuple[Model, ...] = field(metadata=setting(AXIS, checks.models))
    batch_sizes: tuple[int, ...] = field(metadata=setting(AXIS, several(at_least(1))))
    stepsizes: tuple[Stepsize, ...] = field(metadata=setting(AXIS, checks.stepsizes))
    iterations: int | None = field(default=None, metadata=setting(SHARED, optional(at_least(1))))
    samples: int | None = field(default=None, metadata=setting(SHARED, optional(at_least(1))))
    epochs: float | None = field(default=None, metadata=setting(SHARED, optional(NUMBER)))
    widths: tuple[int, ...] = field(default=(), metadata=setting(AXIS, several(at_least(1))))
    seeds: int | tuple[int, ...] = field(default=1, metadata=setting(AXIS, checks.seeds))
    trainings: tuple[Training, ...] = field(default=(PLAIN,), metadata=setting(AXIS, checks.trainings))
    n_train: int | None = field(default=None, metadata=setting(SHARED, optional(at_least(1))))
    n_test: int | None = field(default=None, metadata=setting(SHARED, optional(at_least(0))))
    preprocessing: str = field(default="center", metadata=setting(SHARED, one_of(PREPROCESSINGS)))
    sampling: str = field(default="without_replacement", metadata=setting(SHARED, one_of(SAMPLINGS)))
    evaluations: int = field(default=30, metadata=setting(SHARED, at_least(2)))
    evaluation_budget: float = field(default=0.5, metadata=setting(SHARED, positive))
    evaluation_samples: int | None = field(default=None, metadata=setting(SHARED, optional(at_least(1))))
    target_loss: float | None = field(default=None, metadata=setting(SHARED, optional(NUMBER)))
    target: str | None = field(default=None, metadata=setting(SHARED, optional(checks.target)))
    loss: str = field(default="mse", metadata=setting(SHARED, checks.loss))
    dtype: str = field(default="float32", metadata=setting(SHARED, one_of(DTYPES)))
    precision: str = field(default="full", metadata=setting(SHARED, one_of(PRECISIONS)))
    k_samples: int = field(default=4096, metadata=setting(SHARED, at_least(1)))
    k_tolerance: float = field(default=1e-3, metadata=setting(SHARED, positive))
    spectrum: int = field(default=0, metadata=setting(SHARED, at_least(0)))
    dense_samples: int = field(default=0, metadata=setting(SHARED, at_least(0)))
    ntk_at: tuple[int, ...] = field(default=(), metadata=setting(SHARED, checks.iterations))
    gradient_norm: bool = field(default=False, metadata=setting(SHARED, anything))
    targets: tuple[float | str, ...] = field(default=(), metadata=setting(EXECUTION, several(checks.level)))
    branches: Branches | None = field(default=None, metadata=setting(EXECUTION, optional(checks.branches)))
    checkpoint_seconds: float = field(default=60.0, metadata=setting(EXECUTION, positive))
    cpus_per_trial: int = field(default=1, metadata=setting(EXECUTION, at_least(1)))
    gpus_per_trial: float | None = field(default=None, metadata=setting(EXECUTION, checks.gpus))
    ranks_per_trial: int = field(default=1, metadata=setting(EXECUTION, at_least(1)))
    engine: str = field(default=AUTO, metadata=setting(EXECUTION, checks.engine))
    adaptive: bool = field(default=False, metadata=setting(EXECUTION, boolean))
    interval_ratio: float = field(default=1.44, metadata=setting(EXECUTION, checks.above_one))
    minutes: float | None = field(default=None, metadata=setting(EXECUTION, optional(NUMBER)))
    race: bool = field(default=True, metadata=setting(EXECUTION, boolean))
    prices: Prices = field(default=(), metadata=setting(EXECUTION, as_prices))

    def __post_init__(self) -> None:
        for name in (one.name for one in fields(self)):
            object.__setattr__(self, name, plain(getattr(self, name)))
        for name, value in checked(self).items():
            object.__setattr__(self, name, value)
        self._validate_axes()
        self._validate_targets()
        self._validate_budget()
        self._validate_execution()

    def _validate_axes(self) -> None:
        for name in named(type(self), AXIS):
            values = getattr(self, name)
            if not values and name != "widths":  # an architecture may have no width
                raise InputError(f"{name} is empty: give at least one.")
            for value, times in Counter(values).items():
                if times > 1:
                    raise InputError(f"{name} has {value!r} twice: name each value once.")
        if not self.widths and any(model.has_width for model in self.models):
            raise InputError("widths is empty: give at least one width for the models that have one.")
        policies = {stepsize.policy for stepsize in self.stepsizes}
        if {"grid_auto", "grid_relative"} <= policies:
            raise InputError("stepsizes has grid(auto=True) and a relative grid, which are analyzed as one: drop one.")

    def _validate_targets(self) -> None:
        if self.target is not None and self.target_loss is not None:
            raise InputError(
                f"target={self.target!r} and target_loss={self.target_loss!r} both say where trials end: set one of "
                "them to None."
            )
        goal = self.goal
        if goal and goal.metric == goals.TRAIN_LOSS:  # one form only, so that ids do not depend on which was written
            object.__setattr__(self, "target", None)
            object.__setattr__(self, "target_loss", goal.level)
        for target in filter(None, (*self.measured, goal)):
            if goals.on_test_samples(target.metric) and self.n_test == 0:
                raise InputError(f"the target {target} needs test samples, and n_test=0: set n_test, or leave it out.")

    def _validate_execution(self) -> None:
        gpus, ranks = self.gpus_per_trial or 0, self.ranks_per_trial
        if max(gpus, ranks) > 1 and gpus not in (0, ranks):
            raise InputError(
                f"gpus_per_trial={gpus!r} and ranks_per_trial={ranks}: a trial of several ranks has a GPU for each, "
                "and one rank uses one GPU; set both to the same number."
            )
        if self.precision != "full" and self.dtype != "float32":
            raise InputError(f"precision={self.precision!r} needs float32, and dtype={self.dtype!r}: set one of them.")
        engine = ENGINES.get(self.engine)  # None for `auto`, which supports everything
        if self.precision == "bfloat16" and engine and not engine.bfloat16:
            raise InputError(
                f"engine={self.engine!r} computes in full precision: set engine='auto' or precision='full'."
            )
        if self.branches and (self.grows or self.goal or ranks > 1):
            raise InputError(
                "branches are of runs that are known beforehand, end at no target and have one rank: leave out "
                "adaptive, grid(auto=True), target and ranks_per_trial, or branches."
            )
        if not (others := [training.label for training in self.trainings if not training.is_plain]):
            return
        asked = f"plain SGD only, and a training is {others[0]!r}"
        if engine and not engine.any_training:
            raise InputError(f"engine={self.engine!r} takes the steps of {asked}: set engine='auto'.")
        if self.ranks_per_trial > 1:
            raise InputError(f"ranks_per_trial={self.ranks_per_trial} splits batches of {asked}: set it to 1.")

    @property
    def each_seed(self) -> tuple[int, ...]:
        """The seeds as a tuple; `seeds` may be their number instead."""
        return self.seeds if isinstance(self.seeds, tuple) else tuple(range(self.seeds))

    @property
    def grows(self) -> bool:
        """Whether results decide which further cells are run."""
        return self.adaptive or any(stepsize.policy == "grid_auto" for stepsize in self.stepsizes)

    @property
    def goal(self) -> goals.Target | None:
        """The target at which trials end; None if they run all iterations."""
        return goals.end(self.target, self.target_loss)

    @property
    def measured(self) -> tuple[goals.Target, ...]:
        """The targets that are named for the analysis (`raysat.spec.goals.asked`)."""
        return goals.asked({name: getattr(self, name) for name in ("target", "target_loss", "targets")})

    @property
    def metric(self) -> str:
        """The metric by which stepsizes and batch sizes are chosen: that of the target, or the training loss."""
        return next((one.metric for one in (self.goal, *self.measured) if one), goals.TRAIN_LOSS)

    @property
    def races(self) -> bool:
        """Whether trials that can no longer be the best are stopped."""
        return self.race and self.goal is not None

    def _validate_budget(self) -> None:
        budgets = [self.iterations, self.samples, self.epochs]
        if sum(value is not None for value in budgets) != 1:
            raise InputError(f"iterations, samples and epochs are {budgets}: give exactly one of them.")
        if self.ntk_at and self.iterations is not None and self.ntk_at[-1] > self.iterations:
            raise InputError(f"ntk_at has {self.ntk_at[-1]}, after the last of {self.iterations} iterations: lower it.")
        for training in self.trainings:
            if training.label_smoothing and self.loss != "cross_entropy":
                raise InputError(
                    f"label_smoothing is of the cross-entropy, and loss={self.loss!r}: set loss='cross_entropy', or "
                    "leave it out."
                )
            if training.adapt_regime and self.iterations is not None:
                raise InputError(
                    "adapt_regime gives every batch size the same iterations, and so does iterations=: give a budget "
                    "of samples or epochs, or leave it out."
                )

    @property
    def budget(self) -> str:
        """What ends a trial, in words: `4000 iterations`."""
        names = ("iterations", "samples", "epochs")
        return next(f"{value:.12g} {name}" for name in names if (value := getattr(self, name)) is not None)

    def iterations_at(self, batch_size: int, n: int, training: Training) -> int:
        """T of a batch size under the sweep's budget."""
        if self.iterations is not None:
            return self.iterations
        samples = self.samples if self.epochs is None else self.epochs * n
        assert samples is not None  # one of the three is given
        return iterations_of(samples, batch_size, training)

    def initializations(
        self, n: int, n_test: int, code: Callable[[Model], str] = lambda _: ""
    ) -> Iterator[Initialization]:
        """The sweep's initializations, given the sizes of the data set as it will be used.

        Args:
            n: Training samples, after `n_train`.
            n_test: Test samples, after `n_test`.
            code: Returns, for a model, the digest of the user's own code that its initializations use.
        """
        for model in self.models:
            for width in self.widths if model.has_width else (0,):
                for seed in self.each_seed:
                    yield self.initialization(model, width, seed, n, n_test, code(model))

    def initialization(
        self, model: Model, width: int, seed: int, n: int, n_test: int, code: str = ""
    ) -> Initialization:
        """One of the sweep's initializations; arguments as for `initializations`."""
        few = self.evaluation_samples or n
        own = {"n": n, "n_test": n_test, "model": model, "width": width, "seed": seed, "code": code}
        own |= {"k_samples": min(self.k_samples, n), "evaluation_samples": 0 if few >= n else few}
        return Initialization(**{**self._handed_on(Initialization), **own})

    def cell(
        self, init: Initialization, batch_size: int, stepsize: Stepsize, training: Training, iterations: int
    ) -> Cell:
        """One cell."""
        own = {"init": init, "batch_size": batch_size, "stepsize": stepsize, "training": training}
        own |= {"iterations": iterations}
        own |= {"ntk_at": tuple(t for t in self.ntk_at if 0 < t <= iterations)}  # t = 0 is the initialization's
        return Cell(**{**self._handed_on(Cell), **own})

    def _handed_on(self, kind: type[Initialization] | type[Cell]) -> dict[str, Any]:
        """The settings that all initializations, or all cells, take over unchanged, by name."""
        return {name: getattr(self, name) for name in named(type(self), SHARED) if name in kind.__dataclass_fields__}

    def cells(self, n: int, n_test: int, code: Callable[[Model], str] = lambda _: "") -> list[Cell]:
        """All cells, given the sizes of the data set as it will be used; for `grid(auto=True)` the first ones only.

        Raises:
            InputError: A batch size is above n, or a batch schedule goes beyond n or the last iteration.
        """
        if (largest := max(self.batch_sizes)) > n:
            raise InputError(
                f"batch_sizes has {largest}, but {self.dataset} is used with {n} training samples: "
                f"leave out what is above {n}, or write batch_sizes=powers_of_two({n})."
            )
        for training in self.trainings:
            self._check_batch_schedule(training, largest, n)
        made = [
            self.cell(init, batch_size, stepsize, training, self.iterations_at(batch_size, n, training))
            for init in self.initializations(n, n_test, code)
            for training in self.trainings
            for stepsize in self._first_stepsizes()
            for batch_size in self.batch_sizes
        ]
        return made + [branch for cell in made for branch in (self.branches.of(cell) if self.branches else ())]

    def _check_batch_schedule(self, training: Training, b: int, n: int) -> None:
        if not training.batch_schedule:
            return
        last, most = training.batch_schedule[-1].start, max(phase.factor for phase in training.batch_schedule)
        if most * b > n:
            raise InputError(
                f"batch_schedule has factor {most}, which makes batches of {most * b} at b = {b}, and {self.dataset} "
                f"is used with {n} training samples: lower it."
            )
        if last >= (least := self.iterations_at(b, n, training)):
            raise InputError(f"batch_schedule has {last}, after the last of {least} iterations at b = {b}: lower it.")

    def _first_stepsizes(self) -> Iterator[Stepsize]:
        for stepsize in self.stepsizes:
            yield from map(half_octave, AUTO_START) if stepsize.policy == "grid_auto" else [stepsize]
