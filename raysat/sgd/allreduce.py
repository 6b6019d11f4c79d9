"""The time of an all-reduce between processes, measured by `torch.distributed`, and its model.

The model is a ring (Thakur, Rabenseifner and Gropp 2005; Patarasuk and Yuan 2009): 2 (p - 1) messages one after the
other, each of 1/p of the s bytes,

    T(s, p) = 2 (p - 1) (alpha + s / (p bandwidth)).

It assumes that the link between any two workers is the same, and that nothing else uses it.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from raysat.errors import InputError, positive, whole
from raysat.storage.files import Location, write_aside

SIZES = tuple(4**k for k in range(5, 13))
"""Bytes of the measured all-reduces: 1 KiB to 16 MiB, from where latency rules to where bandwidth does."""

REPEATS, WARMUP = 30, 3
"""Timed calls of each size, whose median counts, and untimed calls before them."""

BACKENDS = ("gloo", "nccl")


@dataclass(frozen=True)
class Measurement:
    """The median time of an all-reduce.

    Attributes:
        size: Bytes on each rank.
        ranks: p.
        seconds: Of one call.
    """

    size: int
    ranks: int
    seconds: float


@dataclass(frozen=True)
class Link:
    """The link between two workers.

    Attributes:
        alpha: Latency: the seconds that an empty message takes.
        bandwidth: Bytes a second.
    """

    alpha: float
    bandwidth: float

    def seconds(self, size: float | int, ranks: int) -> float:
        """Return `T(s, p)`, for an all-reduce of `size` bytes between `ranks`; 0 for one rank."""
        return 2 * (ranks - 1) * (self.alpha + size / (ranks * self.bandwidth))

    @property
    def label(self) -> str:
        """Both numbers as text: `alpha = 164 µs, 1.39 GB/s`."""
        return f"alpha = {1e6 * self.alpha:.3g} µs, {self.bandwidth / 1e9:.3g} GB/s"

    def miss(self, measured: Sequence[Measurement]) -> float:
        """Return the largest factor by which a measured time is above or below the model's."""
        return max(math.exp(abs(math.log(self.seconds(one.size, one.ranks) / one.seconds))) for one in measured)


def measure(
    ranks: int, sizes: Sequence[int] = SIZES, backend: str = "gloo", repeats: int = REPEATS, warmup: int = WARMUP
) -> list[Measurement]:
    """Time all-reduces between new processes of this machine. Each takes one thread, or with `nccl` one GPU.

    Args:
        ranks: p; at least 2.
        sizes: Bytes.
        backend: `gloo` on CPUs, `nccl` on GPUs.
        repeats: Timed calls of each size; their median counts.
        warmup: Untimed calls before them.

    Raises:
        InputError: There are too few ranks or GPUs.
    """
    if ranks < 2:
        raise InputError(f"ranks={ranks}: an all-reduce needs at least 2.")
    if backend == "nccl" and torch.cuda.device_count() < ranks:
        raise InputError(f"backend='nccl' needs {ranks} GPUs, one a rank, here are {torch.cuda.device_count()}.")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(
            _rank, (ranks, tuple(sizes), backend, repeats, warmup, folder), nprocs=ranks, join=True
        )
        return read(Path(folder) / "measured.json")


def all_reduces(sizes: Sequence[int], repeats: int = REPEATS, warmup: int = WARMUP) -> list[Measurement]:
    """Time all-reduces of float32 between the ranks of the existing process group. All ranks call this."""
    group = torch.distributed
    device = "cuda" if group.get_backend() == "nccl" else "cpu"
    measured = []
    for size in sizes:
        values = torch.ones(max(1, size // 4), device=device)
        times = []
        for _ in range(warmup + repeats):
            group.barrier()
            begun = time.perf_counter()
            group.all_reduce(values)
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begun)
            values.fill_(1.0)
        measured.append(Measurement(4 * len(values), group.get_world_size(), float(np.median(times[warmup:]))))
    return measured


def _rank(rank: int, ranks: int, sizes: Sequence[int], backend: str, repeats: int, warmup: int, folder: str) -> None:
    """Run one process of `measure`."""
    group = {"init_method": f"file://{folder}/rendezvous", "rank": rank, "world_size": ranks}
    measure_here(Path(folder) / "measured.json", sizes, backend, rank, repeats, warmup, **group)


def measure_here(
    path: Location, sizes: Sequence[int], backend: str, gpu: int, repeats: int, warmup: int, **group: Any
) -> None:
    """Measure as one of several ranks; the first one writes the result."""
    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(gpu)
    torch.distributed.init_process_group(backend, **group)
    measured = all_reduces(sizes, repeats, warmup)
    if torch.distributed.get_rank() == 0:
        write(path, measured)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def write(path: Location, measured: Sequence[Measurement]) -> None:
    """Write measurements as JSON: a list of objects with `size`, `ranks` and `seconds`."""
    write_aside(path, lambda aside: aside.write_text(json.dumps([asdict(one) for one in measured], indent=1)))


def read(path: Location) -> list[Measurement]:
    """Read measurements written by `write`.

    Raises:
        InputError: The file does not exist or contains something else.
    """
    try:
        rows = json.loads(path.read_text())
        return [
            Measurement(whole("size", row["size"], 1), whole("ranks", row["ranks"], 2), positive("s", row["seconds"]))
            for row in rows
        ]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} has no measured all-reduces ({type(error).__name__}): write it by python -m raysat.allreduce, or "
            'as a JSON list of {"size": bytes, "ranks": p, "seconds": s}.'
        ) from None


def fit(measured: Sequence[Measurement]) -> Link:
    """Fit the link by least squares in relative errors over all sizes and ranks, with both numbers at least 0.

    Raises:
        InputError: Fewer than two sizes were measured.
    """
    if len({one.size for one in measured}) < 2:
        raise InputError("latency and bandwidth need all-reduces of at least two sizes: measure more.")
    seconds = np.array([one.seconds for one in measured])
    rows = [(2 * (one.ranks - 1), 2 * (one.ranks - 1) / one.ranks * one.size) for one in measured]
    (alpha, inverse), _ = nnls(np.array(rows) / seconds[:, None], np.ones(len(seconds)))
    return Link(float(alpha), 1 / float(inverse) if inverse > 0 else math.inf)
