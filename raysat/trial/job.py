"""A job, the unit of work of a worker, and the preparation of its process, data and network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from raysat import data, models
from raysat.compute.micro_batch import max_micro_batch
from raysat.losses import resolve
from raysat.sgd import engine as engines
from raysat.spec.cells import Cell, Initialization
from raysat.spec.race import UNLIMITED, Limits
from raysat.spec.training import PLAIN
from raysat.storage.files import Location
from raysat.user_code import identity, plugins, process
from raysat.user_code.seeding import seeded

PROGRESS_INTERVAL = 10.0
"""Seconds between two progress reports of a job. Default: 10; a hundred trials then report ten times a second."""


@dataclass(frozen=True)
class Job:
    """All that a worker needs to run one cell, or to compute one initialization's statistics, as plain data.

    Attributes:
        sweep: The sweep's name.
        cell: The cell; None for the statistics alone.
        init: The initialization.
        statistics: The row of `ntk`, for a cell.
        sources: The user's own modules.
        checkpoints: Folder of the trials' checkpoints; None keeps none.
        checkpoint_seconds: Interval between checkpoints.
        threads: CPU threads.
        gpus: GPUs, or the fraction of one; the fraction also limits its memory, so that no trial takes another's share.
            None for one GPU if there is any.
        engine: The engine of the steps, `auto` or one of `raysat.spec.engines.ENGINES`.
        data: A further place to look for the data set's files, besides the usual folders.
        on_progress: Progress callback `(iteration, {cell_id: last loss})`, called every `PROGRESS_INTERVAL`; for
            statistics the iteration is the number of samples done. Set by the executor in the worker; None disables it.
        ranks: Processes among which a trial's batches are split.
        budget: The budget that ends a trial, in words.
        limits: The iterations within which the trial must reach its target to be the best of its race.
        stacked_with: The jobs of further cells, equal to this one but for their seeds, that may be trained in one
            computation.
    """

    sweep: str
    init: Initialization
    cell: Cell | None = None
    statistics: Mapping[str, Any] = field(default_factory=dict)
    sources: plugins.Sources = field(default_factory=dict)
    checkpoints: Location | str | None = None
    checkpoint_seconds: float = 60.0
    threads: int = 1
    gpus: float | None = None
    engine: str = "auto"
    data: Location | None = None
    on_progress: Callable[[int, Mapping[str, float | None]], object] | None = None
    ranks: int = 1
    budget: str = ""
    limits: Limits = UNLIMITED
    stacked_with: tuple[Job, ...] = ()

    @property
    def members(self) -> tuple[Job, ...]:
        """The job of each cell: this one, and those stacked with it."""
        return (self, *self.stacked_with)

    @property
    def trained_cell(self) -> Cell:
        """The cell of a job that trains one."""
        assert self.cell is not None
        return self.cell

    @property
    def name(self) -> str:
        """The name in messages to users."""
        return self.cell.name if self.cell else f"statistics of {self.init.name}"

    @property
    def key(self) -> str:
        """The id of the cell, or of the initialization in a job for statistics."""
        return self.cell.cell_id if self.cell else self.init.init_id


@contextmanager
def begun(job: Job) -> Iterator[None]:
    """Give a job a clean process: settings as every job finds them, the user's modules reimported, generators seeded.

    The seeds are for other draws, such as those of a network that is only evaluated.
    """
    init = job.init
    with ExitStack() as stack:
        training = job.cell.training if job.cell else PLAIN
        if job.sources or identity.references_in(init, training):  # installed packages included
            stack.enter_context(process.undisturbed())
            stack.enter_context(plugins.anew(job.sources))
            stack.enter_context(identity.recorded())
        stack.enter_context(seeded(init.seed))
        yield


def prepare(job: Job) -> tuple[data.Dataset, nn.Module, torch.device]:
    """Return the data and the network at initialization, on the trial's device.

    Set the process-wide state that a trial depends on: threads, precision, share of GPU memory, the user's modules.
    """
    torch.set_num_threads(max(1, job.threads // (job.ranks if job.cell else 1)))
    plugins.install(job.sources)
    device = torch.device("cuda" if job.gpus != 0 and torch.cuda.is_available() else "cpu")
    engines.set_precision("full", device)
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(job.gpus or 1.0, 1.0))
    data.look_also_in(job.data)
    dataset = load_dataset(job.init)
    dataset = dataset.to(device)
    return dataset, initial_network(job.init, dataset, device), device


def initial_network(init: Initialization, dataset: data.Dataset, device: torch.device) -> nn.Module:
    """Build the network of an initialization, on a device."""
    sizes = dataset.input_shape, dataset.outputs
    network = models.build(init.model, init.width, *sizes, init.seed, dataset.vocabulary)
    return network.to(device, getattr(torch, init.dtype))


def load_dataset(init: Initialization) -> data.Dataset:
    """Load the preprocessed data of an initialization: one copy for all processes of the machine."""
    return data.load_shared(
        init.dataset, n_train=init.n, n_test=init.n_test, preprocessing=init.preprocessing, dtype=init.dtype
    )


def micro_batch_of(job: Job, dataset: data.Dataset, network: nn.Module) -> int:
    """Return the number of samples that the job may pass through a network at a time."""
    return max_micro_batch(network, dataset.x, dataset.y, resolve(job.init.loss), threads=job.threads)
