"""A job: what a worker is given to do, and what it begins with."""

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
from raysat.storage.files import Location
from raysat.user_code import identity, plugins, process
from raysat.user_code.seeding import seeded

PROGRESS_INTERVAL = 10.0
"""How often a job says how far it is. Default: 10 s; a hundred trials then tell the driver ten times a second."""


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
        gpus: GPUs, or the fraction of one: also of its memory, so that no trial takes what another was promised; None
            for one where there is one.
        engine: What computes the steps, `auto` or one of `raysat.spec.engines.ENGINES`.
        data: Where the data set's files may be had besides the usual folders.
        on_progress: Progress callback `(iteration, {cell_id: last loss})`, called every `PROGRESS_INTERVAL`; of
            statistics the iteration is the number of samples done. Set by the executor in the worker; None disables it.
        ranks: Processes among which a trial's batches are split.
        budget: What ends a trial, in words.
        limits: How many iterations the trial has to reach its target in, to be the best of its race.
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
        """The job of each cell: this one, and its mates."""
        return (self, *self.stacked_with)

    @property
    def trained_cell(self) -> Cell:
        """The cell, of a job that trains one."""
        assert self.cell is not None
        return self.cell

    @property
    def name(self) -> str:
        """For messages to a person."""
        return self.cell.name if self.cell else f"statistics of {self.init.name}"

    @property
    def key(self) -> str:
        """The id of the cell; of a job for statistics, that of the initialization."""
        return self.cell.cell_id if self.cell else self.init.init_id


@contextmanager
def begun(job: Job) -> Iterator[None]:
    """A job's own world: the process as every job finds it, the user's modules imported anew, the generators seeded.

    The generators are for what else draws, as a network may that is only evaluated.
    """
    init = job.init
    with ExitStack() as stack:
        if job.sources or identity.references_of(
            init.dataset, init.loss, init.model.builder
        ):  # also of what is installed
            stack.enter_context(process.undisturbed())
            stack.enter_context(plugins.anew(job.sources))
            stack.enter_context(identity.recorded())
        stack.enter_context(seeded(init.seed))
        yield


def prepare(job: Job) -> tuple[data.Dataset, nn.Module, torch.device]:
    """The data and the network at initialization, on the trial's device, where they stay.

    Sets what a trial depends on in its process: threads, precision, its share of GPU memory, the user's modules.
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
    """The network of an initialization, on a device."""
    sizes = dataset.input_shape, dataset.outputs
    network = models.build(init.model, init.width, *sizes, init.seed, dataset.vocabulary)
    return network.to(device, getattr(torch, init.dtype))


def load_dataset(init: Initialization) -> data.Dataset:
    """The data of an initialization, as preprocessed: one copy for all processes of the machine."""
    return data.load_shared(
        init.dataset, n_train=init.n, n_test=init.n_test, preprocessing=init.preprocessing, dtype=init.dtype
    )


def micro_batch_of(job: Job, dataset: data.Dataset, network: nn.Module) -> int:
    """The samples that the job may pass through a network at a time."""
    return max_micro_batch(network, dataset.x, dataset.y, resolve(job.init.loss), threads=job.threads)
