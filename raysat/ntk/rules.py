"""What each kind of layer adds to the Jacobian.

A rule makes the rows `d f_c / d parameter` of each sample from what went into the layer and the gradients
`d f_c / d output` that came back. Where the layer is applied once a sample, the rows of its weight are outer products
of gradient and input, which an `Outer` keeps unformed. Uses of one parameter add up, whether in one module that is
called twice or in two modules that share it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from raysat.models.layers import NTKConv2d, NTKEmbedding, NTKLinear, NTKUnembedding


@dataclass(frozen=True)
class Outer:
    """Rows `scale g_c a^T` of a weight in `z = scale W a`, unformed.

    Attributes:
        inputs: a. Shape: [n, inputs].
        gradients: g. Shape: [n, C, units].
        scale: The factor.
    """

    inputs: Float[Tensor, "n inputs"]
    gradients: Float[Tensor, "n outputs units"]
    scale: float = 1.0

    def rows(self) -> Float[Tensor, "n outputs size"]:
        """The rows themselves."""
        return self.scale * torch.einsum("ncu,ni->ncui", self.gradients, self.inputs).flatten(2)

    def grams(self) -> Float[Tensor, "n outputs outputs"]:
        """`J_i J_i^T` of each sample: `(g_c . g_c') (a . a)`."""
        norms = self.inputs.square().sum(1) * self.scale**2
        return self.gradients @ self.gradients.mT * norms[:, None, None]

    def kernel(self) -> Float[Tensor, "n outputs n outputs"]:
        """`J J^T` between all samples: `(g_ic . g_jc') (a_i . a_j)`."""
        gradients = self.gradients.flatten(0, 1)
        n, outputs, _ = self.gradients.shape
        products = (gradients @ gradients.T).view(n, outputs, n, outputs)
        return products * (self.scale**2 * self.inputs @ self.inputs.T)[:, None, :, None]


Share = Outer | Tensor
Rule = Callable[[nn.Module, Tensor, Tensor], dict[str, Share]]
"""`(module, inputs [n, ...], gradients [n, C, ...]) -> {parameter name: Outer or rows [n, C, size]}`."""


def _linear(
    module: nn.Module, inputs: Float[Tensor, "n *at inputs"], gradients: Float[Tensor, "n outputs *at units"]
) -> dict[str, Share]:
    """`z = scale W a + d`, at one or several positions of a sample."""
    scale = getattr(module, "scale", 1.0)
    shares: dict[str, Share] = {}
    if inputs.ndim == 2:
        shares["weight"] = Outer(inputs, gradients, scale)
    else:
        along = inputs.flatten(1, -2), gradients.flatten(2, -2)
        shares["weight"] = scale * torch.einsum("nti,nctu->ncui", *along).flatten(2)
    if getattr(module, "bias", None) is not None:
        shares["bias"] = gradients.flatten(2, -2).sum(2) if gradients.ndim > 3 else gradients
    return shares


def _convolution(
    module: nn.Module,
    inputs: Float[Tensor, "n channels *space"],
    gradients: Float[Tensor, "n outputs units *space_out"],
) -> dict[str, Share]:
    """A convolution is a linear layer applied to patches; in one dimension, of height 1."""
    axes = inputs.ndim - 2
    along = lambda value: (value,) * axes if isinstance(value, int) else tuple(value)  # noqa: E731
    kernel, stride, dilation = along(module.kernel_size), along(module.stride), along(module.dilation)
    if module.padding == "same":
        total = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        sides = [(each // 2, each - each // 2) for each in total]
    else:
        sides = [(each, each) for each in along(0 if module.padding == "valid" else module.padding)]
    inputs = F.pad(inputs, [side for pair in reversed(sides) for side in pair])
    if axes == 1:
        inputs, kernel, stride, dilation = inputs.unsqueeze(2), (1, *kernel), (1, *stride), (1, *dilation)
    patches = F.unfold(inputs, kernel, dilation, 0, stride)  # [n, channels * k, positions]
    patches = patches.unflatten(1, (module.groups, -1))  # [n, groups, channels / groups * k, positions]
    rows = gradients.flatten(3).unflatten(2, (module.groups, -1))  # [n, C, groups, units / groups, positions]
    scale = getattr(module, "scale", 1.0)
    shares: dict[str, Share] = {"weight": scale * torch.einsum("ngit,ncgut->ncgui", patches, rows).flatten(2)}
    if getattr(module, "bias", None) is not None:
        shares["bias"] = gradients.flatten(3).sum(3)
    return shares


def _embedding(module: nn.Module, inputs: Tensor, gradients: Float[Tensor, "n outputs *at units"]) -> dict[str, Share]:
    """`z_t = scale E[token_t]`: the gradients of all positions that hold a token add up in its row."""
    entries, units = module.weight.shape
    rows = gradients.flatten(2, -2)  # [n, C, positions, units]
    if getattr(module, "padding_idx", None) is not None:
        rows = rows * (inputs != module.padding_idx).flatten(1)[:, None, :, None]
    index = inputs.flatten(1)[:, None, :, None].expand_as(rows)
    summed = rows.new_zeros(*rows.shape[:2], entries, units).scatter_add_(2, index, rows)
    return {"weight": getattr(module, "scale", 1.0) * summed.flatten(2)}


def _affine(module: nn.Module, normalized: Tensor, gradients: Tensor, dims: tuple[int, ...]) -> dict[str, Share]:
    """`z = w x_hat + d`, summed over the positions `dims` (of gradients) that share w and d."""
    shares: dict[str, Share] = {}
    total = lambda rows: (rows.sum(dims) if dims else rows).flatten(2)  # noqa: E731
    if module.weight is not None:
        shares["weight"] = total(gradients * normalized[:, None])
    if getattr(module, "bias", None) is not None:
        shares["bias"] = total(gradients)
    return shares


def _layer_norm(module: nn.LayerNorm, inputs: Tensor, gradients: Tensor) -> dict[str, Share]:
    normalized = F.layer_norm(inputs, module.normalized_shape, eps=module.eps)
    positions = tuple(range(2, gradients.ndim - len(module.normalized_shape)))
    return _affine(module, normalized, gradients, positions)


def _group_norm(module: nn.GroupNorm, inputs: Tensor, gradients: Tensor) -> dict[str, Share]:
    normalized = F.group_norm(inputs, module.num_groups, eps=module.eps)
    return _affine(module, normalized, gradients, tuple(range(3, gradients.ndim)))


def _batch_norm(module: nn.Module, inputs: Tensor, gradients: Tensor) -> dict[str, Share]:
    """In evaluation mode only: the running statistics are constants."""
    normalized = F.batch_norm(inputs, module.running_mean, module.running_var, eps=module.eps)
    return _affine(module, normalized, gradients, tuple(range(3, gradients.ndim)))


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    NTKLinear: _linear,
    NTKUnembedding: _linear,
    NTKConv2d: _convolution,
    NTKEmbedding: _embedding,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
}
"""The layers with a rule, by exact type: a subclass may compute something else."""


def rule_for(module: nn.Module) -> Rule | None:
    """The rule of a layer; None where there is none, or where an option of the layer changes what it computes."""
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return None
    if getattr(module, "max_norm", None) is not None or getattr(module, "scale_grad_by_freq", False):
        return None
    return RULES.get(type(module))
