"""The linearized network `f_lin(w) = f(w_0) + J(w_0) (w - w_0)`, which a network becomes at infinite width (section 4).

Trained next to the network itself, it shows how far the theory's dynamics are from the network's.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from raysat.errors import InputError
from raysat.models.functional import call
from raysat.spec.cells import Model


def linearized(model: Model) -> Model:
    """Return a model's linearization around its initialization, as plain data. The same seed gives the same w_0.

    Args:
        model: The return value of `mlp(...)`, `resnet(...)` or the like.
    """
    if not isinstance(model, Model):
        raise InputError(f"linearized({model!r}): give a model, such as linearized(mlp()).")
    options = dict(model.options) | {"linearized": True}
    return replace(model, options=tuple(sorted(options.items())))


class Linearized(nn.Module):
    """`f(w_0) + J(w_0) d`, trained in d, which starts at 0.

    At any d, its kernel is that of the network at initialization.

    Args:
        network: The network at w_0; its parameters become constants.

    Example:
        >>> from raysat.models.mlp import MLP
        >>> Linearized(MLP(8, 3, 2))(torch.randn(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.names = [name for name, _ in network.named_parameters()]
        self.offsets = nn.ParameterList(torch.zeros_like(p) for p in network.parameters())

    def forward(self, x: Tensor) -> Tensor:
        """Return the linearized output, in the shape of the network's."""

        def at(weights: dict[str, Tensor]) -> Tensor:
            return call(self.network, weights, x)

        start = {name: p.detach() for name, p in self.network.named_parameters()}
        outputs, tangents, *_ = torch.func.jvp(at, (start,), (dict(zip(self.names, self.offsets, strict=True)),))
        return outputs + tangents
