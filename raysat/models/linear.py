"""Linear least squares, `f_i(w) = x_i^T w` (the paper's Theorem 3.2): no scaling, so that gamma = max_i ||x_i||^2."""

from __future__ import annotations

import math

from raysat.models.mlp import MLP
from raysat.spec.cells import Model


def linear() -> Model:
    """Return the linear model `f(W, x) = W x`, `W_ij ~ N(0, 1)`, as plain data. It has no width and no options."""
    return Model("linear", has_width=False)


def build(width: int, input_shape: tuple[int, ...], outputs: int) -> MLP:
    """Build the model for inputs of a given shape: a network without hidden layers whose gain cancels the scaling."""
    inputs = math.prod(input_shape)
    return MLP(width, inputs, outputs, depth=0, output_gain=inputs**0.5)
