"""The time of an all-reduce between processes, measured by `torch.distributed`, and its model.

The model is a ring (Thakur, Rabenseifner and Gropp 2005; Patarasuk and Yuan 2009): 2 (p - 1) messages one after the
other, each of 1/p of the s bytes,

    T(s, p) = 2 (p - 1) (alpha + s / (p bandwidth)).

It assumes that the link between any two workers is the same, and that nothing else uses it.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls

from raysat.validation import InputError

SIZES = tuple(4**k for k in range(5, 13))
"""Bytes of the measured all-reduces: 1 KiB to 16 MiB, from where latency rules to where bandwidth does."""


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
    """The connection between two workers.

    Attributes:
        alpha: Seconds of a message without content.
        bandwidth: Bytes a second.
    """

    alpha: float
    bandwidth: float

    def seconds(self, size: float, ranks: int) -> float:
        """`T(s, p)`: an all-reduce of `size` bytes between `ranks`. 0 for one."""
        return 2 * (ranks - 1) * (self.alpha + size / (ranks * self.bandwidth))


def measure(
    ranks: int, sizes: Sequence[int] = SIZES, backend: str = "gloo", repeats: int = 30, warmup: int = 3
) -> list[Measurement]:
    """Time all-reduces between new processes of this machine. Each takes one thread, or with `nccl` one GPU.

    For processes on several machines, run `all_reduces` there under `torchrun`.

    Args:
        ranks: p; at least 2.
        sizes: Bytes.
        backend: `gloo` on CPUs, `nccl` on GPUs.
        repeats: Calls of each size, of whose times the median counts.
        warmup: Calls before them.

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
        return torch.load(Path(folder) / "measured.pt", weights_only=False)


def all_reduces(sizes: Sequence[int], repeats: int, warmup: int) -> list[Measurement]:
    """Time all-reduces of float32 between the ranks of the process group, which is there. All ranks call it."""
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
    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    method = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group(backend, init_method=method, rank=rank, world_size=ranks)
    measured = all_reduces(sizes, repeats, warmup)
    if rank == 0:
        torch.save(measured, Path(folder) / "measured.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def fit(measured: Sequence[Measurement]) -> Link:
    """The link, by least squares in relative errors, neither number below 0.

    Raises:
        InputError: Fewer than two sizes were measured.
    """
    if len({one.size for one in measured}) < 2:
        raise InputError("latency and bandwidth need all-reduces of at least two sizes: measure more.")
    seconds = np.array([one.seconds for one in measured])
    rows = [(2 * (one.ranks - 1), 2 * (one.ranks - 1) / one.ranks * one.size) for one in measured]
    (alpha, inverse), _ = nnls(np.array(rows) / seconds[:, None], np.ones(len(seconds)))
    return Link(float(alpha), 1 / float(inverse) if inverse > 0 else math.inf)
