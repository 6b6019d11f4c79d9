"""The empirical NTK `K = (1/n) J J^T in R^{nC x nC}` as an operator: products with it, never its entries.

This is the one place that owns the `1/n`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class KernelOperator:
    """`u -> K u`, `K = (1/n) J J^T`, by one backward and one forward-mode pass over the samples, in chunks.

    Args:
        network: The network at the parameters at which K is taken.
        x: The n samples.
        chunk: Samples at a time.

    Example:
        >>> from raysat.models.mlp import MLP
        >>> KernelOperator(MLP(16, 3, 2), torch.randn(5, 3))(torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(self, network: nn.Module, x: Float[Tensor, "n *input"], chunk: int = 1024) -> None:
        self.network, self.x, self.chunk = network, x, chunk
        self.weights = {name: p for name, p in network.named_parameters() if p.requires_grad}

    def __call__(self, u: Float[Tensor, "n outputs"]) -> Float[Tensor, "n outputs"]:
        """The product `K u`."""
        return self.pushforward(self.pullback(u)) / len(self.x)

    def pullback(self, u: Float[Tensor, "n outputs"]) -> dict[str, Tensor]:
        """`J^T u`, by parameter."""
        total = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        for samples, rows in zip(self.x.split(self.chunk), u.split(self.chunk), strict=True):
            gradients = torch.autograd.grad(
                self.network(samples), list(self.weights.values()), rows, allow_unused=True, materialize_grads=True
            )
            torch._foreach_add_(list(total.values()), gradients)
        return total

    def pushforward(self, direction: dict[str, Tensor]) -> Float[Tensor, "n outputs"]:
        """`J d` for a direction d in parameter space."""
        weights = {name: weight.detach() for name, weight in self.weights.items()}
        products = []
        for samples in self.x.split(self.chunk):
            at = lambda w, samples=samples: torch.func.functional_call(self.network, w, (samples,))  # noqa: E731
            with torch.no_grad():
                products.append(torch.func.jvp(at, (weights,), (direction,))[1])
        return torch.cat(products)
