"""Layers in NTK parametrization: weights N(0, 1), the scaling in the forward pass (paper, section 4)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class NTKLinear(nn.Module):
    """`x -> gain / sqrt(inputs) W x` with `W_ij ~ N(0, 1)` and no bias.

    Args:
        inputs: m_{l-1}.
        outputs: m_l.
        gain: Factor beside the paper's `1 / sqrt(m_{l-1})`.

    Attributes:
        weight: W. Shape: [outputs, inputs].
        scale: `gain / sqrt(inputs)`.
    """

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.scale = gain / inputs**0.5

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """The layer's output before the activation."""
        return (x * self.scale) @ self.weight.T

    def extra_repr(self) -> str:
        """Sizes and scale, for `repr`."""
        outputs, inputs = self.weight.shape
        return f"{inputs}, {outputs}, scale={self.scale:.4g}"
