"""The engine for fully-connected networks: gradients are never stored, and updates go straight into the weights.

A step of the layer `z = s a W^T` adds `c d^T a` to W, with a its inputs (b x inputs), d the gradient in z (b x outputs)
and `c = -eta s / b`. Two things make it faster than autograd.

**One tape.** For a fixed batch size every buffer is fixed too, so that the steps are a list of PyTorch calls, the tape,
which is built once. Running it costs about 1.5 microseconds a call beyond the arithmetic.

**Deferred updates.** At small b a step is bound by memory: reading W takes longer than the arithmetic of a row. So the
updates of the k steps of a block are left pending, as their rows D (kb x outputs) and A (kb x inputs):

    W_t = W_0 + c D^T A
    s a W_t^T = s a W_0^T + s c (a A^T) D        s d W_t = s d W_0 + s c (d D^T) A

and W is written once a block, by one product of rank kb. The first layer gains most: its inputs do not depend on the
weights, so one product `s A W_0^T` and one Gram matrix `A A^T` serve the whole block. The result differs from k plain
steps by rounding alone. Its last bits depend on where blocks begin, so that a trial divides no block (`block`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from raysat.compute.matmul import Call, Products, choose
from raysat.compute.micro_batch import out_of_memory
from raysat.data.fields import Inputs
from raysat.errors import InputError
from raysat.losses import Loss, SquaredError
from raysat.models.layers import NTKLinear
from raysat.models.mlp import MLP, Erf
from raysat.sgd.autograd import AutogradEngine
from raysat.sgd.problem import Problem
from raysat.sgd.protocol import Maker

RANK = 32
"""Rows that may be pending: k = RANK / b steps make a block. Measured against 16 at widths 256 to 2048, Intel Xeon, one
and two threads: level at b = 1, 3 to 28 % faster at b = 2 to 16. On an AMD EPYC none of 8, 16, 32 and 64 stands out."""

DEFER_FROM = 1 << 17
"""Entries of a weight from which its updates are deferred. Measured: 10 % faster at width 362 and b = 1, 20 % slower at
width 128, where W stays in a core's own cache and writing it is cheap."""

_aten = torch.ops.aten


@dataclass(frozen=True)
class Layer:
    """A linear layer and the activation after it.

    Attributes:
        weight: W, the parameter's own storage.
        scale: s.
        activation: The module after the layer; None after the last one.
    """

    weight: Float[Tensor, "outputs inputs"]
    scale: float
    activation: nn.Module | None


def layers_of(network: nn.Module) -> list[Layer] | None:
    """Return the layers of a fully-connected network whose weights are all trained; None for any other module."""
    if not isinstance(network, nn.Sequential) or type(network) not in (MLP, nn.Sequential) or _hooked(network):
        return None
    modules: list[Any] = list(network)
    if modules and type(modules[0]) is nn.Flatten and (modules[0].start_dim, modules[0].end_dim) == (1, -1):
        modules = modules[1:]
    linear, activations = modules[::2], modules[1::2]
    if len(linear) != len(activations) + 1 or any(type(module) is not NTKLinear for module in linear):
        return None
    if any(type(module) not in BACKWARD or getattr(module, "approximate", "none") != "none" for module in activations):
        return None
    weights = [module.weight for module in linear]
    tied = len({weight.data_ptr() for weight in weights}) < len(weights)
    if tied or not all(weight.requires_grad and weight.is_contiguous() for weight in weights):
        return None
    return [
        Layer(module.weight.detach(), module.scale, activation)
        for module, activation in zip(linear, [*activations, None], strict=True)
    ]


def known_layers(network: nn.Module, engine: str) -> list[Layer]:
    """Return `layers_of` a network; raise an `InputError` that names the engine if there are none."""
    if (layers := layers_of(network)) is None:
        raise InputError(
            f"engine={engine!r} knows fully-connected networks of NTKLinear layers whose weights are all trained, and "
            f"not this {type(network).__name__}: set engine='auto'."
        )
    return layers


def _hooked(network: nn.Module) -> bool:
    """Return whether a module has hooks, which would be skipped: this engine never calls the modules."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in network.modules()
    )


class FusedEngine:
    """Forward, backward and update written out for a fully-connected network; cf. `AutogradEngine` for the arguments.

    Args:
        problem: Its network is updated in place.
        eta: Stepsize.
        micro_batch: Samples whose gradient is computed at a time. A larger batch, and one whose buffers do not fit in
            memory, is left to an `AutogradEngine`, and this engine then reports its name and micro-batch.

    Raises:
        InputError: The network has layers that this engine cannot train.
    """

    name = "fused"

    def __init__(self, problem: Problem, eta: float, micro_batch: int | None = None) -> None:
        self.network, self.y, self.loss, self.eta = problem.network, problem.y, problem.loss, eta
        self.layers = known_layers(problem.network, self.name)
        assert isinstance(problem.x, Tensor)  # a network of several inputs is an `Unpacked`, which has no known layers
        self.x = problem.x.flatten(1).to(self.layers[0].weight.dtype)
        self.products = Products(choose(self.x.dtype, self.x.device))
        self.matmul = self.products.choice.label
        self.micro_batch = len(self.x) if micro_batch is None else micro_batch
        self._blocks: dict[tuple[int, int], _Block] = {}
        self._parts: AutogradEngine | None = None

    def run(self, batches: Int64[Tensor, "steps b"]) -> None:
        """Take one step for each row of indices, in blocks of `RANK / b` steps."""
        b = batches.shape[1]
        for chunk in batches.split(self.block(b)):
            block = self._block(len(chunk), b)
            if block is None:
                assert self._parts is not None  # `_block` made it when it returned None
                self._parts.run(chunk)
                self.micro_batch = self._parts.micro_batch
            else:
                with torch.inference_mode():
                    block.run(chunk)

    def block(self, b: int) -> int:
        """Return the number of steps between two writes of the weights."""
        return max(1, RANK // b) if self.x.device.type == "cpu" else 1

    def _block(self, steps: int, b: int) -> _Block | None:
        """Return the tape of `steps` steps; None if the batch must be taken in parts."""
        key = steps, b
        if key not in self._blocks and b <= self.micro_batch:
            try:
                with torch.inference_mode():
                    self._blocks[key] = _Block(self, *key)
            except RuntimeError as error:
                if b == 1 or not out_of_memory(error):
                    raise
                self._blocks.clear()
                self.micro_batch = b // 2
        if key not in self._blocks and self._parts is None:
            problem = Problem(self.network, self.x, self.y, self.loss)
            self._parts = AutogradEngine(problem, self.eta, self.micro_batch)
            self.name, self.matmul = self._parts.name, self._parts.matmul
        return self._blocks.get(key)


class _Block:
    """The tape of `steps` steps of batch size b, and its buffers."""

    def __init__(self, engine: FusedEngine, steps: int, b: int) -> None:
        self.x, self.y, self.loss = engine.x, engine.y, engine.loss
        self.layers, self.products, self.b = engine.layers, engine.products, b
        self.deferred = [steps > 1 and layer.weight.numel() >= DEFER_FROM for layer in self.layers]
        self.rates = [-engine.eta * layer.scale / b for layer in self.layers]  # c of the module's docstring

        rows, new = steps * b, self.x.new_empty
        self.inputs = [  # A of each layer; for the first layer, the block's samples
            new(rows if wait or index == 0 else b, layer.weight.shape[1])
            for index, (layer, wait) in enumerate(zip(self.layers, self.deferred, strict=True))
        ]
        self.deltas = [  # D of each layer
            new(rows if wait else b, len(layer.weight)) for layer, wait in zip(self.layers, self.deferred, strict=True)
        ]
        self.outputs = [self._output(index) for index in range(len(self.layers))]  # z of each layer
        self.spare = {width: new(b, width) for width in {len(layer.weight) for layer in self.layers[:-1]}}
        self.targets = self.y.new_empty(rows, *self.y.shape[1:])
        self.tape: list[Call] = []
        if self.deferred[0]:
            first, a = self.layers[0], self.inputs[0]
            self.gram = new(rows, rows)
            self.tape += self.products.forward(a, first.weight, first.scale, self.outputs[0])
            self.tape.append(partial(torch.mm, a, a.t(), out=self.gram))
        for step in range(steps):
            self._step(step)
        for index, wait in enumerate(self.deferred):
            if wait:
                self.tape += self._update(index, self.deltas[index], self.inputs[index])

    def run(self, batches: Int64[Tensor, "steps b"]) -> None:
        """Take the steps."""
        chosen = batches.reshape(-1)
        torch.index_select(self.x, 0, chosen, out=self.inputs[0])
        torch.index_select(self.y, 0, chosen, out=self.targets)
        for call in self.tape:
            call()

    def _output(self, index: int) -> Tensor:
        """Return the buffer of a layer's z: that of the next layer's inputs, if the activation may work in place."""
        layer, rows = self.layers[index], len(self.inputs[0]) if index == 0 and self.deferred[0] else self.b
        if type(layer.activation) in IN_PLACE and len(above := self.inputs[index + 1]) >= rows:
            return above
        return self.x.new_empty(rows, len(layer.weight))

    def _step(self, step: int) -> None:
        """Append the calls of one step to the tape."""
        rows, pending = slice(step * self.b, (step + 1) * self.b), step * self.b

        # A buffer of one batch is used again by each step; one of a block (deferred layers) has rows for each step.
        def at(buffer: Tensor) -> Tensor:
            return buffer if len(buffer) == self.b else buffer[rows]

        inputs, deltas, outputs = (
            [at(buffer) for buffer in buffers] for buffers in (self.inputs, self.deltas, self.outputs)
        )
        memory = self.x.new_empty(self.b, pending)  # a A^T and d D^T
        last = len(self.layers) - 1

        for index, layer in enumerate(self.layers):
            a, z, correction = inputs[index], outputs[index], layer.scale * self.rates[index]
            activated = inputs[index + 1] if index < last else z
            in_place = activated.data_ptr() == z.data_ptr()
            rectify = type(layer.activation) is nn.ReLU and in_place and not self.deferred[index]
            if index > 0 or not self.deferred[0]:  # else one product before the steps gave z of the whole block
                self.tape += self.products.forward(a, layer.weight, layer.scale, z, relu=rectify)
            if self.deferred[index] and pending:  # add what the pending updates of W change: s c (a A^T) D
                if index == 0:
                    overlaps = self.gram[rows, :pending]
                else:
                    overlaps = memory
                    self.tape.append(partial(torch.mm, a, self.inputs[index][:pending].t(), out=memory))
                self.tape.append(partial(z.addmm_, overlaps, self.deltas[index][:pending], alpha=correction))
            if index < last and not rectify:
                self.tape += FORWARD[type(layer.activation)](z, activated)

        self.tape.append(residual(self.loss, outputs[last], at(self.targets), deltas[last]))
        for index in range(last, -1, -1):
            layer, d = self.layers[index], deltas[index]
            if index > 0:
                below, correction = deltas[index - 1], layer.scale * self.rates[index]
                self.tape += self.products.backward(d, layer.weight, layer.scale, below)
                if self.deferred[index] and pending:
                    self.tape.append(partial(torch.mm, d, self.deltas[index][:pending].t(), out=memory))
                    self.tape.append(partial(below.addmm_, memory, self.inputs[index][:pending], alpha=correction))
                activation = type(self.layers[index - 1].activation)
                spare = self.spare[below.shape[1]]
                self.tape += BACKWARD[activation](below, outputs[index - 1], inputs[index], spare)
            if not self.deferred[index]:  # after `backward`, which needs the weights of before the step
                self.tape += self._update(index, d, inputs[index])

    def _update(self, index: int, d: Tensor, a: Tensor) -> list[Call]:
        return self.products.update(self.layers[index].weight, d, a, self.rates[index])


def residual(loss: Loss, z: Tensor, y: Tensor, out: Tensor) -> Call:
    """Return a call that writes the gradient of each sample's loss in its outputs into `out`."""
    if isinstance(loss, SquaredError):
        return partial(torch.sub, z, y, out=out)
    return lambda: out.copy_(loss.residual(z, y))


def _relu_backward(d: Tensor, z: Tensor, a: Tensor, spare: Tensor) -> list[Call]:
    """Multiply by `relu'(z) = sign(relu(z))`.

    Two calls instead of `threshold_backward`: 5 microseconds instead of 14 at b = 1, because the weights that stream
    through the caches have evicted the code of all but the simplest calls. Level at large b.
    """
    return [partial(torch.sign, a, out=spare), partial(d.mul_, spare)]


def _erf_backward(d: Tensor, z: Tensor, a: Tensor, spare: Tensor) -> list[Call]:
    """Multiply by `erf'(z) = 2/sqrt(pi) exp(-z^2)`."""
    logarithm = partial(torch.addcmul, d.new_full((), math.log(2 / math.pi**0.5)), z, z, value=-1, out=spare)
    return [logarithm, spare.exp_, partial(d.mul_, spare)]


FORWARD = {
    nn.ReLU: lambda z, a: [partial(torch.clamp_min, z, 0, out=a)],
    nn.Tanh: lambda z, a: [partial(torch.tanh, z, out=a)],
    nn.GELU: lambda z, a: [partial(_aten.gelu.out, z, out=a)],
    Erf: lambda z, a: [partial(torch.erf, z, out=a)],
    nn.Identity: lambda z, a: [partial(a.copy_, z)] if a.data_ptr() != z.data_ptr() else [],
}
"""`a = sigma(z)` for each activation."""

IN_PLACE = (nn.ReLU, nn.Tanh, nn.Identity)
"""The activations whose derivative follows from their value, so that z need not be kept."""

BACKWARD = {
    nn.ReLU: _relu_backward,
    nn.Tanh: lambda d, z, a, spare: [partial(_aten.tanh_backward.grad_input, d, a, grad_input=d)],
    nn.GELU: lambda d, z, a, spare: [partial(_aten.gelu_backward.grad_input, d, z, grad_input=d)],
    Erf: _erf_backward,
    nn.Identity: lambda d, z, a, spare: [],
}
"""`d <- d sigma'(z)`, given z, a = sigma(z) and a buffer of their shape to work in."""


def _make(*common: Any, bfloat16: bool, asked: bool) -> FusedEngine:
    return FusedEngine(*common)


def _wins(network: nn.Module, _x: Inputs) -> bool:
    return layers_of(network) is not None


FUSED = Maker(_make, wins=_wins, check=partial(known_layers, engine=FusedEngine.name))
