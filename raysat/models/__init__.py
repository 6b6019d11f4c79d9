"""Architectures by name, each in NTK parametrization, and the user's own by import path."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.parameter import is_lazy

from raysat.cells import Model, is_reference
from raysat.models import gpt, linear, mlp, resnet
from raysat.models.linearized import Linearized
from raysat.models.seeding import seeded
from raysat.plugins import explained, resolve
from raysat.validation import InputError

BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp.build,
    "linear": linear.build,
    "resnet": resnet.build,
    "gpt": gpt.build,
}


def build(model: Model, width: int, input_shape: tuple[int, ...], outputs: int, seed: int) -> nn.Module:
    """The network of a model at initialization.

    The weights are drawn on the CPU from the global generators, of PyTorch, NumPy or Python, seeded for the call, so
    that a seed means the same weights on every device, and the user's own modules need to know nothing of seeds.

    Args:
        model: The architecture.
        width: Its width.
        input_shape: Shape of one sample.
        outputs: C.
        seed: Seed of the weights.

    Raises:
        InputError: The architecture is unknown, or its builder returned something else than a module, or one whose
            weights are not drawn yet.
    """
    if model.builder in BUILDERS:
        builder = BUILDERS[model.builder]
    elif is_reference(model.builder):
        builder = resolve(model.builder)
    else:
        raise InputError(f"model {model.builder!r} is unknown: use {', '.join(BUILDERS)} or 'module:function'.")
    options = dict(model.options)
    linearize = options.pop("linearized", False)
    with seeded(seed), explained(model.builder):
        network = builder(width, input_shape, outputs, **options)
    if not isinstance(network, nn.Module):
        raise InputError(f"{model.builder} returned {type(network).__name__}: return a torch.nn.Module.")
    for name, module in network.named_modules():
        if any(map(is_lazy, (*module.parameters(recurse=False), *module.buffers(recurse=False)))):
            raise InputError(
                f"{model.builder} returned a network whose {name} ({type(module).__name__}) draws its weights in its "
                "first forward pass: call the network once on torch.zeros(2, *input_shape) before returning it."
            )
    return Linearized(network) if linearize else network


def at_initialization(network: nn.Module) -> nn.Module:
    """The network whose kernel at initialization is the network's: of a linearization, what was linearized."""
    return network.network.requires_grad_() if isinstance(network, Linearized) else network
