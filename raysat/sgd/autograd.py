"""The engine that runs any module."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from raysat.losses import Loss


class AutogradEngine:
    """Plain PyTorch autograd. It runs any module, and is what other engines must agree with.

    Args:
        network: Updated in place. Parameters that do not require a gradient stay as they are.
        x: Inputs of all samples.
        y: Targets of all samples.
        loss: The loss of a sample.
        eta: Stepsize.
    """

    name = "autograd"
    matmul = "torch"

    def __init__(self, network: nn.Module, x: Tensor, y: Tensor, loss: Loss, eta: float) -> None:
        self.network, self.x, self.y, self.loss, self.eta = network, x, y, loss, eta
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]

    def run(self, batches: Int64[Tensor, "steps b"]) -> None:
        """One step `w <- w - eta g(w; S)` for each row S of indices, `g = 1/b sum_{i in S} J_i^T r_i` (section 2)."""
        for batch in batches:
            x, y = self.x.index_select(0, batch), self.y.index_select(0, batch)
            value = self.loss.total(self.network(x), y) / len(batch)
            gradients = torch.autograd.grad(value, self.parameters)
            with torch.no_grad():
                torch._foreach_add_(self.parameters, gradients, alpha=-self.eta)
