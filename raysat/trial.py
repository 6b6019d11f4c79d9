"""One cell, from weights to rows: a pure function of the cell, its data and its statistics. It knows nothing of Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch

from raysat.cells import Cell
from raysat.checkpoint import Checkpoint, Progress
from raysat.files import location
from raysat.initial import statistics_of
from raysat.job import Job, fitting, prepare
from raysat.losses import LOSSES
from raysat.models.linearized import Linearized
from raysat.observables import Drift, Evaluator, distance, gradient_squares
from raysat.recursion import stable_below
from raysat.rows import Row, describe, describe_cell, inherited, known, where
from raysat.schema import COMPLETED, DIVERGED, EVALUATION, FAILED, TARGET_REACHED
from raysat.sgd import engine as engines
from raysat.sgd.asynchronous import AsynchronousEngine, mean_staleness
from raysat.sgd.sampler import batches
from raysat.sgd.schedule import evaluation_iterations
from raysat.theory import beta as second_moment_constant
from raysat.theory import exponent, stepsize

DIVERGENCE = 1e3
"""A trial has diverged when its loss is not finite or above this multiple of the initial loss."""

CHECKPOINT_SHARE = 0.02
"""What checkpoints may cost of a trial's time: where storing one takes long, they become rarer than asked for."""

TELL_SECONDS = 10.0
"""How often a trial says how far it is. Default: 10 s; a hundred trials then tell the driver ten times a second."""

AT_ONCE_SECONDS = 1.0
"""How long the steps take between which a trial looks whether a checkpoint is due. Default: 1 s."""

_INDICES_AT_ONCE = 1 << 16


def stepsize_and_beta(cell: Cell, statistics: Mapping[str, object]) -> tuple[float, float]:
    """Eta, scaled to the batch size where the training asks for it, and beta(b); nan where there are no statistics."""
    gamma, k_op = (math.nan if statistics.get(name) is None else float(statistics[name]) for name in ("gamma", "k_op"))
    replacement = cell.sampling == "with_replacement"
    eta = stepsize(cell.stepsize, cell.batch_size, cell.init.n, gamma, k_op, replacement=replacement)
    beta = second_moment_constant(cell.batch_size, cell.init.n, gamma, k_op, replacement=replacement)
    return eta * cell.training.stepsize_factor(cell.batch_size), beta


def run_trial(job: Job) -> tuple[Row, list[Row], list[Row]]:
    """Train one cell, by fixed-stepsize SGD unless it says otherwise.

    Returns:
        The row of `trials`, the rows of `curves`, and those of `ntk` for the iterations `ntk_at`.
    """
    begun = time.perf_counter()
    cell, init, statistics = job.cell, job.init, job.statistics
    dataset, network, device = prepare(job)
    eta, beta = stepsize_and_beta(cell, statistics)

    start = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    ntk_at = () if isinstance(network, Linearized) else cell.ntk_at  # its kernel never moves
    drift = Drift(network, dataset.x) if ntk_at and dataset.y.is_floating_point() else None
    checkpoint = Checkpoint(location(job.checkpoints) / f"{cell.cell_id}.pt" if job.checkpoints else None)
    progress = checkpoint.load()
    x, y, loss = dataset.x, dataset.y, LOSSES[init.loss]
    if progress.at_once is None:
        progress.at_once = fitting(job, dataset, network)
    if progress.weights is not None:
        network.load_state_dict(progress.weights)
    engine = engines.build_for(cell, job.engine, network, x, y, loss, eta, progress.at_once, job.ranks)
    if progress.engine is not None:
        engine.load_state_dict(progress.engine)
    evaluate = Evaluator(init, dataset, progress.at_once)
    before = progress.seconds

    def save() -> float:
        """Store the trial's progress; returns when the next time is due, a `CHECKPOINT_SHARE` of the time away."""
        started = time.perf_counter()
        progress.weights, progress.at_once = network.state_dict(), engine.at_once
        progress.engine = engine.state_dict() if isinstance(engine, engines.Stateful) else None
        progress.seconds = before + started - begun
        stored = checkpoint.save(progress)
        ended = time.perf_counter()
        return ended + max(job.checkpoint_seconds, stored * (ended - started) / CHECKPOINT_SHARE)

    def gradient_norm(t: int) -> dict[str, float | None]:
        if not cell.gradient_norm:
            return {"gradient_square": None, "gradient_square_mean": None}
        return gradient_squares(network, dataset, loss, evaluate.chunk, t, progress.curve)

    status, due, tell_at = COMPLETED, begun + job.checkpoint_seconds, begun + TELL_SECONDS
    for until in sorted({*evaluation_iterations(cell.iterations, cell.evaluations), *ntk_at}):
        if progress.curve and until <= progress.curve[-1]["iteration"]:
            continue
        while progress.iteration < until:
            if time.perf_counter() > due:
                due = save()
            if job.tell and time.perf_counter() > tell_at:
                job.tell(progress.iteration, progress.curve[-1]["train_loss"])
                tell_at = time.perf_counter() + TELL_SECONDS
            engines.set_precision(cell.precision, device)
            _advance(engine, cell, progress, until, device)
        engines.set_precision("full", device)
        losses = (until == 0 and _known_losses(statistics)) or evaluate(network)
        progress.curve.append(
            {
                "iteration": until,
                "samples": until * cell.batch_size,
                "seconds": progress.step_seconds,
                **losses,
                "distance_from_init": distance(network, start),
                **gradient_norm(until),
            }
        )
        if until in ntk_at and math.isfinite(losses["train_loss"]):
            measured = statistics_of(job, network, x, y)
            drifted = {"kernel_drift": drift.of(network) if drift else None}
            progress.ntk.append({**measured, **losses, "cell_id": cell.cell_id, "iteration": until, **drifted})
        if not losses["train_loss"] <= DIVERGENCE * progress.curve[0]["train_loss"]:  # also where it is not a number
            status = DIVERGED
            break
        if cell.target_loss is not None and losses["train_loss"] <= cell.target_loss:
            status = TARGET_REACHED
            break

    first, last = progress.curve[0], progress.curve[-1]
    done = progress.iteration
    row = {
        **inherited(statistics),
        **describe(job.sweep, job.init),
        **describe_cell(cell),
        "status": status,
        "budget": job.budget or None,
        "staleness": mean_staleness(engine.counts) if isinstance(engine, AsynchronousEngine) else 0.0,
        "eta": eta,
        "beta": known(beta),
        "eta_beta": known(eta * beta),
        "eta_limit": known(stable_below(statistics, cell.batch_size, cell.sampling) if beta > 0 else math.nan),
        "iterations_done": done,
        "loss_init": first["train_loss"],
        "loss_final": last["train_loss"],
        "h": known(exponent(first["train_loss"], last["train_loss"], done)) if status != DIVERGED else None,
        "train_accuracy": last["train_accuracy"],
        "test_loss": last["test_loss"],
        "test_accuracy": last["test_accuracy"],
        "distance_from_init": last["distance_from_init"],
        "seconds": before + time.perf_counter() - begun,
        "gpus": (1.0 if job.gpus is None else job.gpus) if device.type == "cuda" else 0.0,
        "steps_per_second": done / progress.step_seconds if progress.step_seconds > 0 else None,
        "engine": engine.name,
        "matmul": engine.matmul,
        "micro_batch": min(cell.batch_size, engine.at_once),
        "attempts": progress.attempts,
        **(here := where(device)),
        "threads": here["threads"] * job.ranks,
    }
    return (
        row,
        [{"cell_id": cell.cell_id, **point} for point in progress.curve],
        [{**measured, **here} for measured in progress.ntk],
    )


def _known_losses(statistics: Mapping[str, object]) -> dict[str, float | None] | None:
    """The losses at w_0, which were found with the statistics; None where they were not."""
    losses = {column.name: known(statistics.get(column.name)) for column in EVALUATION}
    return None if losses["train_loss"] is None else losses


def failed_row(job: Job, error: str) -> Row:
    """The row of a cell that could not be run."""
    return {
        **inherited(job.statistics),
        **describe(job.sweep, job.init),
        **describe_cell(job.cell),
        "status": FAILED,
        "budget": job.budget or None,
        "error": error,
        "iterations_done": 0,
        **where(torch.device("cpu")),
    }


def _advance(engine: engines.StepEngine, cell: Cell, progress: Progress, until: int, device: torch.device) -> None:
    """Some of the steps before the next evaluation: whole blocks of the engine's, some `AT_ONCE_SECONDS` long.

    How many they are decides no bit of the result, for blocks begin where they would in one call.
    """
    b, block = cell.batch_size, engine.block(cell.batch_size)
    steps = min(256, _INDICES_AT_ONCE // b)
    if progress.iteration == 0:
        steps = min(steps, block)
    elif progress.step_seconds > 0:
        steps = min(steps, int(AT_ONCE_SECONDS * progress.iteration / progress.step_seconds))
    steps = min(max(steps // block, 1) * block, until - progress.iteration)
    begun = time.perf_counter()
    engine.run(batches(cell.init.seed, progress.iteration, steps, b, cell.init.n, cell.sampling, str(device)))
    if device.type == "cuda":
        torch.cuda.synchronize()
    progress.step_seconds += time.perf_counter() - begun
    progress.iteration += steps
