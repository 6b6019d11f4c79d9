"""Architectures by name, each in NTK parametrization, and the user's own by import path."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import nullcontext

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from raysat.errors import InputError
from raysat.models.architectures import ARCHITECTURES
from raysat.models.linearized import Linearized
from raysat.models.unpacked import Unpacked, adapt
from raysat.spec.cells import Model
from raysat.spec.references import is_reference
from raysat.user_code.plugins import explained, resolve
from raysat.user_code.process import LASTING, undisturbed
from raysat.user_code.seeding import seeded

__all__ = ["ARCHITECTURES", "Linearized", "Unpacked", "adapt", "at_initialization", "build"]

Shape = tuple[int, ...] | Mapping[str | int, tuple[int, ...]]
"""The shape of one sample; if the inputs are several tensors, the shape of each, by name or position."""


def build(
    model: Model, width: int, input_shape: Shape, outputs: int, seed: int, vocabulary: int | None = None
) -> nn.Module:
    """Build the network of a model at initialization.

    The weights are drawn on the CPU from the global generators of PyTorch, NumPy and Python, seeded for the call, so
    that a seed gives the same weights on every device and a user's own modules need no code for seeds. Process-wide
    settings that a builder changes, such as the default dtype, are restored afterwards.

    Args:
        model: The architecture.
        width: Its width.
        input_shape: Shape of one sample. A network for several tensors is called with them as keyword or positional
            arguments, and is returned as `Unpacked`, which takes them as one.
        outputs: C.
        seed: Seed of the weights.
        vocabulary: The number of distinct tokens, passed to builders that have a parameter of this name.

    Raises:
        InputError: The architecture is unknown or takes no such inputs, or its builder returns something other than a
            module, or a module whose weights are not drawn yet.
    """
    if model.builder in ARCHITECTURES:
        builder = ARCHITECTURES[model.builder].build
    elif is_reference(model.builder):
        builder = resolve(model.builder)
    else:
        raise InputError(f"model {model.builder!r} is unknown: use {', '.join(ARCHITECTURES)} or 'module:function'.")
    options = dict(model.options)
    linearize = options.pop("linearized", False)
    several = isinstance(input_shape, Mapping)
    if several and model.builder in ARCHITECTURES:
        raise InputError(
            f"{model.builder}() takes one tensor a sample, and the data set has {', '.join(map(str, input_shape))}: "
            "name a builder of your own, 'module:function'."
        )
    if vocabulary is not None and "vocabulary" in inspect.signature(builder).parameters:
        options["vocabulary"] = vocabulary
    own = is_reference(model.builder)
    with undisturbed(but=LASTING) if own else nullcontext(), seeded(seed), explained(model.builder):
        network = builder(width, input_shape, outputs, **options)
    if not isinstance(network, nn.Module):
        raise InputError(f"{model.builder} returned {type(network).__name__}: return a torch.nn.Module.")
    for name, module in network.named_modules():
        if any(map(is_lazy, (*module.parameters(recurse=False), *module.buffers(recurse=False)))):
            raise InputError(
                f"{model.builder} returned a network whose {name} ({type(module).__name__}) draws its weights in its "
                "first forward pass: call the network once on torch.zeros(2, *input_shape) before returning it."
            )
    if own:
        network.register_forward_pre_hook(_of_its_own)
    if several:
        network = Unpacked(network)
    return Linearized(network) if linearize else network


def _of_its_own(_network: nn.Module, inputs: tuple) -> tuple:
    """Copy the inputs: a network that changes its inputs in place would change the data set."""
    return tuple(each.clone() if isinstance(each, Tensor) else each for each in inputs)


def at_initialization(network: nn.Module) -> nn.Module:
    """Return the network itself or, for a linearization, the network that was linearized: both have the same kernel."""
    return network.network.requires_grad_() if isinstance(network, Linearized) else network
