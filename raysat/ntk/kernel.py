"""The empirical NTK `K = (1/n) J J^T in R^{nC x nC}` as an operator: products with it, never its entries.

For a loss other than the squared error it is the kernel of the generalized Gauss-Newton matrix, `(1/n) S^T J J^T S`
(see `raysat.losses`). This is the one place that owns the `1/n` of the operator.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raysat.data.fields import Inputs
from raysat.losses import LOSSES, Loss
from raysat.ntk.grams import activations


class KernelOperator:
    """`u -> K u`: `J^T u` by a backward pass, `J d` by the transpose of that pass or in forward mode; in chunks.

    Where memory holds every layer's values for all samples, the graphs of both passes are recorded once and a product
    costs four matrix products a layer and sample; otherwise the values are made anew each time, and it costs six.

    Args:
        network: The network at the parameters at which K is taken.
        x: The n samples.
        chunk: Samples at a time.
        loss: The loss, whose Hessian weighs the outputs. Default: the squared error, of weight 1.
        memory: Bytes that the recorded graphs may take. Default: 0, none are recorded.
        y: Targets, where the Hessian depends on them.

    Attributes:
        memory_left: Of `memory`, what the recorded graphs have not taken.

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
        y: Tensor | None = None,
    ) -> None:
        self.network, self.x, self.y, self.chunk, self.loss = network, x, y, chunk, loss
        self.targets = y.split(chunk) if y is not None else [None] * -(-len(x) // chunk)
        self.weights = {name: p for name, p in network.named_parameters() if p.requires_grad}
        each = 3 * activations(network, x) * next(iter(self.weights.values())).element_size()
        recorded = each * len(x) <= memory
        self.graphs = (
            [self._record(*part) for part in zip(x.split(chunk), self.targets, strict=True)] if recorded else []
        )
        self.memory_left = memory - recorded * each * len(x)

    def _record(self, samples: Inputs, y: Tensor | None) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Outputs, and `J^T S u` as a function of u: linear, so that its own backward pass is `d -> S^T J d`."""
        outputs = self.network(samples)
        u = torch.zeros_like(outputs, requires_grad=True)
        rows = self.loss.factor(outputs.detach(), y, u)
        gradients = torch.autograd.grad(
            outputs, list(self.weights.values()), rows, create_graph=True, allow_unused=True, materialize_grads=True
        )
        return outputs, u, gradients

    def __call__(self, u: Float[Tensor, "n *outputs"]) -> Float[Tensor, "n *outputs"]:
        """The product `K u`."""
        return self.pushforward(self.pullback(u)) / len(self.x)

    def pullback(self, u: Float[Tensor, "n *outputs"]) -> dict[str, Tensor]:
        """`J^T S u`, by parameter."""
        weights = list(self.weights.values())
        total = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        for k, (samples, rows) in enumerate(zip(self.x.split(self.chunk), u.split(self.chunk), strict=True)):
            outputs = self.graphs[k][0] if self.graphs else self.network(samples)
            gradients = torch.autograd.grad(
                outputs,
                weights,
                self.loss.factor(outputs.detach(), self.targets[k], rows),
                retain_graph=bool(self.graphs),
                allow_unused=True,
                materialize_grads=True,
            )
            torch._foreach_add_(list(total.values()), gradients)
        return total

    def pushforward(self, direction: dict[str, Tensor]) -> Float[Tensor, "n *outputs"]:
        """`S^T J d` for a direction d in parameter space."""
        if self.graphs:
            d = list(direction.values())
            return torch.cat([_transposed(gradients, u, d) for _, u, gradients in self.graphs])
        weights = {name: weight.detach() for name, weight in self.weights.items()}
        products = []
        for samples, y in zip(self.x.split(self.chunk), self.targets, strict=True):
            at = lambda w, samples=samples: torch.func.functional_call(self.network, w, (samples,))  # noqa: E731
            with torch.no_grad():
                outputs, tangents = torch.func.jvp(at, (weights,), (direction,))
                products.append(self.loss.factor_transposed(outputs, y, tangents))
        return torch.cat(products)


def _transposed(gradients: tuple[Tensor, ...], u: Tensor, direction: list[Tensor]) -> Tensor:
    """The backward pass of `u -> gradients`, linear in u; of parameters that no output depends on, nothing."""
    pairs = [(g, d) for g, d in zip(gradients, direction, strict=True) if g.requires_grad]
    used, along = zip(*pairs, strict=True)
    return torch.autograd.grad(used, u, along, retain_graph=True)[0]


def per_sample_products(
    network: nn.Module, x: Inputs, y: Tensor | None, loss: Loss, u: Float[Tensor, "n *outputs"]
) -> Float[Tensor, "n *outputs"]:
    """`S_i^T J_i J_i^T S_i u_i` for each sample by itself: p numbers a sample are formed, and no C x C matrix."""
    weights = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}

    def product(sample: Inputs, target: Tensor | None, direction: Tensor) -> Tensor:
        target = None if target is None else target[None]
        at = lambda w: torch.func.functional_call(network, w, (sample[None],))  # noqa: E731
        outputs, pull = torch.func.vjp(at, weights)
        (gradient,) = pull(loss.factor(outputs, target, direction[None]))
        return loss.factor_transposed(outputs, target, torch.func.jvp(at, (weights,), (gradient,))[1])[0]

    with torch.no_grad():
        return torch.func.vmap(product, (0, None if y is None else 0, 0))(x, y, u)


def gradient_squares(network: nn.Module, x: Inputs, loss: Loss, y: Tensor) -> Float[Tensor, " n"]:
    """`||grad l_i||^2 = ||J_i^T r_i||^2` of each sample, from the per-sample gradients themselves."""
    weights = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}

    def value(w: dict[str, Tensor], sample: Inputs, target: Tensor) -> Tensor:
        return loss.total(torch.func.functional_call(network, w, (sample[None],)), target[None])

    rows = torch.func.vmap(torch.func.grad(value), (None, 0, 0))(weights, x, y)
    return sum(row.flatten(1).double().square().sum(1) for row in rows.values())
