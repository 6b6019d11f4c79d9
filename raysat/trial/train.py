"""Train the cells of one job and return their rows.

No dependency on Ray. The only side effects are checkpoints and process-wide settings, which the job restores.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from raysat.data import Dataset
from raysat.errors import InputError
from raysat.losses import resolve
from raysat.models import fingerprint
from raysat.models.linearized import Linearized
from raysat.saturation.formulas import beta as second_moment_constant
from raysat.saturation.formulas import exponent, stepsize
from raysat.saturation.recursion import stable_below
from raysat.sgd import engine as engines
from raysat.sgd.asynchronous import AsynchronousEngine, mean_staleness
from raysat.sgd.draws import drawing
from raysat.sgd.sampler import Batches
from raysat.sgd.schedule import evaluation_iterations
from raysat.sgd.transform import transform_of
from raysat.spec.cells import Cell
from raysat.storage.checkpoint import Checkpoint, Progress
from raysat.storage.files import location
from raysat.storage.rows import Row, cell_columns, init_columns, none_if_nan, provenance, statistics_columns
from raysat.storage.schema import BEATEN, COMPLETED, DIVERGED, EVALUATION, FAILED, TARGET_REACHED
from raysat.trial.initial import statistics_of
from raysat.trial.job import PROGRESS_INTERVAL, Job, begun, initial_network, micro_batch_of, prepare
from raysat.trial.measurements import Drift, Evaluator, distance, gradient_squares
from raysat.user_code import identity

DIVERGENCE = 1e3
"""A trial has diverged when its loss is not finite or above this multiple of the initial loss."""

CHECKPOINT_SHARE = 0.02
"""The fraction of a trial's time that checkpoints may take: if storing one is slow, they become rarer than
requested."""

AT_ONCE_SECONDS = 1.0
"""Target seconds of one call of `engine.run`; between calls a checkpoint may be due. Default: 1 s."""

STEPS_AT_ONCE = 256
"""Upper bound on the steps of one call."""

Rows = tuple[Row, list[Row], list[Row]]
"""A trial's row of `trials`, its rows of `curves`, and its rows of `ntk`."""


def stepsize_and_beta(cell: Cell, statistics: Mapping[str, Any]) -> tuple[float, float]:
    """Return eta, scaled to the batch size if the training says so, and beta(b), nan without statistics."""
    gamma, k_op, base = (
        math.nan if statistics.get(name) is None else float(statistics[name])
        for name in ("gamma", "k_op", "base_stepsize")
    )
    replacement = cell.sampling == "with_replacement"
    eta = stepsize(cell.stepsize, cell.batch_size, cell.init.n, gamma, k_op, replacement=replacement, base=base)
    beta = second_moment_constant(cell.batch_size, cell.init.n, gamma, k_op, replacement=replacement)
    return eta * cell.training.stepsize_factor(cell.batch_size), beta


class _Trial:
    """A cell in training: its network, its progress, and its measurements so far.

    Args:
        job: The job of this cell.
        dataset: The data, on the network's device.
        network: The network at initialization.
    """

    def __init__(self, job: Job, dataset: Dataset, network: nn.Module) -> None:
        self.job, self.cell, self.dataset, self.network = job, job.trained_cell, dataset, network
        _check_weights(job, network)
        cell, init, device = self.cell, self.cell.init, str(dataset.x.device)
        self.eta, self.beta = stepsize_and_beta(cell, job.statistics)
        # else the theory is silent, there are no statistics, or K = 0 and every stepsize is stable
        stable = self.beta > 0 and cell.training.is_plain
        self.eta_limit = stable_below(job.statistics, cell.batch_size, cell.sampling) if stable else math.nan
        self.limit = job.limits.of(self.eta / self.eta_limit if self.eta_limit > 0 else math.nan)
        schedule = cell.training.batch_schedule
        self.batches = Batches(init.seed, cell.iterations, cell.batch_size, init.n, cell.sampling, device, schedule)
        self.transform = transform_of(cell.training, init.seed)
        self.start = {name: weight.detach().clone() for name, weight in network.named_parameters()}
        self.ntk_at = () if isinstance(network, Linearized) else cell.ntk_at  # its kernel never changes
        one_position = dataset.y.ndim == 1 + dataset.y.is_floating_point()
        drifts = self.ntk_at and one_position and not math.isnan(self.beta)
        self.drift = Drift(network, dataset.x) if drifts else None
        folder = job.checkpoints and location(job.checkpoints)
        self.checkpoint = Checkpoint(folder / f"{cell.cell_id}.pt" if folder else None)
        self.progress = self._from_here(self.checkpoint.load())
        if (micro_batch := self.progress.micro_batch) is None:
            micro_batch = self.progress.micro_batch = micro_batch_of(job, dataset, network)
        if self.progress.weights is not None:
            network.load_state_dict(self.progress.weights)
        self.evaluate = Evaluator(job.init, dataset, micro_batch)
        self.status = COMPLETED

    def _from_here(self, stored: Progress) -> Progress:
        """Return the stored progress, or an empty one if the stepsize or the user's code has changed since."""
        made = {**init_columns(self.job.sweep, self.cell.init), "training": self.cell.training.label}
        made["user_files"] = stored.user_files
        if stored.user_files and identity.Present.here(self.cell.init, self.cell.training).changed(made):
            return Progress(attempts=stored.attempts, eta=self.eta)
        if stored.weights is None or stored.eta == self.eta or (stored.eta is None and self._is_named):
            return replace(stored, eta=self.eta)
        return Progress(attempts=stored.attempts, eta=self.eta)

    @property
    def _is_named(self) -> bool:
        return not self.cell.stepsize.needs_statistics

    @property
    def ahead(self) -> list[int]:
        """The iterations that are still to be measured."""
        curve, cell = self.progress.curve, self.cell
        last = curve[-1]["iteration"] if curve else -1
        return sorted(t for t in {*evaluation_iterations(cell.iterations, cell.evaluations), *self.ntk_at} if t > last)

    def measure(self, t: int) -> None:
        """Append iteration t to `curves` and, if requested, to `ntk`; set the status if the trial ends with it."""
        progress, cell, network = self.progress, self.cell, self.network
        losses = (t == 0 and _known_losses(self.job.statistics)) or self.evaluate(network)
        gradient = {"gradient_square": None, "gradient_square_mean": None}
        if cell.gradient_norm:
            loss = resolve(cell.init.loss)
            gradient = gradient_squares(network, self.dataset, loss, self.evaluate.chunk, t, progress.curve)
        progress.curve.append(
            {
                "iteration": t,
                "samples": cell.samples_at(t),
                "seconds": progress.step_seconds,
                **losses,
                "distance_from_init": distance(network, self.start),
                **gradient,
            }
        )
        if t in self.ntk_at and math.isfinite(losses["train_loss"]):
            measured = statistics_of(self.job, network, self.dataset.x, self.dataset.y)
            drifted = {"kernel_drift": self.drift.of(network) if self.drift else None}
            progress.ntk.append({**measured, **losses, "cell_id": cell.cell_id, "iteration": t, **drifted})
        if not losses["train_loss"] <= DIVERGENCE * progress.curve[0]["train_loss"]:  # true of NaN as well
            self.status = DIVERGED
        elif (goal := cell.goal) and goal.reached(losses):
            self.status = TARGET_REACHED

    def is_over(self, until: int) -> bool:
        """Return whether the trial ends now, given that iteration `until` is the next to be measured."""
        if self.status == COMPLETED and until > self.limit:
            self.status = BEATEN
        return self.status != COMPLETED

    def save(self, engine: engines.StepEngine) -> bool:
        """Store a checkpoint; return whether that succeeded."""
        self.progress.weights = {name: _of_its_own(value) for name, value in self.network.state_dict().items()}
        self.progress.engine = engine.state_dict() if isinstance(engine, engines.Stateful) else None
        self.progress.micro_batch = engine.micro_batch
        self.progress.user_files = identity.user_files(self.cell.init, self.cell.training)
        return self.checkpoint.save(self.progress)

    def rows(self, engine: engines.StepEngine, machine: Row) -> Rows:
        """Return the rows of the finished trial for all tables, with the columns of the machine and the time."""
        job, cell, progress = self.job, self.cell, self.progress
        first, last = progress.curve[0], progress.curve[-1]
        done = last["iteration"]  # a beaten trial may have resumed from a checkpoint beyond it
        row = {
            **statistics_columns(job.statistics),
            **init_columns(job.sweep, job.init),
            **cell_columns(cell),
            "status": self.status,
            "budget": job.budget or None,
            "staleness": mean_staleness(engine.counts) if isinstance(engine, AsynchronousEngine) else 0.0,
            "eta": self.eta,
            "beta": none_if_nan(self.beta),
            "eta_beta": none_if_nan(self.eta * self.beta),
            "eta_limit": none_if_nan(self.eta_limit),
            "iterations_done": done,
            "loss_init": first["train_loss"],
            "loss_final": last["train_loss"],
            "h": none_if_nan(exponent(first["train_loss"], last["train_loss"], done))
            if self.status != DIVERGED
            else None,
            "train_accuracy": last["train_accuracy"],
            "test_loss": last["test_loss"],
            "test_accuracy": last["test_accuracy"],
            "distance_from_init": last["distance_from_init"],
            "seconds": progress.seconds,
            "gpus": 0.0 if machine["device"] == "cpu" else 1.0 if job.gpus is None else job.gpus,
            "steps_per_second": progress.iteration / progress.step_seconds if progress.step_seconds > 0 else None,
            "engine": engine.name,
            "matmul": engine.matmul,
            "micro_batch": min(cell.largest_batch, engine.micro_batch),
            "attempts": progress.attempts,
            **machine,
            "threads": machine["threads"] * job.ranks,
        }
        curve = [{"cell_id": cell.cell_id, **point} for point in progress.curve]
        return row, curve, [{**measured, **machine} for measured in progress.ntk]


class _Clock:
    """Adds elapsed time to the trials on which it was spent, in equal parts."""

    def __init__(self) -> None:
        self.at = time.perf_counter()

    def count(self, trials: Sequence[_Trial]) -> None:
        """Add the time since the last call to some trials."""
        now = time.perf_counter()
        for trial in trials:
            trial.progress.seconds += (now - self.at) / len(trials)
        self.at = now


def run_trial(job: Job) -> Rows:
    """Train the one cell of a job; cf. `run_trials`."""
    (rows,) = run_trials(job)
    return rows


def run_trials(job: Job) -> list[Rows]:
    """Train the cells of a job, by fixed-stepsize SGD unless they say otherwise.

    With `engine="stacked"`, cells at the same iteration are one computation; otherwise they are trained in turn.

    Returns:
        For each cell the row of `trials`, the rows of `curves`, and those of `ntk` for the iterations `ntk_at`.
    """
    with begun(job):
        return _run_trials(job)


def _run_trials(job: Job) -> list[Rows]:
    clock = _Clock()
    dataset, network, device = prepare(job)
    networks = [network, *(initial_network(mate.init, dataset, device) for mate in job.stacked_with)]
    trials = [
        _Trial(replace(one, on_progress=job.on_progress), dataset, network)
        for one, network in zip(job.members, networks, strict=True)
    ]
    clock.count(trials)
    groups: dict[object, list[_Trial]] = {}
    for trial in trials:
        reached = trial.progress.iteration, len(trial.progress.curve)
        groups.setdefault(reached if job.engine == "stacked" else trial.cell, []).append(trial)
    ended = {}
    for group in groups.values():
        ended |= _train(group, device, clock)
    return [ended[trial.cell.cell_id] for trial in trials]


def _train(trials: list[_Trial], device: torch.device, clock: _Clock) -> dict[str, Rows]:
    """Train cells at the same iteration that differ only in their seeds; return the rows of all, by cell_id."""
    job, cell, ended = trials[0].job, trials[0].cell, {}
    engine = _engine(trials)
    due, report_at = clock.at + job.checkpoint_seconds, clock.at + PROGRESS_INTERVAL
    for until in trials[0].ahead:
        if over := [trial for trial in trials if trial.is_over(until)]:
            ended |= _rows(over, engine, device)
            trials = [trial for trial in trials if trial not in over]
            if not trials:
                return ended
            engine = _engine(trials)
        while (done := trials[0].progress.iteration) < until:
            if time.perf_counter() > due:
                due = _save(trials, engine, clock)
            if job.on_progress and time.perf_counter() > report_at:
                job.on_progress(done, {trial.cell.cell_id: trial.progress.curve[-1]["train_loss"] for trial in trials})
                report_at = time.perf_counter() + PROGRESS_INTERVAL
            engines.set_precision(cell.precision, device)
            _advance(engine, trials, until, device)
        engines.set_precision("full", device)
        clock.count(trials)
        with engine.averaged() if isinstance(engine, engines.Averaging) else nullcontext():
            for trial in trials:
                trial.measure(until)
                clock.count([trial])
    return ended | _rows(trials, engine, device)


def _rows(trials: Sequence[_Trial], engine: engines.StepEngine, device: torch.device) -> dict[str, Rows]:
    """Return the rows of trials that end together, by cell_id."""
    machine = provenance(device, trials[0].job.init, trials[0].cell.training)
    return {trial.cell.cell_id: trial.rows(engine, machine) for trial in trials}


def _engine(trials: Sequence[_Trial]) -> engines.StepEngine:
    """Build the engine of trials that are trained together, or of one, and restore its state."""
    job, cell, progress, dataset = trials[0].job, trials[0].cell, trials[0].progress, trials[0].dataset
    loss, etas = resolve(cell.init.loss), [trial.eta for trial in trials]
    problems = [engines.Problem(trial.network, dataset.x, dataset.y, loss, trial.transform) for trial in trials]
    engine = engines.build_for(cell, job.engine, problems, etas, progress.micro_batch, job.ranks)
    if progress.engine is not None:
        assert isinstance(engine, engines.Stateful)  # the engine that stored the state was
        engine.load_state_dict(progress.engine)
    return engine


def _save(trials: Sequence[_Trial], engine: engines.StepEngine, clock: _Clock) -> float:
    """Store checkpoints; return when the next are due, so that they take at most `CHECKPOINT_SHARE` of the time."""
    clock.count(trials)
    started = clock.at
    stored = [trial.save(engine) for trial in trials]
    clock.count(trials)
    return clock.at + max(trials[0].job.checkpoint_seconds, any(stored) * (clock.at - started) / CHECKPOINT_SHARE)


def _of_its_own(value: Tensor) -> Tensor:
    """Return a tensor that owns its whole storage: `torch.save` writes all of it, for a view that of all seeds."""
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()


def _known_losses(statistics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the losses at w_0 that were stored with the statistics; None if there are none."""
    losses = {column.name: none_if_nan(statistics.get(column.name)) for column in EVALUATION}
    return None if losses["train_loss"] is None else losses


def _check_weights(job: Job, network: nn.Module) -> None:
    """Raise `InputError` if the statistics were computed at other weights than the network's."""
    row, init = job.statistics, job.init
    found = row.get("w0_digest") if row.get("init_id") == init.init_id else None
    if isinstance(found, str) and not fingerprint.has(network, found):
        raise InputError(
            f"model {init.model.label} at width {init.width}, seed {init.seed}, draws other weights each time it is "
            "built: its trial would not begin where its statistics were taken; let the builder draw from torch, numpy "
            "or random, which are seeded for it, and from no generator of its own without a fixed seed."
        )


def failed_row(job: Job, error: str) -> Row:
    """Return the row of a cell that could not be run."""
    return {
        **statistics_columns(job.statistics),
        **init_columns(job.sweep, job.init),
        **cell_columns(job.trained_cell),
        "status": FAILED,
        "budget": job.budget or None,
        "error": error,
        "iterations_done": 0,
        **provenance(torch.device("cpu")),
    }


def _advance(engine: engines.StepEngine, trials: Sequence[_Trial], until: int, device: torch.device) -> None:
    """Take some of the steps before the next evaluation: whole blocks of the engine, about `AT_ONCE_SECONDS` long.

    Their number, which depends on the clock, changes no bit of the result: blocks begin where they would in one call.
    """
    cell, progress = trials[0].cell, trials[0].progress
    done, block = progress.iteration, engine.block(cell.batch_size)
    batches = trials[0].batches
    steps, until = min(STEPS_AT_ONCE, batches.at_once), min(until, batches.end(done))
    if done == 0:
        steps = min(steps, block)
    elif progress.step_seconds > 0:
        steps = min(steps, int(AT_ONCE_SECONDS * done / (progress.step_seconds * len(trials))))
    steps = min(max(steps // block, 1) * block, until - done)
    begun = time.perf_counter()
    with drawing(int(cell.cell_id, 16) >> 1, device, progress.draws) as draws:
        engine.run(*(trial.batches.take(done, steps) for trial in trials))
    if device.type == "cuda":
        torch.cuda.synchronize()
    took = time.perf_counter() - begun
    for trial in trials:
        trial.progress.step_seconds += took / len(trials)
        trial.progress.iteration += steps
        trial.progress.draws = draws
