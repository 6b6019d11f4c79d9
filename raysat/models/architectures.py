"""The built-in architectures. A new one takes a file in this folder and its lines here; all other code reads these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from raysat.models.gpt import build as build_gpt
from raysat.models.gpt import gpt
from raysat.models.linear import build as build_linear
from raysat.models.linear import linear
from raysat.models.mlp import build as build_mlp
from raysat.models.mlp import mlp
from raysat.models.resnet import build as build_resnet
from raysat.models.resnet import resnet
from raysat.spec.cells import Model

__all__ = ["gpt", "linear", "mlp", "resnet"]
"""The names that a user imports from `raysat`."""


@dataclass(frozen=True)
class Architecture:
    """A built-in architecture.

    Attributes:
        describe: The function that a user calls with the architecture's options. It makes no weights.
        build: Makes the network from `(width, input_shape, outputs, **options)`, with the options of the `Model`.
    """

    describe: Callable[..., Model]
    build: Callable[..., nn.Module]


ARCHITECTURES: dict[str, Architecture] = {
    "mlp": Architecture(mlp, build_mlp),
    "linear": Architecture(linear, build_linear),
    "resnet": Architecture(resnet, build_resnet),
    "gpt": Architecture(gpt, build_gpt),
}
"""The architectures, by the name used in a `Model`, in result rows and in sweep files."""
