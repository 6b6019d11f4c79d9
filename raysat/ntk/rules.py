"""Rules: the contribution of each kind of layer to the Jacobian.

A rule computes the rows `d f_c / d parameter` of each sample from the layer's inputs and the gradients
`d f_c / d output`. If the layer is applied once per sample, the rows of its weight are outer products of gradient and
input, kept in factored form by `Outer`; if it is applied at several positions, they are sums of outer products, kept by
`OuterSum`. The contributions of all uses of a parameter add up, be it in one module that is called twice or in two
modules that share it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from raysat.models.layers import NTKConv2d, NTKEmbedding, NTKLinear, NTKUnembedding


@dataclass(frozen=True)
class Outer:
    """Rows `scale g_c a^T` of a weight in `z = scale W a`, in factored form.

    Attributes:
        inputs: Inputs a. Shape: [n, inputs].
        gradients: Gradients g. Shape: [n, C, units].
        scale: The factor.
    """

    inputs: Float[Tensor, "n inputs"]
    gradients: Float[Tensor, "n outputs units"]
    scale: float = 1.0

    def rows(self) -> Float[Tensor, "n outputs size"]:
        """Return the rows, explicitly."""
        return self.scale * torch.einsum("ncu,ni->ncui", self.gradients, self.inputs).flatten(2)

    def grams(self) -> Float[Tensor, "n outputs outputs"]:
        """Return `J_i J_i^T` of each sample: `(g_c . g_c') (a . a)`."""
        norms = self.inputs.square().sum(1) * self.scale**2
        return self.gradients @ self.gradients.mT * norms[:, None, None]

    def kernel(self) -> Float[Tensor, "n outputs n outputs"]:
        """Return `J J^T` between all samples: `(g_ic . g_jc') (a_i . a_j)`."""
        gradients = self.gradients.flatten(0, 1)
        n, outputs, _ = self.gradients.shape
        products = (gradients @ gradients.T).view(n, outputs, n, outputs)
        return products * (self.scale**2 * self.inputs @ self.inputs.T)[:, None, :, None]


@dataclass(frozen=True)
class OuterSum:
    """Rows `scale sum_t g_ct a_t^T` of a weight in `z_t = scale W a_t`, summed over positions t, in factored form.

    Attributes:
        inputs: Inputs a. Shape: [n, positions, inputs].
        gradients: Gradients g. Shape: [n, C, positions, units].
        scale: The factor.
    """

    inputs: Float[Tensor, "n positions inputs"]
    gradients: Float[Tensor, "n outputs positions units"]
    scale: float = 1.0

    @property
    def is_short(self) -> bool:
        """True if a product with `between` costs at most half as much as the two products through the rows."""
        return self.inputs.shape[1] <= self.inputs.shape[2]

    def rows(self) -> Float[Tensor, "n outputs size"]:
        """Return the rows, explicitly."""
        return self.scale * torch.einsum("nti,nctu->ncui", self.inputs, self.gradients).flatten(2)

    def between(self) -> Float[Tensor, "n positions positions"]:
        """Return `scale^2 a_t . a_s`. Its product with g is the derivative of `||rows||^2 / 2` by g."""
        return self.scale**2 * self.inputs @ self.inputs.mT


Share = Outer | OuterSum | Tensor
"""Contribution to the rows of a parameter: in factored form, or the rows of shape [n, C, size]."""


def formed(share: Share) -> Float[Tensor, "n outputs size"]:
    """Return the rows of a contribution, explicitly."""
    return share if isinstance(share, Tensor) else share.rows()


Rule = Callable[[Any, Tensor, Tensor], dict[str, Share]]
"""Rule of a layer, `(module, inputs [n, ...], gradients [n, C, ...]) -> {parameter name: contribution}`."""


def linear_rule(
    module: nn.Module | SimpleNamespace,
    inputs: Float[Tensor, "n *at inputs"],
    gradients: Float[Tensor, "n outputs *at units"],
) -> dict[str, Share]:
    """Rule of `z = scale W a + d`, at one or several positions of a sample."""
    scale = getattr(module, "scale", 1.0)
    shares: dict[str, Share] = {}
    if inputs.ndim == 2:
        shares["weight"] = Outer(inputs, gradients, scale)
    else:
        shares["weight"] = OuterSum(inputs.flatten(1, -2), gradients.flatten(2, -2), scale)
    if getattr(module, "bias", None) is not None:
        shares["bias"] = gradients.flatten(2, -2).sum(2) if gradients.ndim > 3 else gradients
    return shares


def _convolution(
    module: nn.Conv1d | nn.Conv2d | NTKConv2d,
    inputs: Float[Tensor, "n channels *space"],
    gradients: Float[Tensor, "n outputs units *space_out"],
) -> dict[str, Share]:
    """Rule of a convolution, a linear layer applied to patches; in one dimension they have height 1."""
    axes = inputs.ndim - 2

    def along(value: Any) -> tuple[int, ...]:
        return (value,) * axes if isinstance(value, int) else tuple(value)

    kernel, stride, dilation = along(module.kernel_size), along(module.stride), along(module.dilation)
    if module.padding == "same":
        total = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        sides = [(each // 2, each - each // 2) for each in total]
    else:
        sides = [(each, each) for each in along(0 if module.padding == "valid" else module.padding)]
    inputs = F.pad(inputs, [side for pair in reversed(sides) for side in pair])  # `F.pad` takes the last axis first
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


def _embedding(
    module: nn.Embedding | NTKEmbedding, inputs: Tensor, gradients: Float[Tensor, "n outputs *at units"]
) -> dict[str, Share]:
    """Rule of `z_t = scale E[token_t]`: the gradients of all positions with the same token add up in its row."""
    entries, units = module.weight.shape
    rows = gradients.flatten(2, -2)  # [n, C, positions, units]
    if (padding := getattr(module, "padding_idx", None)) is not None:  # its row receives no gradient in PyTorch
        rows = rows * (inputs != padding).flatten(1)[:, None, :, None]
    index = inputs.flatten(1)[:, None, :, None].expand_as(rows)
    summed = rows.new_zeros(*rows.shape[:2], entries, units).scatter_add_(2, index, rows)
    return {"weight": getattr(module, "scale", 1.0) * summed.flatten(2)}


def _convolution_3d(
    module: nn.Conv3d,
    inputs: Float[Tensor, "n channels depth height width"],
    gradients: Float[Tensor, "n outputs units *space_out"],
) -> dict[str, Share]:
    """Rule like `_convolution`, with the patches as a view, because `F.unfold` supports two dimensions only."""
    if isinstance(module.padding, str):
        sides = [side for pair in reversed(_same_padding(module)) for side in pair] if module.padding == "same" else []
    else:
        sides = [size for size in reversed(module.padding) for _ in range(2)]
    inputs = F.pad(inputs, sides)
    # Per axis, windows of the dilated extent at every stride; every gap-th entry of them is under the kernel.
    for axis, (size, step, gap) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
        inputs = inputs.unfold(2 + axis, gap * (size - 1) + 1, step)[..., ::gap]  # [n, channels, o1, .., k1, ..]
    patches = inputs.unflatten(1, (module.groups, -1)).flatten(3, 5).flatten(4)  # [n, g, channels / g, positions, k]
    rows = gradients.flatten(3).unflatten(2, (module.groups, -1))  # [n, C, g, units / g, positions]
    shares: dict[str, Share] = {"weight": torch.einsum("ngipk,ncgup->ncguik", patches, rows).flatten(2)}
    if module.bias is not None:
        shares["bias"] = gradients.flatten(3).sum(3)
    return shares


def _same_padding(module: nn.Conv3d) -> list[tuple[int, int]]:
    """Return the padding of `padding="same"` before and after each axis; an odd one is after."""
    total = [gap * (size - 1) for gap, size in zip(module.dilation, module.kernel_size, strict=True)]
    return [(each // 2, each - each // 2) for each in total]


def _transposed_convolution(
    module: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d,
    inputs: Float[Tensor, "n channels *space"],
    gradients: Float[Tensor, "n outputs units *space_out"],
) -> dict[str, Share]:
    """Rule of the adjoint of a convolution: an input position multiplies the patch of the gradient that it reaches."""
    n, outputs = gradients.shape[:2]
    space = inputs.shape[2:]
    assert not isinstance(module.padding, str)  # a string is an option of ordinary convolutions only
    patches = F.pad(gradients.flatten(0, 1), [size for size in reversed(module.padding) for _ in range(2)])
    sizes = zip(module.kernel_size, module.stride, module.dilation, space, strict=True)
    for axis, (size, step, gap, length) in enumerate(sizes):
        # With output padding there may be more windows than input positions.
        patches = patches.unfold(2 + axis, gap * (size - 1) + 1, step)[..., ::gap].narrow(2 + axis, 0, length)
    axes = len(space)
    patches = patches.flatten(2, 1 + axes).flatten(3).unflatten(0, (n, outputs))  # [n, C, units, positions, k]
    patches = patches.unflatten(2, (module.groups, -1))  # [n, C, g, units / g, positions, k]
    values = inputs.flatten(2).unflatten(1, (module.groups, -1))  # [n, g, channels / g, positions]
    shares: dict[str, Share] = {"weight": torch.einsum("ngip,ncgupk->ncgiuk", values, patches).flatten(2)}
    if module.bias is not None:
        shares["bias"] = gradients.flatten(3).sum(3)
    return shares


def _transposed_linear(module: nn.Module, inputs: Tensor, gradients: Tensor) -> dict[str, Share]:
    """Rule of `z = W^T a + d`, as in Hugging Face's `Conv1D`, whose weight has shape [inputs, units]."""
    inputs = inputs.flatten(1, -2) if inputs.ndim > 2 else inputs[:, None]  # [n, positions, inputs]
    gradients = gradients.flatten(2, -2) if gradients.ndim > 3 else gradients[:, :, None]
    return {
        "weight": torch.einsum("nti,nctu->nciu", inputs, gradients).flatten(2),
        "bias": gradients.sum(2),
    }


def _affine(module: nn.Module, normalized: Tensor, gradients: Tensor, dims: tuple[int, ...]) -> dict[str, Share]:
    """Rule of `z = w x_hat + d`, with rows summed over the axes `dims` of the gradients that share w and d."""
    shares: dict[str, Share] = {}

    def total(rows: Tensor) -> Tensor:
        return (rows.sum(dims) if dims else rows).flatten(2)  # `sum(())` would sum over all axes

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


def _rms_norm(module: nn.RMSNorm, inputs: Tensor, gradients: Tensor) -> dict[str, Share]:
    normalized = F.rms_norm(inputs, module.normalized_shape, eps=module.eps)
    return _affine(module, normalized, gradients, tuple(range(2, gradients.ndim - len(module.normalized_shape))))


def _instance_norm(module: _NormBase, inputs: Tensor, gradients: Tensor) -> dict[str, Share]:
    if module.track_running_stats and not module.training:
        return _batch_norm(module, inputs, gradients)
    return _affine(module, F.instance_norm(inputs, eps=module.eps), gradients, tuple(range(3, gradients.ndim)))


def _batch_norm(module: _NormBase, inputs: Tensor, gradients: Tensor) -> dict[str, Share]:
    """Rule of batch normalization in evaluation mode, in which the running statistics are constants."""
    normalized = F.batch_norm(inputs, module.running_mean, module.running_var, eps=module.eps)
    return _affine(module, normalized, gradients, tuple(range(3, gradients.ndim)))


def _prelu(module: nn.PReLU, inputs: Tensor, gradients: Tensor) -> dict[str, Share]:
    """Rule of `z = max(0, a) + w min(0, a)`, with one w, or one for each channel (axis 1)."""
    rows = gradients * inputs.clamp_max(0)[:, None]
    if module.num_parameters == 1:
        return {"weight": rows.flatten(2).sum(2, keepdim=True)}
    return {"weight": rows.flatten(3).sum(3) if rows.ndim > 3 else rows}


RULES: dict[type[nn.Module] | str, Rule] = {
    nn.Linear: linear_rule,
    NTKLinear: linear_rule,
    NTKUnembedding: linear_rule,
    NTKConv2d: _convolution,
    NTKEmbedding: _embedding,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution_3d,
    nn.ConvTranspose1d: _transposed_convolution,
    nn.ConvTranspose2d: _transposed_convolution,
    nn.ConvTranspose3d: _transposed_convolution,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.InstanceNorm3d: _instance_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.PReLU: _prelu,
    "transformers.pytorch_utils.Conv1D": _transposed_linear,
}
"""Rules by the exact type of a layer, or by its full name: a subclass may compute something else."""


def register_rule(layer: type[nn.Module] | str, rule: Rule) -> None:
    """Register a rule for a layer of your own, so that its rows are as fast as those of PyTorch's layers.

    The rule is verified against plain autograd in every network. If they disagree, a slower implementation is used for
    the layer: a wrong rule costs time, but changes no result.

    Args:
        layer: The exact type, or its full name, `package.module.Class`, which then need not be imported.
        rule: Function `(module, inputs, gradients) -> {parameter's name in the module: rows}`. `inputs` is the module's
            first tensor argument for n samples, of shape [n, ...]. `gradients` are those of C functions by the module's
            output, of shape [n, C, ...]. Rows have shape [n, C, size of the parameter], or are an `Outer`.

    Example:
        >>> class Scale(nn.Module):
        ...     def __init__(self, size):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.ones(size))
        ...
        ...     def forward(self, x):
        ...         return self.weight * x
        >>> register_rule(Scale, lambda module, inputs, gradients: {"weight": gradients * inputs[:, None]})
    """
    RULES[layer] = rule


def rule_for(module: nn.Module) -> Rule | None:
    """Return the rule of a layer; None if it has none, or if an option of the layer changes what it computes."""
    kind = type(module)
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return None
    if getattr(module, "max_norm", None) is not None or getattr(module, "scale_grad_by_freq", False):
        return None
    return RULES.get(kind) or RULES.get(f"{kind.__module__}.{kind.__qualname__}")
