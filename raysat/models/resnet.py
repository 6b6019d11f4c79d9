"""Residual convolutional networks of depth 6k + 4 (Zagoruyko and Komodakis 2016), in NTK parametrization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from raysat.errors import InputError, among, is_whole, positive
from raysat.models.ghost import GhostBatchNorm
from raysat.models.layers import NTKConv2d, NTKLinear
from raysat.models.mlp import ACTIVATIONS, ghost_options
from raysat.spec.cells import Model


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a GroupNorm with the largest number of 8, 4, 2, 1 groups that gives each at least two channels.

    So every number of channels has a norm, and all multiples of 8 from 16 on have one with 8 groups: as a network gets
    wider, its groups grow and their number stays. Wu and He 2018 use 32 groups, for 64 channels and above. A group of
    one channel would remove the mean of that channel, which is what the pooled output consists of.

    Its gain and shift start at 1 and 0 and are trained unscaled: NTK parametrization scales by the number of summands,
    which is 1 here.
    """
    groups = next(
        groups for groups in (8, 4, 2, 1) if groups == 1 or (channels % groups == 0 and channels >= 2 * groups)
    )
    return nn.GroupNorm(groups, channels)


NORMS: dict[str, Callable[[int, int], nn.Module]] = {
    "group": lambda channels, ghost: group_norm(channels),
    "batch": GhostBatchNorm,
    "none": lambda channels, ghost: nn.Identity(),
}
"""Builders of norms, by name; each takes the number of channels and the size of ghost batches."""


def resnet(
    depth: int = 28,
    norm: str = "group",
    activation: str = "relu",
    hidden_gain: float = 2**0.5,
    output_gain: float = 1.0,
    ghost: int = 0,
) -> Model:
    """A residual network for images, as plain data. Its width is the number of channels of the first of three stages.

    A convolution to `width` channels; three stages of k blocks with `width`, `2 width` and `4 width` channels, the
    second and third of which halve height and width; the mean over positions; a linear output. A block is
    `x + conv(act(norm(conv(act(norm(x))))))` (He et al. 2016b). Where the shape changes, the shortcut is a convolution
    of size 1 from `act(norm(x))`. The depth counts every layer with weights: the first convolution, 6k in blocks, two
    shortcuts, the output.

    With norm, branches are added unscaled: each has the same size for any input, so that the square of the signal grows
    linearly within a stage, and the norm before the output removes the growth. Without norm, each block would
    double the square of the signal. Branches are then divided by the square root of the number of blocks, 3k, so that
    over the whole network the square grows `(1 + 1/3k)^3k < e` times, at any depth (Stable ResNet, Hayou et al. 2021).

    Args:
        depth: 6k + 4 with k of at least 1. Default: 28, as in the paper's experiments (section 5).
        norm: `group`, `batch` or `none`. Default: `group`. Batch normalization, used when these networks were
            introduced, mixes samples, so that a sample has no gradient of its own: the NTK statistics hold mean and
            variance constant, an approximation (see `raysat.ntk.batchnorm`).
        activation: One of `relu`, `tanh`, `gelu`, `erf`, `identity`. Default: relu, as in He et al. 2016b.
        hidden_gain: Factor before each convolution's `1 / sqrt(fan_in)`, except the first one's, whose input no
            activation has halved. Default: sqrt(2), which keeps the size of the signal through ReLU (He et al. 2015).
        output_gain: The same for the output layer. Default: 1, the paper's section 4.
        ghost: Samples of a ghost batch, for `norm="batch"` (see `raysat.models.ghost`). Default: 0, the whole batch.

    Raises:
        InputError: An option cannot be built.
    """
    if not is_whole(depth) or depth < 10 or depth % 6 != 4:
        raise InputError(f"resnet(depth={depth!r}): give 6k + 4 with k of at least 1, such as 10, 22, 28 or 34.")
    among("resnet(norm)", norm, NORMS)
    among("resnet(activation)", activation, ACTIVATIONS)
    positive("resnet(hidden_gain)", hidden_gain)
    positive("resnet(output_gain)", output_gain)
    options = {
        "activation": activation,
        "depth": depth,
        "hidden_gain": float(hidden_gain),
        "norm": norm,
        "output_gain": float(output_gain),
        **ghost_options("resnet", norm, ghost),
    }
    return Model("resnet", tuple(options.items()))


class Block(nn.Module):
    """Two convolutions of size 3 with a shortcut around them, each after norm and activation (He et al. 2016b).

    Args:
        inputs: Input channels.
        outputs: Output channels.
        stride: Of the first convolution, and of the shortcut.
        norm: One of `NORMS`.
        activation: One of `ACTIVATIONS`.
        gain: Of every convolution.
        branch_gain: Factor of the branch that is added to the shortcut; part of the second convolution's scale.
        ghost: Samples of a ghost batch; 0 for the whole batch.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        norm: str,
        activation: str,
        gain: float,
        branch_gain: float,
        ghost: int = 0,
    ) -> None:
        super().__init__()
        self.norm1 = NORMS[norm](inputs, ghost)
        self.conv1 = NTKConv2d(inputs, outputs, 3, stride, gain)
        self.norm2 = NORMS[norm](outputs, ghost)
        self.conv2 = NTKConv2d(outputs, outputs, 3, gain=gain * branch_gain)
        self.shortcut = None
        if inputs != outputs or stride != 1:
            self.shortcut = NTKConv2d(inputs, outputs, 1, stride, gain)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Float[Tensor, "n inputs height width"]) -> Float[Tensor, "n outputs rows columns"]:
        """Return the block's output, before the norm and activation of the next."""
        activated = self.activation(self.norm1(x))
        branch = self.conv2(self.activation(self.norm2(self.conv1(activated))))
        return (x if self.shortcut is None else self.shortcut(activated)) + branch


class ResNet(nn.Module):
    """The network of `resnet`.

    Example:
        >>> ResNet(16, 3, 10, depth=10)(torch.randn(5, 3, 32, 32)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        width: int,
        inputs: int,
        outputs: int,
        depth: int = 28,
        norm: str = "group",
        activation: str = "relu",
        hidden_gain: float = 2**0.5,
        output_gain: float = 1.0,
        ghost: int = 0,
    ) -> None:
        super().__init__()
        k = (depth - 4) // 6
        branch_gain = 1.0 if norm != "none" else (3 * k) ** -0.5
        blocks, channels = [], width
        for stage in range(3):
            for block in range(k):
                stride = 2 if stage > 0 and block == 0 else 1
                after = width * 2**stage
                blocks.append(Block(channels, after, stride, norm, activation, hidden_gain, branch_gain, ghost))
                channels = after
        self.stem = NTKConv2d(inputs, width, 3)
        self.blocks = nn.Sequential(*blocks)
        self.norm = NORMS[norm](channels, ghost)
        self.activation = ACTIVATIONS[activation]()
        self.output = NTKLinear(channels, outputs, output_gain)

    def forward(self, x: Float[Tensor, "n inputs height width"]) -> Float[Tensor, "n outputs"]:
        """Return `f(w, x)` for a batch of images."""
        x = self.blocks(self.stem(x))  # (n, 4 width, height/4, width/4)
        x = self.activation(self.norm(x)).mean((2, 3))  # (n, 4 width)
        return self.output(x)  # (n, outputs)


def build(width: int, input_shape: tuple[int, ...], outputs: int, **options: Any) -> ResNet:
    """Build the network for images of a given shape.

    Raises:
        InputError: The samples are not images.
    """
    if len(input_shape) != 3:
        raise InputError(
            f"resnet takes images [channels, height, width], but a sample has shape {list(input_shape)}: "
            "reshape it in the loader, or use mlp()."
        )
    return ResNet(width, input_shape[0], outputs, **options)
