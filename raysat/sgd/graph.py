"""The engine for GPUs: a CUDA graph of many iterations, so that launches by the CPU no longer limit the speed."""

from __future__ import annotations

import logging
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from raysat.data.fields import Inputs
from raysat.errors import InputError
from raysat.sgd.autograd import AutogradEngine
from raysat.sgd.fused import FusedEngine, layers_of
from raysat.sgd.problem import Problem
from raysat.sgd.protocol import Maker

STEPS = 32
"""Iterations of a graph. A launch costs some 10 microseconds, which 32 iterations share; more would only make the
capture longer. Not measured."""

WARMUP = 3
"""Iterations before a capture, on a separate stream, as PyTorch's notes on CUDA graphs prescribe: libraries allocate
their workspaces and choose their algorithms in the first ones."""

log = logging.getLogger(__name__)


class GraphEngine:
    """Replays `STEPS` iterations of another engine with each launch; batch indices are copied into the graph's buffer.

    Args:
        inner: The engine whose iterations are captured.
        optional: Whether to go on without a graph if the module cannot be captured (it copies something to the host, or
            its shapes depend on values). `name` is then the inner engine's.

    Raises:
        InputError: From `run`, if the module cannot be captured and `optional` is False.
    """

    def __init__(self, inner: AutogradEngine | FusedEngine, *, optional: bool = False) -> None:
        self.inner, self.optional = inner, optional
        self.name, self.matmul = "graph", inner.matmul
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    @property
    def micro_batch(self) -> int:
        """Samples whose gradient is computed at a time."""
        return self.inner.micro_batch

    def block(self, b: int) -> int:
        """Return the number of steps of a graph, or the inner engine's block if there is none."""
        return STEPS if self.name == "graph" else self.inner.block(b)

    def run(self, batches: Int64[Tensor, "steps b"]) -> None:
        """Take one step for each row of indices; those that do not fill a graph are launched one by one."""
        b = batches.shape[1]
        whole = len(batches) - len(batches) % STEPS
        if whole and self.name == "graph" and b not in self._graphs:
            self._capture(batches[:STEPS])
        done = 0
        if whole and b in self._graphs:
            graph, indices = self._graphs[b]
            for chunk in batches[:whole].split(STEPS):
                indices.copy_(chunk)
                graph.replay()
            done = whole
        if done < len(batches):
            self.inner.run(batches[done:])

    def _capture(self, batches: Int64[Tensor, "steps b"]) -> None:
        """Record the iterations of a batch size. A capture runs none of them, and those of the warm-up are undone."""
        indices = batches.clone()
        network = self.inner.network
        before = {name: value.clone() for name, value in network.state_dict().items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.inner.run(indices[:WARMUP])
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # If a capture fails, `torch.cuda.graph` stays on its own stream; the outer context returns to this one.
            with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
                self.inner.run(indices)
        except RuntimeError as error:
            message = f"a CUDA graph cannot record {type(network).__name__} ({str(error).splitlines()[0]})"
            if not self.optional:
                raise InputError(f"{message}: set engine='autograd'.") from error
            log.warning("%s: its iterations are launched one by one.", message)
            self.name = self.inner.name
        else:
            self._graphs[len(batches[0])] = graph, indices
        finally:
            with torch.no_grad():
                for name, value in network.state_dict().items():
                    value.copy_(before[name])


def _make(problem: Problem, *rest: Any, bfloat16: bool, asked: bool) -> GraphEngine:
    fused = layers_of(problem.network) and not bfloat16
    inner = FusedEngine(problem, *rest) if fused else AutogradEngine(problem, *rest, bfloat16=bfloat16)
    return GraphEngine(inner, optional=not asked)


def _wins(_network: nn.Module, x: Inputs) -> bool:
    return x.device.type == "cuda"


GRAPH = Maker(_make, wins=_wins)
