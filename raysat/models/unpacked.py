"""Wrap a network with several inputs as one with a single argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from raysat.data.fields import Fields, Inputs, fields_of


class Unpacked(nn.Module):
    """Calls a network with the tensors of `Fields` as its keyword or positional arguments.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Fields) -> Tensor:
        """Return the network's output."""
        tensors: dict[Any, Tensor] = x.tensors
        return self.network(**tensors) if x.named else self.network(*tensors.values())


def adapt(network: nn.Module, x: Inputs | Mapping[str, Tensor] | Sequence[Tensor]) -> tuple[nn.Module, Inputs]:
    """Return a network and its inputs as the package uses them: one argument, indexed by samples.

    Args:
        network: The network.
        x: One tensor, which is returned unchanged with the network; or several, by name or position, which the network
            takes as keyword or positional arguments.

    Raises:
        InputError: The inputs are not tensors of equal length.

    Example:
        >>> network, x = adapt(nn.Bilinear(3, 4, 2), (torch.zeros(5, 3), torch.zeros(5, 4)))
        >>> network(x[:2]).shape
        torch.Size([2, 2])
    """
    if isinstance(x, Tensor):
        return network, x
    fields = x if isinstance(x, Fields) else fields_of(x)
    return network if isinstance(network, Unpacked) else Unpacked(network), fields
