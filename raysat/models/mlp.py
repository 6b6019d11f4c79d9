"""The paper's network: fully connected, in NTK parametrization, linear output layer, no biases (section 4)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from raysat.errors import InputError, among, positive, whole
from raysat.models.ghost import GhostBatchNorm
from raysat.models.layers import NTKLinear
from raysat.spec.cells import Model


class Erf(nn.Module):
    """The Gauss error function, whose NTK has a closed form."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `erf(x)`, elementwise."""
        return x.erf()


ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "erf": Erf, "identity": nn.Identity}


def mlp(
    depth: int = 3,
    activation: str = "relu",
    hidden_gain: float = 1.0,
    output_gain: float = 1.0,
    norm: str = "none",
    ghost: int = 0,
) -> Model:
    """A fully-connected network `alpha_l = sigma(hidden_gain / sqrt(m_{l-1}) W_l alpha_{l-1})`, as plain data.

    Args:
        depth: Hidden layers. Default: 3, as in the paper's experiments (section 5).
        activation: One of `relu`, `tanh`, `gelu`, `erf`, `identity`. Default: relu. The paper's section 5 names none;
            its theory assumes a twice differentiable one, which ReLU is not.
        hidden_gain: Factor before each hidden layer's `1 / sqrt(m_{l-1})`. Default: 1, the paper's section 4. With
            ReLU, sqrt(2) keeps the size of the signal from layer to layer (He et al. 2015), and 1 halves its square.
        output_gain: The same for the output layer. Default: 1, the paper's section 4.
        norm: `none`, or `batch` for batch normalization between each hidden layer and its activation. The NTK
            statistics hold its mean and variance constant (see `raysat.ntk.batchnorm`). Default: none.
        ghost: Samples of a ghost batch, for `norm="batch"` (see `raysat.models.ghost`). Default: 0, the whole batch.
    """
    whole("mlp(depth)", depth, 0)
    among("mlp(activation)", activation, ACTIVATIONS)
    among("mlp(norm)", norm, ("none", "batch"))
    positive("mlp(hidden_gain)", hidden_gain)
    positive("mlp(output_gain)", output_gain)
    options = {
        "activation": activation,
        "depth": depth,
        "hidden_gain": float(hidden_gain),
        "output_gain": float(output_gain),
        **({"norm": norm} if norm != "none" else {}),
        **ghost_options("mlp", norm, ghost),
    }
    return Model("mlp", tuple(sorted(options.items())))


def ghost_options(model: str, norm: str, ghost: int) -> dict[str, int]:
    """Return the option `ghost` of a model: none for the whole batch, so that models without it keep their identity.

    Raises:
        InputError: The model has no batch normalization.
    """
    if whole(f"{model}(ghost)", ghost, 0) and norm != "batch":
        raise InputError(f"{model}(ghost={ghost}) is for batch normalization: add norm='batch', or leave it out.")
    return {"ghost": ghost} if ghost else {}


class MLP(nn.Sequential):
    """The network of `mlp`.

    Example:
        >>> MLP(64, 784, 10)(torch.randn(5, 784)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        width: int,
        inputs: int,
        outputs: int,
        depth: int = 3,
        activation: str = "relu",
        hidden_gain: float = 1.0,
        output_gain: float = 1.0,
        norm: str = "none",
        ghost: int = 0,
    ) -> None:
        sizes = [inputs] + [width] * depth
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(sizes):
            layers.append(NTKLinear(before, after, hidden_gain))
            if norm == "batch":
                layers.append(GhostBatchNorm(after, ghost))
            layers.append(ACTIVATIONS[activation]())
        super().__init__(*layers, NTKLinear(sizes[-1], outputs, output_gain))

    def forward(self, x: Float[Tensor, "batch *input"]) -> Float[Tensor, "batch outputs"]:
        """Return `f(w, x)` for a batch of inputs of any shape."""
        return super().forward(x)


def build(width: int, input_shape: tuple[int, ...], outputs: int, **options: Any) -> MLP:
    """Build the network for inputs of a given shape."""
    return MLP(width, math.prod(input_shape), outputs, **options)
