"""One cell, from weights to rows: a pure function of the cell, its data and its statistics. It knows nothing of Ray."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from raysat import data, models, plugins
from raysat.checkpoint import Checkpoint, Progress
from raysat.losses import LOSSES
from raysat.models.linearized import Linearized
from raysat.ntk import dense_kernel, ntk_statistics
from raysat.schema import COMPLETED, DIVERGED, FAILED, TARGET_REACHED
from raysat.sgd import engine as engines
from raysat.sgd.evaluate import evaluate
from raysat.sgd.sampler import batches
from raysat.sgd.schedule import evaluation_iterations
from raysat.spec import Cell, Initialization
from raysat.theory import beta as second_moment_constant
from raysat.theory import stepsize

DIVERGENCE = 1e3
"""A trial has diverged when its loss is not finite or above this multiple of the initial loss."""

_INDICES_AT_ONCE = 1 << 16

Row = dict[str, object]


@dataclass(frozen=True)
class Job:
    """What a worker needs to run one cell, or one initialization's statistics, as plain data.

    Attributes:
        sweep: The sweep's name.
        cell: The cell; None for the statistics alone.
        init: The initialization.
        statistics: The row of `ntk`, for a cell.
        sources: The user's own modules.
        checkpoints: Folder of the trials' checkpoints; None keeps none.
        checkpoint_seconds: Interval between checkpoints.
        threads: CPU threads.
        engine: What computes the steps, one of `spec.ENGINES`.
    """

    sweep: str
    init: Initialization
    cell: Cell | None = None
    statistics: Mapping[str, object] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    checkpoints: str | None = None
    checkpoint_seconds: float = 60.0
    threads: int = 1
    engine: str = "auto"

    @property
    def name(self) -> str:
        """For messages to a person."""
        return (self.cell or self.init).name


def _prepare(job: Job) -> tuple[data.Dataset, nn.Module, torch.device]:
    """The data and the network at initialization, on the trial's device. All that a trial finds is set anew here."""
    torch.set_num_threads(job.threads)
    plugins.install(job.sources)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = load_dataset(job.init)
    network = models.build(job.init.model, job.init.width, dataset.input_shape, dataset.outputs, job.init.seed)
    return dataset, network.to(device, getattr(torch, job.init.dtype)), device


def load_dataset(init: Initialization) -> data.Dataset:
    """The data of an initialization, as preprocessed."""
    return data.load(
        init.dataset, n_train=init.n, n_test=init.n_test, preprocessing=init.preprocessing, dtype=init.dtype
    )


def compute_statistics(job: Job) -> Row:
    """The row of `ntk` of an initialization."""
    begun = time.perf_counter()
    dataset, network, device = _prepare(job)
    row = _statistics(job, models.at_initialization(network), dataset.x.to(device), dataset.y.to(device))
    return {**row, "iteration": 0, "seconds": time.perf_counter() - begun, **_where(device)}


def _statistics(job: Job, network: nn.Module, x: Tensor, y: Tensor) -> Row:
    init = job.init
    statistics = ntk_statistics(
        network,
        x,
        y,
        loss=init.loss,
        k_samples=init.k_samples,
        k_tolerance=init.k_tolerance,
        spectrum=init.spectrum,
        dense_samples=init.dense_samples,
    )
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(statistics).items()}
    return {**_describe(job), **{name: _known(value) for name, value in values.items()}}


def run_trial(job: Job) -> tuple[Row, list[Row], list[Row]]:
    """Train one cell by fixed-stepsize SGD.

    Returns:
        The row of `trials`, the rows of `curves`, and those of `ntk` for the iterations `ntk_at`.
    """
    begun = time.perf_counter()
    cell, init, statistics = job.cell, job.init, job.statistics
    dataset, network, device = _prepare(job)
    x, y = dataset.x.to(device), dataset.y.to(device)
    test = None if dataset.x_test is None else (dataset.x_test.to(device), dataset.y_test.to(device))
    gamma, k_op = float(statistics["gamma"]), float(statistics["k_op"])
    replacement = cell.sampling == "with_replacement"
    eta = stepsize(cell.stepsize, cell.batch_size, init.n, gamma, k_op, replacement=replacement)
    beta = second_moment_constant(cell.batch_size, init.n, gamma, k_op, replacement=replacement)

    loss = LOSSES[init.loss]
    classes = dataset.classes or not y.is_floating_point()
    start = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    ntk_at = () if isinstance(network, Linearized) else cell.ntk_at  # its kernel never moves
    drift = _Drift(network, x) if ntk_at and y.is_floating_point() else None
    checkpoint = Checkpoint(Path(job.checkpoints) / f"{cell.cell_id}.pt" if job.checkpoints else None)
    progress = checkpoint.load()
    if progress.weights is not None:
        network.load_state_dict(progress.weights)
    engine = engines.build(job.engine, network, x, y, loss, eta)
    before = progress.seconds

    def save() -> None:
        progress.weights = network.state_dict()
        progress.seconds = before + time.perf_counter() - begun
        checkpoint.save(progress)

    status = COMPLETED
    for until in sorted({*evaluation_iterations(cell.iterations, cell.evaluations), *ntk_at}):
        if progress.curve and until <= progress.curve[-1]["iteration"]:
            continue
        saved = time.perf_counter()
        while progress.iteration < until:
            if time.perf_counter() - saved > job.checkpoint_seconds:
                save()
                saved = time.perf_counter()
            _advance(engine, cell, progress, until, device)
        train = evaluate(network, x, y, loss, classes=classes)
        tested = evaluate(network, *test, loss, classes=classes) if test else None
        progress.curve.append(
            {
                "iteration": until,
                "samples": until * cell.batch_size,
                "seconds": progress.step_seconds,
                "train_loss": train.loss,
                "test_loss": tested.loss if tested else None,
                "test_accuracy": _known(tested.accuracy) if tested else None,
            }
        )
        if until in ntk_at and math.isfinite(train.loss):
            measured = _statistics(job, network, x, y)
            drifted = {"kernel_drift": drift.of(network) if drift else None}
            progress.ntk.append({**measured, "cell_id": cell.cell_id, "iteration": until, **drifted})
        if not train.loss <= DIVERGENCE * progress.curve[0]["train_loss"]:  # also where it is not a number
            status = DIVERGED
            break
        if cell.target_loss is not None and train.loss <= cell.target_loss:
            status = TARGET_REACHED
            break

    first, last = progress.curve[0], progress.curve[-1]
    done = progress.iteration
    row = {
        **{name: value for name, value in statistics.items() if name in _INHERITED},
        **_describe(job),
        **_describe_cell(cell),
        "status": status,
        "eta": eta,
        "beta": beta,
        "eta_beta": eta * beta,
        "iterations_done": done,
        "loss_init": first["train_loss"],
        "loss_final": last["train_loss"],
        "h": _exponent(first["train_loss"], last["train_loss"], done) if status != DIVERGED else None,
        "train_accuracy": _known(train.accuracy),
        "test_loss": last["test_loss"],
        "test_accuracy": last["test_accuracy"],
        "distance_from_init": _distance(network, start),
        "seconds": before + time.perf_counter() - begun,
        "steps_per_second": done / progress.step_seconds if progress.step_seconds > 0 else None,
        "engine": engine.name,
        "matmul": engine.matmul,
        "attempts": progress.attempts,
        **_where(device),
    }
    where = _where(device)
    return (
        row,
        [{"cell_id": cell.cell_id, **point} for point in progress.curve],
        [{**measured, **where} for measured in progress.ntk],
    )


class _Drift:
    """How far the kernel of a few samples has moved from where it was when this was made."""

    def __init__(self, network: nn.Module, x: Tensor, outputs: int = 1000) -> None:
        with torch.no_grad():
            count = max(1, outputs // network(x[:1]).numel())
        self.x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:count]]
        self.before = dense_kernel(network, self.x)

    def of(self, network: nn.Module) -> float:
        """`||K - K_0||_F / ||K_0||_F`."""
        return ((dense_kernel(network, self.x) - self.before).norm() / self.before.norm()).item()


def failed_row(job: Job, error: str) -> Row:
    """The row of a cell that could not be run."""
    return {
        **{name: value for name, value in job.statistics.items() if name in _INHERITED},
        **_describe(job),
        **_describe_cell(job.cell),
        "status": FAILED,
        "error": error,
        "iterations_done": 0,
        **_where(torch.device("cpu")),
    }


def _advance(engine: engines.StepEngine, cell: Cell, progress: Progress, until: int, device: torch.device) -> None:
    """Some of the steps before the next evaluation: as many as one drawing of indices holds, at most 256."""
    steps = min(until - progress.iteration, max(1, _INDICES_AT_ONCE // cell.batch_size), 256)
    begun = time.perf_counter()
    engine.run(
        batches(cell.init.seed, progress.iteration, steps, cell.batch_size, cell.init.n, cell.sampling, str(device))
    )
    if device.type == "cuda":
        torch.cuda.synchronize()
    progress.step_seconds += time.perf_counter() - begun
    progress.iteration += steps


_INHERITED = ("n_outputs", "parameters", "loss_init", "k_samples", "b_star", "b_star_thm33", "noise_scale")
_INHERITED += ("gamma", "gamma_mean", "gamma_frobenius", "k_op", "k_op_residual")


def _describe(job: Job) -> Row:
    """What an initialization asks for, under the columns' names."""
    init = job.init
    return {
        "init_id": init.init_id,
        "sweep": job.sweep,
        "dataset": init.dataset,
        "preprocessing": init.preprocessing,
        "n": init.n,
        "n_test": init.n_test,
        "model": init.model.label,
        "model_options": json.dumps(dict(init.model.options), sort_keys=True),
        "depth": init.model.option("depth"),
        "width": init.width,
        "activation": init.model.option("activation"),
        "dtype": init.dtype,
        "seed": init.seed,
        "loss": init.loss,
    }


def _describe_cell(cell: Cell) -> Row:
    """What a cell asks for beyond its initialization, under the columns' names."""
    return {
        "cell_id": cell.cell_id,
        "sampling": cell.sampling,
        "batch_size": cell.batch_size,
        "stepsize": cell.stepsize.label,
        "iterations": cell.iterations,
    }


def _where(device: torch.device) -> Row:
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "hostname": platform.node(),
        "threads": torch.get_num_threads(),
        "raysat_version": version("raysat"),
        "finished_at": datetime.now(UTC),
    }


def _exponent(loss_init: float, loss_final: float, iterations: int) -> float | None:
    """`h = log(L(w_0) / L(w_T)) / T` (section 5); None where the loss has reached zero."""
    return math.log(loss_init / loss_final) / iterations if loss_final > 0 and iterations > 0 else None


def _distance(network: nn.Module, start: Mapping[str, Tensor]) -> float:
    squares = sum(
        (weight.detach() - start[name]).double().square().sum() for name, weight in network.named_parameters()
    )
    return math.sqrt(float(squares))


def _known(value: object) -> object:
    """What stands in a row: null for a number that is not known."""
    return None if isinstance(value, float) and math.isnan(value) else value
