"""What an engine minimizes: the loss of a network on a data set."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor, nn

from raysat.data.fields import Inputs
from raysat.losses import Loss
from raysat.sgd.transform import Transform


@dataclass(frozen=True)
class Problem:
    """A network, the samples on which it is trained, and the loss of a sample.

    Attributes:
        network: Updated in place. Parameters that do not require a gradient stay as they are.
        x: Inputs of all samples, [n, *input] in a tensor or in each tensor of `Fields`.
        y: Targets of all samples, [n, *target].
        loss: The loss of a sample.
        transform: Changes the batches at which gradients are taken; None for the samples as they are.
    """

    network: nn.Module
    x: Inputs
    y: Shaped[Tensor, "n *target"]
    loss: Loss
    transform: Transform | None = None

    def of_step(self, batch: Int64[Tensor, " b"], step: int) -> tuple[Problem, Int64[Tensor, " b"]]:
        """Return the changed samples of a step's batch as a problem of their own, and their indices in it."""
        assert self.transform is not None
        x, y = self.transform(self.x.index_select(0, batch), self.y.index_select(0, batch), step)
        return replace(self, x=x, y=y, transform=None), torch.arange(len(batch), device=batch.device)

    def to(self, device: torch.device) -> Problem:
        """Return the problem on a device. The module itself moves; tensors that are elsewhere are copied."""
        return replace(self, network=self.network.to(device), x=self.x.to(device), y=self.y.to(device))
