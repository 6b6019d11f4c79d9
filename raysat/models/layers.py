"""Layers in NTK parametrization: weights N(0, 1), the scaling in the forward pass (paper, section 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn


class NTKLinear(nn.Module):
    """`x -> gain / sqrt(inputs) W x` with `W_ij ~ N(0, 1)` and no bias.

    Args:
        inputs: m_{l-1}.
        outputs: m_l.
        gain: Factor on top of the paper's `1 / sqrt(m_{l-1})`.

    Attributes:
        weight: W. Shape: [outputs, inputs].
        scale: `gain / sqrt(inputs)`.
    """

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.scale = gain / inputs**0.5

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Return the layer's output before the activation."""
        return (x * self.scale) @ self.weight.T

    def extra_repr(self) -> str:
        """Return sizes and scale, for `repr`."""
        outputs, inputs = self.weight.shape
        return f"{inputs}, {outputs}, scale={self.scale:.4g}"


class NTKConv2d(nn.Module):
    """Convolution `x -> gain / sqrt(inputs size^2) W * x` with `W_ijkl ~ N(0, 1)`, zero padding and no bias.

    The padding is `size // 2`, so that an odd size keeps height and width (divided by the stride, rounded up).

    Args:
        inputs: Input channels.
        outputs: Output channels.
        size: Height and width of the window; odd.
        stride: Step of the window.
        gain: Factor on top of `1 / sqrt(fan_in)`, `fan_in = inputs size^2`.

    Attributes:
        weight: W. Shape: [outputs, inputs, size, size].
        scale: `gain / sqrt(inputs size^2)`.
        kernel_size, stride, padding, dilation, groups: As in `nn.Conv2d`, so that one rule of `raysat.ntk.rules` serves
            both.

    Example:
        >>> NTKConv2d(3, 16, 3, stride=2)(torch.randn(5, 3, 32, 32)).shape
        torch.Size([5, 16, 16, 16])
    """

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.scale = gain / (inputs * size**2) ** 0.5
        self.kernel_size, self.stride, self.padding = size, stride, size // 2
        self.dilation = self.groups = 1

    def forward(self, x: Float[Tensor, "n inputs height width"]) -> Float[Tensor, "n outputs rows columns"]:
        """Return the layer's output before norm and activation."""
        return F.conv2d(x, self.weight * self.scale, stride=self.stride, padding=self.padding)

    def extra_repr(self) -> str:
        """Return sizes, stride and scale, for `repr`."""
        outputs, inputs = self.weight.shape[:2]
        return f"{inputs}, {outputs}, size={self.kernel_size}, stride={self.stride}, scale={self.scale:.4g}"


class NTKEmbedding(nn.Module):
    """A table `W_ij ~ N(0, 1)` from which each index selects a row.

    It is a linear layer of one-hot vectors. One entry of such a vector is not 0, so that fan_in and the scale are 1.

    Args:
        entries: Number of rows.
        width: Length of a row.

    Attributes:
        weight: W. Shape: [entries, width].

    Example:
        >>> NTKEmbedding(65, 16)(torch.zeros(5, 8, dtype=torch.int64)).shape
        torch.Size([5, 8, 16])
    """

    def __init__(self, entries: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(entries, width))

    def forward(self, indices: Int64[Tensor, "*batch"]) -> Float[Tensor, "*batch width"]:
        """Return the rows of the indices."""
        return F.embedding(indices, self.weight)

    def extra_repr(self) -> str:
        """Return sizes, for `repr`."""
        entries, width = self.weight.shape
        return f"{entries}, {width}"


class NTKUnembedding(nn.Module):
    """The output layer tied to an embedding: `x -> gain / sqrt(width) E x`, E the embedding's own parameter.

    The parameter belongs to both modules, so that each use of it is in the forward pass of a module that owns it.

    Args:
        embedding: The layer to which this one is tied.
        gain: Factor on top of `1 / sqrt(width)`.

    Attributes:
        weight: E, the same object as `embedding.weight`. Shape: [entries, width].
        scale: `gain / sqrt(width)`.

    Example:
        >>> embedding = NTKEmbedding(65, 16)
        >>> head = NTKUnembedding(embedding)
        >>> head(torch.randn(5, 8, 16)).shape, head.weight is embedding.weight
        (torch.Size([5, 8, 65]), True)
    """

    def __init__(self, embedding: NTKEmbedding, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = embedding.weight
        self.scale = gain / self.weight.shape[1] ** 0.5

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch entries"]:
        """Return one number for each row of the table."""
        return x @ (self.weight * self.scale).T

    def extra_repr(self) -> str:
        """Return sizes and scale, for `repr`."""
        entries, width = self.weight.shape
        return f"{width}, {entries}, tied, scale={self.scale:.4g}"
