"""The empirical NTK `K = (1/n) J J^T in R^{nC x nC}` as an operator: products with K, never its entries.

For a loss other than the squared error, it is the kernel of the generalized Gauss-Newton matrix, `(1/n) S^T J J^T S`
(see `raysat.losses`). `KernelOperator.__call__` applies the operator's factor `1/n`.
"""

from __future__ import annotations

import enum

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raysat.compute.memory import saved_per_sample
from raysat.data.fields import Inputs
from raysat.losses import LOSSES, Loss
from raysat.models.functional import call
from raysat.ntk import plain
from raysat.ntk.plain import trained


class Products(enum.StrEnum):
    """How `J d` is computed; `J^T u` is always a backward pass.

    RECORDED is the fastest if memory holds the graphs of the forward and backward passes of all samples: a product
    costs four matrix products per layer and sample. FORWARD mode recomputes the activations each time, and costs six.
    DOUBLE records the graphs again for each product, and works where forward mode does not. ROWS forms the Jacobian,
    by one backward pass per output and sample, and needs nothing but first derivatives.
    """

    RECORDED = "recorded"
    FORWARD = "forward"
    DOUBLE = "double"
    ROWS = "rows"


class KernelOperator:
    """The linear map `u -> K u`, computed in chunks of samples.

    Args:
        network: The network, at the parameters at which K is taken.
        x: The n samples.
        chunk: Samples per chunk.
        loss: The loss, whose Hessian weights the outputs. Default: the squared error, with weight 1.
        memory: Bytes that the recorded graphs may take. Default: 0, no graph is recorded.
        y: Targets, on which the Hessian of some losses depends.
        way: One of `Products`. Default: RECORDED if the memory suffices, else FORWARD.

    Attributes:
        memory_left: The part of `memory` that the recorded graphs do not use.

    Example:
        >>> from raysat.models.mlp import MLP
        >>> KernelOperator(MLP(16, 3, 2), torch.randn(5, 3))(torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        network: nn.Module,
        x: Inputs,
        chunk: int = 1024,
        loss: Loss = LOSSES["mse"],
        memory: int = 0,
        *,
        y: Tensor | None = None,
        way: Products | None = None,
    ) -> None:
        self.network, self.x, self.chunk, self.loss, self.y = network, x, chunk, loss, y
        self.weights = trained(network)
        # Measured only if the answer matters: it takes two forward passes.
        taken = GRAPHS * saved_per_sample(network, x) * len(x) if way is None and memory else 0
        if way is None:
            way = Products.RECORDED if 0 < taken <= memory else Products.FORWARD
        self.way = way
        self.memory_left = memory - (taken if way is Products.RECORDED else 0)
        self.graphs = [self._record(*part) for part in self._parts()] if way is Products.RECORDED else []
        self.rows = plain.rows(network, x).flatten(0, 1) if way is Products.ROWS else None

    def _parts(self, *besides: Tensor) -> list[tuple]:
        """Return the samples, their targets, and further tensors, in chunks."""
        # -(-a // b) rounds up: one None for each chunk.
        targets = [None] * -(-len(self.x) // self.chunk) if self.y is None else self.y.split(self.chunk)
        return list(zip(self.x.split(self.chunk), targets, *(t.split(self.chunk) for t in besides), strict=True))

    def _record(self, samples: Inputs, y: Tensor | None) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return the outputs, u, and `J^T S u` with its graph: linear in u, with transpose `d -> S^T J d`."""
        outputs = self.network(samples)
        # The value of u is irrelevant, since the map is linear.
        u = torch.zeros_like(outputs, requires_grad=True)
        rows = self.loss.factor(outputs.detach(), y, u)
        gradients = torch.autograd.grad(
            outputs, list(self.weights.values()), rows, create_graph=True, allow_unused=True, materialize_grads=True
        )
        if plain.is_cut(gradients):
            raise RuntimeError("a backward function on the way has no derivative")
        return outputs, u, gradients

    def __call__(self, u: Float[Tensor, "n *outputs"]) -> Float[Tensor, "n *outputs"]:
        """Return the product `K u`."""
        if self.rows is not None:
            outputs = self.outputs()
            weighed = self.loss.factor(outputs, self.y, u).flatten()
            products = (self.rows @ (self.rows.T @ weighed)).view_as(u)
            return self.loss.factor_transposed(outputs, self.y, products) / len(self.x)
        return self.pushforward(self.pullback(u)) / len(self.x)

    def outputs(self) -> Float[Tensor, "n *outputs"]:
        """Return the network's outputs for all samples."""
        return torch.cat([self.network(samples).detach() for samples in self.x.split(self.chunk)])

    def pullback(self, u: Float[Tensor, "n *outputs"]) -> dict[str, Tensor]:
        """Return `J^T S u`, by parameter."""
        total = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        for k, (samples, y, rows) in enumerate(self._parts(u)):
            outputs = self.graphs[k][0] if self.graphs else self.network(samples)
            gradients = torch.autograd.grad(
                outputs,
                list(self.weights.values()),
                self.loss.factor(outputs.detach(), y, rows),
                retain_graph=bool(self.graphs),  # a recorded graph is reused for every product
                allow_unused=True,
                materialize_grads=True,
            )
            torch._foreach_add_(list(total.values()), gradients)
        return total

    def pushforward(self, direction: dict[str, Tensor]) -> Float[Tensor, "n *outputs"]:
        """Return `S^T J d` for a direction d in parameter space."""
        if self.way in (Products.RECORDED, Products.DOUBLE):
            d = list(direction.values())
            # DOUBLE records lazily: one chunk's graph at a time.
            graphs = self.graphs or (self._record(*part) for part in self._parts())
            return torch.cat([_transposed(gradients, u, d) for _, u, gradients in graphs])
        weights = {name: weight.detach() for name, weight in self.weights.items()}
        products = []
        for samples, y in self._parts():

            def at(w: dict[str, Tensor], samples: Inputs = samples) -> Tensor:
                return call(self.network, w, samples)

            with torch.no_grad():
                outputs, tangents, *_ = torch.func.jvp(at, (weights,), (direction,))
                products.append(self.loss.factor_transposed(outputs, y, tangents))
        return torch.cat(products)


GRAPHS = 3
"""Memory of the recorded graphs of forward and backward pass, as a multiple of what a forward pass alone keeps."""


def _transposed(gradients: tuple[Tensor, ...], u: Tensor, direction: list[Tensor]) -> Tensor:
    """Return the vector-Jacobian product of `u -> gradients`, a linear map, with a direction in parameter space."""
    # Gradients of parameters that no output depends on are constant zeros without a graph.
    pairs = [(g, d) for g, d in zip(gradients, direction, strict=True) if g.requires_grad]
    if not pairs:
        return torch.zeros_like(u)
    used, along = zip(*pairs, strict=True)
    (product,) = torch.autograd.grad(used, u, along, retain_graph=True, materialize_grads=True, allow_unused=True)
    return product
