"""The engine of a trial that spans GPUs or processes: each batch is split among ranks, and the gradients are summed.

Rank 0 is the trial itself. It starts the others as processes on the same node. Each has the data and a replica of the
network, computes its share of every batch, and makes the same update from the same sum (`torch.distributed`'s
all_reduce: NCCL on GPUs, gloo on CPUs). They end with the engine, or with the trial's process, however that ends.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import threading
import weakref
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed
from jaxtyping import Int64
from torch import Tensor, nn

from raysat.errors import InputError
from raysat.sgd.autograd import AutogradEngine, OverAutograd
from raysat.sgd.problem import Problem
from raysat.user_code import plugins

_HOST = "127.0.0.1"


class ParallelEngine(OverAutograd):
    """Several ranks of `AutogradEngine`, each with a share of every batch. Differs from a single one by rounding alone.

    Args:
        problem: Its network is updated in place; replicas start from its present parameters.
        eta: Stepsize.
        micro_batch: Samples whose gradient a rank computes at a time. Default: all of its share.
        ranks: Number of ranks, each with as many threads as this process and, if the data are on a GPU, with a GPU of
            its own.

    Raises:
        InputError: There are fewer GPUs than ranks, or the network couples the samples of a batch.
    """

    name = "parallel"
    matmul = "torch"

    def __init__(
        self,
        problem: Problem,
        eta: float,
        micro_batch: int | None = None,
        *,
        ranks: int,
    ) -> None:
        network, x = problem.network, problem.x
        if x.is_cuda and torch.cuda.device_count() < ranks:
            raise InputError(
                f"ranks_per_trial={ranks} needs a GPU for each rank, and this trial has {torch.cuda.device_count()}: "
                f"set gpus_per_trial={ranks}."
            )
        self.inner, self.ranks = AutogradEngine(problem, eta, micro_batch), ranks
        if self.inner.coupled_group_size != 1:
            raise InputError(
                f"{type(network).__name__} couples the samples of a batch, which ranks would split: "
                "set ranks_per_trial=1."
            )
        store = torch.distributed.TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
        context = multiprocessing.get_context("spawn")
        given = _packed((problem.to(torch.device("cpu")), eta, self.inner.micro_batch))
        network.to(x.device)
        threads = torch.get_num_threads()
        self.pipes: list[Connection] = []
        processes: list[BaseProcess] = []
        for rank in range(1, ranks):
            ours, theirs = context.Pipe()
            told = (rank, ranks, store.port, x.is_cuda, threads, plugins.installed(), *given, theirs)
            processes.append(context.Process(target=_follow, args=told, daemon=True, name=f"rank {rank}"))
            processes[-1].start()
            theirs.close()
            self.pipes.append(ours)
        self._end = weakref.finalize(self, _end, self.pipes, processes)
        for process, pipe in zip(processes, self.pipes, strict=True):
            try:
                pipe.recv()
            except EOFError:  # raised at once, because the others would wait for it for half an hour
                process.join()
                raise RuntimeError(f"{process.name} ended with exit code {process.exitcode} before it began") from None
        _join(store, 0, ranks, x.is_cuda)

    def run(self, batches: Int64[Tensor, "steps b"]) -> None:
        """Take one SGD step for each row of indices."""
        indices = batches.cpu().numpy()
        for pipe in self.pipes:
            pipe.send(indices)
        _run(self.inner, batches, 0, self.ranks)


def _run(engine: AutogradEngine, batches: Int64[Tensor, "steps b"], rank: int, ranks: int) -> None:
    """Take one step of a rank for each row of indices: `g = 1/b sum_rank sum_{i in share} J_i^T r_i`."""
    sizes = [parameter.numel() for parameter in engine.parameters]
    for batch in batches:
        share = batch.tensor_split(ranks)[rank]
        if len(share):
            gradient = torch.cat([part.flatten() for part in engine.gradients(share)]) * (len(share) / len(batch))
        else:  # b < ranks: this one has no samples, but takes part in the sum
            gradient = engine.parameters[0].new_zeros(sum(sizes))
        torch.distributed.all_reduce(gradient)
        with torch.no_grad():
            parts = [part.view_as(to) for part, to in zip(gradient.split(sizes), engine.parameters, strict=True)]
            torch._foreach_add_(engine.parameters, parts, alpha=-engine.eta)


def _join(store: torch.distributed.Store, rank: int, ranks: int, cuda: bool) -> None:
    torch.distributed.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=ranks)


def _end(pipes: list[Connection], processes: list[BaseProcess]) -> None:
    """Close the pipes, at which the other ranks end, and wait for them."""
    for pipe in pipes:
        pipe.close()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for process in processes:
        process.join(timeout=5)
        process.kill()


def _follow(
    rank: int,
    ranks: int,
    port: int,
    cuda: bool,
    threads: int,
    sources: plugins.Sources,
    structure: bytes,
    tensors: bytes,
    pipe: Connection,
) -> None:
    """Run a rank other than 0: take the steps whose indices arrive, until the pipe closes."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    plugins.install(sources)
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    problem, eta, micro_batch = _unpacked(structure, tensors)
    engine = AutogradEngine(problem.to(device), eta, micro_batch)
    pipe.send("ready")
    _join(torch.distributed.TCPStore(_HOST, port, is_master=False), rank, ranks, cuda)
    while True:
        try:
            batches = torch.from_numpy(pipe.recv()).to(device)
        except EOFError:
            break
        _run(engine, batches, rank, ranks)
    torch.distributed.destroy_process_group()


class _Pickler(pickle.Pickler):
    """Pickles objects without their tensors, which it collects in `tensors`."""

    def __init__(self, buffer: io.BytesIO) -> None:
        super().__init__(buffer)
        self.tensors: list[Tensor] = []
        self.places: dict[int, int] = {}

    def persistent_id(self, thing: Any) -> int | None:
        if type(thing) not in (Tensor, nn.Parameter):
            return None
        if id(thing) not in self.places:
            self.places[id(thing)] = len(self.tensors)
            self.tensors.append(thing)
        return self.places[id(thing)]


class _Unpickler(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(buffer)
        self.persistent_load = tensors.__getitem__


def _packed(things: object) -> tuple[bytes, bytes]:
    """Return objects for another process of this trial as two byte strings: their pickled structure, and their tensors.

    `torch.save` preserves shared storages, and needs no shared memory, of which a container may have little.
    """
    structure, tensors = io.BytesIO(), io.BytesIO()
    pickler = _Pickler(structure)
    pickler.dump(things)
    torch.save(pickler.tensors, tensors)
    return structure.getvalue(), tensors.getvalue()


def _unpacked(structure: bytes, tensors: bytes) -> Any:
    """Return the objects given to `_packed`. The bytes come from the parent process, never from a file."""
    return _Unpickler(io.BytesIO(structure), torch.load(io.BytesIO(tensors), weights_only=True)).load()


def _end_with_parent() -> None:
    """End this process when the trial's ends, even in an all_reduce that will never return."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # a rank is a process that the trial started
    wait([parent.sentinel])
    os._exit(1)
