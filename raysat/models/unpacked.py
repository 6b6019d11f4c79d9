"""A network of several inputs, as one of a single argument."""

from __future__ import annotations

from torch import Tensor, nn

from raysat.data.fields import Fields


class Unpacked(nn.Module):
    """Calls a network with the tensors of `Fields` as its keyword or positional arguments.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Fields) -> Tensor:
        """The network's output."""
        tensors = x.tensors
        return self.network(**tensors) if x.named else self.network(*tensors.values())
