"""What an engine minimizes: the loss of a network on a data set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from raysat.data.fields import Inputs
from raysat.losses import Loss


@dataclass(frozen=True)
class Problem:
    """A network, the samples on which it is trained, and the loss of a sample.

    Attributes:
        network: Updated in place. Parameters that do not require a gradient stay as they are.
        x: Inputs of all samples, [n, *input] in a tensor or in each tensor of `Fields`.
        y: Targets of all samples, [n, *target].
        loss: The loss of a sample.
    """

    network: nn.Module
    x: Inputs
    y: Shaped[Tensor, "n *target"]
    loss: Loss

    def to(self, device: torch.device) -> Problem:
        """Return the problem on a device. The module itself moves; tensors that are elsewhere are copied."""
        return Problem(self.network.to(device), self.x.to(device), self.y.to(device), self.loss)
