"""The number of trials that share one GPU: as many as fit in its memory, and no more than keep it busy.

Both follow from measurements on that GPU, stored with the statistics: the memory of a sample, and the time of a step,
split into the launch and what each sample adds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from raysat.compute.micro_batch import sample_bytes
from raysat.data import Dataset
from raysat.losses import Loss
from raysat.sgd.cost import calibrate
from raysat.spec.cells import Cell

MOST = 8
"""The most trials on one GPU. Each is a process with its own context, and they take turns on the GPU."""

CONTEXT = 1 << 29
"""Bytes of a process's CUDA context with its libraries; NVIDIA's tools show 0.3 to 0.5 GB."""

FILLED = 0.9
"""Share of the GPU's memory that may be planned for."""

COPIES = 4
"""Copies of the weights: themselves, their gradient, those at initialization, and temporaries of a step."""

PEAK = 2
"""Ratio of a backward pass's peak memory to the memory kept for it (cf. `raysat.compute.micro_batch.SHARE`)."""


def measure(network: nn.Module, dataset: Dataset, loss: Loss, engine: str) -> dict[str, float | None]:
    """Return what the sharing of a GPU depends on, as columns of `ntk`; on a CPU without the times.

    Args:
        network: At initialization; it is left unchanged.
        dataset: Where the network is.
        loss: The loss of a sample.
        engine: The engine that will compute the steps.
    """
    measured = {
        "data_bytes": dataset.nbytes,
        "sample_bytes": sample_bytes(network, dataset.x, dataset.y, loss),
    }
    if dataset.x.device.type != "cuda":
        return {**measured, "device_bytes": None, "launch_seconds": None, "sample_seconds": None}
    pace = calibrate(network, dataset.x, dataset.y, loss, engine)
    device = torch.cuda.get_device_properties(dataset.x.device)
    return {
        **measured,
        "device_bytes": device.total_memory,
        "launch_seconds": pace.launch,
        "sample_seconds": pace.sample,
    }


def trials_at_once(cell: Cell, measured: Mapping[str, Any]) -> int:
    """Return the number of such trials that share a GPU; 1 if nothing was measured.

    Args:
        cell: The cell.
        measured: A row of `ntk` with its columns parameters, data_bytes, sample_bytes, device_bytes, launch_seconds and
            sample_seconds.
    """
    names = ("parameters", "data_bytes", "sample_bytes", "device_bytes", "launch_seconds", "sample_seconds")
    values: list[Any] = [measured.get(name) for name in names]
    if any(value is None or math.isnan(value) for value in values):
        return 1
    parameters, data, sample, device, launch, each = values
    width = 8 if cell.init.dtype == "float64" else 4
    needed = CONTEXT + data + COPIES * width * parameters + PEAK * sample * cell.largest_batch
    busy = cell.samples_at(cell.iterations) / cell.iterations * each
    idle = (launch + busy) / busy if busy > 0 else math.inf
    return max(1, int(min(MOST, FILLED * device / needed, idle)))


def share(cell: Cell, measured: Mapping[str, Any]) -> float:
    """Return a trial's share of a GPU, rounded down to the four digits that Ray counts; cf. `trials_at_once`."""
    return math.floor(1e4 / trials_at_once(cell, measured)) / 1e4
