"""The engine for several small fully-connected networks at once: the seeds of a cell, their weights stacked.

In a small network, launching the products of a step takes longer than their arithmetic. S networks of one shape share
the launches: the weights of a layer are one tensor of shape [S, outputs, inputs], and a step is that of
`raysat.sgd.fused` in batched products, without deferred updates. Each network has its own stepsize and batches.

On one thread each network's result is, to the bit, independent of the others in the stack, so that one may stop early
or resume alone. Three things would break that. The library's order of summation depends on memory alignment: each
network's numbers begin at a multiple of 64 bytes. A single product with a vector goes to another routine: if a layer
has one input or output, a lone network is computed twice. The update at b = 1 is an outer product, for which the
library has yet another routine on Intel's processors: it is computed entry by entry, at the same speed. A test checks
that PyTorch's batched products otherwise keep the networks independent.

Measured (`benchmarks/seeds.py`, 64 inputs, one thread, b = 1): three stacked seeds take 2.15 times as
many steps per second as one after the other at width 32, 1.49 at 128, and 1.04 at 256.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from raysat.compute.matmul import Call, Matmul
from raysat.compute.micro_batch import out_of_memory
from raysat.losses import SquaredError
from raysat.sgd.fused import (
    BACKWARD,
    FORWARD,
    IN_PLACE,
    RANK,
    FusedEngine,
    known_layers,
    layers_of,
    residual,
)
from raysat.sgd.problem import Problem
from raysat.sgd.protocol import Maker

MOST = 8
"""The largest number of stacked networks. Of 2, 3 and 8, the numbers measured, 8 gain most wherever stacking gains."""

SMALL, LARGEST_BATCH = 1 << 16, 32
"""Stacking gains if every weight has fewer entries than `SMALL`, up to the batch size `LARGEST_BATCH`: three networks
then take 1.15 to 2.15 times as many steps a second as one after the other, on one thread (`benchmarks/seeds.py`).
Beyond, arithmetic and memory set the speed: 1.0 to 1.2 times at 256 x 256, and less than 1 at 784 x 256."""


def stackable(network: nn.Module) -> bool:
    """Return whether a network is small enough to gain from stacking; cf. `SMALL`."""
    layers = layers_of(network)
    return layers is not None and all(layer.weight.numel() < SMALL for layer in layers)


class StackedEngine:
    """Forward, backward and update of S fully-connected networks of one shape.

    Args:
        problems: One network each, with the same samples and the same loss. The networks are updated in place: their
            parameters become views of the stacked weights.
        etas: The stepsize of each network.
        micro_batch: Samples whose gradient is computed at a time. If S batches are more than that, or their buffers do
            not fit in memory, each network is left to a `FusedEngine`, and this engine then reports its name and
            micro-batch. Default: all.

    Raises:
        InputError: A network has layers that the fused engine cannot train.
    """

    name = "stacked"
    matmul = Matmul.TORCH.label

    def __init__(self, problems: Sequence[Problem], etas: Sequence[float], micro_batch: int | None = None) -> None:
        x, self.y, self.loss = problems[0].x, problems[0].y, problems[0].loss
        self.networks = networks = [problem.network for problem in problems]
        same = list(zip(*(known_layers(network, self.name) for network in networks), strict=True))
        self.layers = [layers[0] for layers in same]
        self.copies = 2 if len(networks) == 1 and any(1 in layer.weight.shape for layer in self.layers) else 1
        self.etas = [*etas] * self.copies
        self.weights = [_aligned(len(self.etas), layer.weight) for layer in self.layers]
        for stack, layers in zip(self.weights, same, strict=True):
            torch.stack([layer.weight for layer in layers] * self.copies, out=stack)
        for network, weights in zip(networks, zip(*self.weights, strict=True), strict=False):
            for parameter, weight in zip(network.parameters(), weights, strict=True):
                parameter.data = weight
        assert isinstance(x, Tensor)  # a network of several inputs is an `Unpacked`, which has no known layers
        self.x = x.flatten(1).to(self.weights[0].dtype)
        self.micro_batch = len(networks) * len(x) if micro_batch is None else micro_batch
        self._blocks: dict[tuple[int, int], _Block] = {}
        self._alone: list[FusedEngine] = []

    def run(self, *batches: Int64[Tensor, "steps b"]) -> None:
        """Take one step of every network for each row of its own indices, in blocks of `RANK / b` steps."""
        b = batches[0].shape[1]
        for chunk in torch.stack(batches * self.copies, 1).split(self.block(b)):
            if block := self._block(len(chunk), b):
                with torch.inference_mode():
                    block.run(chunk)
            for engine, chosen in zip(self._alone, chunk.unbind(1), strict=False):
                engine.run(chosen)
                self.name, self.matmul, self.micro_batch = engine.name, engine.matmul, engine.micro_batch

    def block(self, b: int) -> int:
        """Return the number of steps whose samples are gathered together."""
        return max(1, RANK // b)

    def _block(self, steps: int, b: int) -> _Block | None:
        """Return the tape of `steps` steps; None if the networks must be trained one by one."""
        key = steps, b
        if key not in self._blocks and not self._alone:
            try:
                if len(self.networks) * b > self.micro_batch:
                    raise torch.OutOfMemoryError
                with torch.inference_mode():
                    self._blocks[key] = _Block(self, *key)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                self._blocks.clear()
                self._alone = [
                    FusedEngine(Problem(network, self.x, self.y, self.loss), eta, self.micro_batch)
                    for network, eta in zip(self.networks, self.etas, strict=False)
                ]
        return self._blocks.get(key)


def _aligned(count: int, like: Tensor, *shape: int) -> Tensor:
    """Return an empty stack of `count` tensors, each of which begins at a multiple of 64 bytes."""
    shape = shape or like.shape
    step = 64 // like.element_size()
    entries = math.prod(shape)
    return like.new_empty(count, -(-entries // step) * step)[:, :entries].unflatten(1, shape)


class _Block:
    """The tape of `steps` steps of batch size b, and its buffers; cf. that of `raysat.sgd.fused`."""

    def __init__(self, engine: StackedEngine, steps: int, b: int) -> None:
        self.x, self.y, self.loss = engine.x, engine.y, engine.loss
        self.layers, self.weights = engine.layers, engine.weights
        seeds = len(engine.etas)
        self.inputs = _aligned(steps * seeds, self.x, b, self.x.shape[1]).unflatten(0, (steps, seeds))
        # `index_select` needs a contiguous output; alignment leaves gaps between the networks' inputs, if b times their
        # size is no multiple of 64 bytes, and they are then copied there.
        self.gathered = (
            self.inputs
            if self.inputs.is_contiguous()
            else torch.empty_like(self.inputs, memory_format=torch.contiguous_format)
        )
        self.targets = self.y.new_empty(steps, seeds, b, *self.y.shape[1:])
        self.outputs = [_aligned(seeds, self.x, b, len(layer.weight)) for layer in self.layers]  # z of each layer
        self.activated = [
            z if type(layer.activation) in IN_PLACE else _aligned(seeds, self.x, b, len(layer.weight))
            for z, layer in zip(self.outputs, self.layers, strict=True)
        ]
        self.deltas = [_aligned(seeds, self.x, b, len(layer.weight)) for layer in self.layers]
        widths = {len(layer.weight) for layer in self.layers[:-1]}
        self.spare = {width: _aligned(seeds, self.x, b, width) for width in widths}
        self.rates = self.x.new_tensor([-eta / b for eta in engine.etas]).view(-1, 1, 1)
        self.tape = [call for step in range(steps) for call in self._step(step)]

    def run(self, chosen: Int64[Tensor, "steps seeds b"]) -> None:
        """Take the steps."""
        rows = chosen.reshape(-1)
        torch.index_select(self.x, 0, rows, out=self.gathered.flatten(0, 2))
        if self.gathered is not self.inputs:
            self.inputs.copy_(self.gathered)
        torch.index_select(self.y, 0, rows, out=self.targets.flatten(0, 2))
        for call in self.tape:
            call()

    def _step(self, step: int) -> list[Call]:
        """Return the calls of one step."""
        values, deltas, tape = [self.inputs[step], *self.activated], self.deltas, []
        last = len(self.layers) - 1
        for k, (layer, weight) in enumerate(zip(self.layers, self.weights, strict=True)):
            z = self.outputs[k]
            tape.append(partial(z.baddbmm_, values[k], weight.transpose(1, 2), beta=0, alpha=layer.scale))
            if k < last:
                tape += FORWARD[type(layer.activation)](z, values[k + 1])
        tape.append(self._residual(self.outputs[last], self.targets[step], deltas[last]))
        tape.append(partial(deltas[last].mul_, self.rates))  # -eta / b once: gradients and updates are linear in it
        for k in range(last, -1, -1):
            layer, weight = self.layers[k], self.weights[k]
            if k > 0:
                tape.append(partial(deltas[k - 1].baddbmm_, deltas[k], weight, beta=0, alpha=layer.scale))
                spare = self.spare[deltas[k - 1].shape[2]]
                backward = BACKWARD[type(self.layers[k - 1].activation)]
                tape += backward(deltas[k - 1], self.outputs[k - 1], values[k], spare)
            factors = deltas[k].transpose(1, 2), values[k]
            if values[k].shape[1] == 1:
                tape.append(partial(weight.addcmul_, *factors, value=layer.scale))
            else:
                tape.append(partial(weight.baddbmm_, *factors, alpha=layer.scale))
        return tape

    def _residual(self, z: Tensor, y: Tensor, out: Tensor) -> Call:
        if isinstance(self.loss, SquaredError):
            return residual(self.loss, z, y, out)
        return lambda: out.copy_(self.loss.residual(z.flatten(0, 1), y.flatten(0, 1)).view(out.shape))


def _make(problem: Problem, eta: float, micro_batch: int | None, *, bfloat16: bool, asked: bool) -> StackedEngine:
    return StackedEngine([problem], [eta], micro_batch)


STACKED = Maker(_make, check=partial(known_layers, engine=StackedEngine.name))
