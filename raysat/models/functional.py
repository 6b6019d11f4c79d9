"""Call a network with weights other than its own, to differentiate it as a function of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from raysat.data.fields import Inputs


def call(network: nn.Module, weights: Mapping[str, Tensor], x: Inputs) -> Tensor:
    """Return the network's output with some parameters replaced, wherever they are used.

    `torch.func.functional_call` ties shared weights itself, but a module registered under two names keeps the replaced
    weights for good (2.13.0). Here each place of a parameter is named once: by its module's first name and its own name
    in that module.

    Args:
        network: The network; it is left unchanged.
        weights: By the names of `network.named_parameters()`, which has each parameter once.
        x: Inputs.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    places = {
        f"{path}.{name}".lstrip("."): weights[names[id(parameter)]]
        for path, module in network.named_modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and names[id(parameter)] in weights
    }
    return torch.func.functional_call(network, places, (x,), tie_weights=False)
