"""The decoder-only transformer of nanoGPT, in NTK parametrization, without dropout and without biases."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from raysat.errors import InputError, positive, whole
from raysat.models.layers import NTKEmbedding, NTKLinear, NTKUnembedding
from raysat.spec.cells import Model


def gpt(layers: int = 6, heads: int = 6, tied: bool = False, output_gain: float = 1.0) -> Model:
    """A causal transformer over tokens, as plain data. Its width is the number of channels in the residual stream.

    Token and position embeddings are added; each layer adds `attention(LayerNorm(x))` and then `mlp(LayerNorm(x))`,
    where the mlp has `4 width` GELUs; a last LayerNorm and a linear output give a logit for each token of the
    vocabulary at each position. Weights are N(0, 1). Embeddings have scale 1, linear layers `1 / sqrt(fan_in)`,
    attention scores `1 / sqrt(width / heads)` (Vaswani et al. 2017), with which they start at order 1 at any width. The
    gains and shifts of LayerNorm start at 1 and 0 and are not scaled, because each acts on one number. Branches are
    added unscaled: the square of the stream grows linearly with the layers, and the last LayerNorm removes the growth.

    The context, the longest sequence, is the length of the data set's samples; the vocabulary is its number of outputs.

    Args:
        layers: Default: 6, as in the paper's experiments (section 5) and nanoGPT's for characters.
        heads: Attention heads; they divide the width. Default: 6, likewise.
        tied: Whether the output layer's weight is the token embedding's. Default: False, unlike nanoGPT, because **a
            tied network has no limit of infinite width**: the stream at a position contains the embedding of the token
            at that position, so that this token's logit starts near `sqrt(width / var)`, var being the stream's
            variance before the last LayerNorm (8 at width 384 and 6 layers); all other logits start at order 1.
        output_gain: Factor before the output layer's `1 / sqrt(width)`. Default: 1, the paper's section 4.

    Raises:
        InputError: An option cannot be built.
    """
    whole("gpt(layers)", layers, 1)
    whole("gpt(heads)", heads, 1)
    if not isinstance(tied, bool):
        raise InputError(f"gpt(tied={tied!r}): give True or False.")
    positive("gpt(output_gain)", output_gain)
    options = {"heads": heads, "layers": layers, "output_gain": float(output_gain), "tied": tied}
    return Model("gpt", tuple(options.items()))


class CausalAttention(nn.Module):
    """Causal self-attention with several heads: a position attends to itself and to earlier positions.

    It is written out because PyTorch's fused kernels have no forward-mode derivative, which products with the kernel
    operator need.

    Args:
        width: Channels.
        heads: Heads, which divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = NTKLinear(width, 3 * width)
        self.projection = NTKLinear(width, width)

    def forward(self, x: Float[Tensor, "n length width"]) -> Float[Tensor, "n length width"]:
        """Return the attention output at each position."""
        length, width = x.shape[1:]
        qkv = self.qkv(x).unflatten(2, (3, self.heads, width // self.heads))  # (n, L, 3, heads, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # 3 of (n, heads, L, d)
        scores = (q * q.shape[-1] ** -0.5) @ k.mT  # (n, heads, L, L)
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)  # (L, L)
        seen = scores.masked_fill(future, -math.inf).softmax(-1) @ v  # (n, heads, L, d)
        return self.projection(seen.transpose(1, 2).flatten(2))  # (n, L, width)


class Block(nn.Module):
    """One layer: attention and a perceptron, each after a LayerNorm and with a shortcut around it.

    Args:
        width: Channels.
        heads: Heads, which divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(NTKLinear(width, 4 * width), nn.GELU(), NTKLinear(4 * width, width))

    def forward(self, x: Float[Tensor, "n length width"]) -> Float[Tensor, "n length width"]:
        """Return the stream after the layer."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """The network of `gpt`.

    Example:
        >>> GPT(24, context=16, vocabulary=65)(torch.zeros(5, 16, dtype=torch.int64)).shape
        torch.Size([5, 16, 65])
    """

    def __init__(
        self,
        width: int,
        context: int,
        vocabulary: int,
        layers: int = 6,
        heads: int = 6,
        tied: bool = False,
        output_gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.tokens = NTKEmbedding(vocabulary, width)
        self.positions = NTKEmbedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.output = NTKUnembedding(self.tokens, output_gain) if tied else NTKLinear(width, vocabulary, output_gain)

    def forward(self, tokens: Int64[Tensor, "n length"]) -> Float[Tensor, "n length vocabulary"]:
        """Return the logits of the next token at each position.

        Raises:
            InputError: The inputs are numbers, not tokens.
        """
        if tokens.is_floating_point():
            raise InputError(
                f"gpt takes int64 tokens, but the inputs are {tokens.dtype}: use mlp() or resnet() for these."
            )
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)  # (n, L)
        x = self.tokens(tokens) + self.positions(positions)  # (n, L, width)
        return self.output(self.norm(self.blocks(x)))  # (n, L, vocabulary)


def build(
    width: int,
    input_shape: tuple[int, ...],
    outputs: int,
    heads: int = 6,
    vocabulary: int | None = None,
    **options: Any,
) -> GPT:
    """Build the network for sequences of a given length, `input_shape = (L,)`, and a vocabulary of `outputs` tokens.

    Raises:
        InputError: The samples are not sequences, the outputs are not their tokens, or the heads do not divide the
            width.
    """
    if len(input_shape) != 1:
        raise InputError(
            f"gpt takes sequences [L] of tokens, but a sample has shape {list(input_shape)}: use resnet() or mlp()."
        )
    if vocabulary not in (None, outputs):
        raise InputError(
            f"gpt predicts a token at each position, one of {vocabulary}, but the targets are of {outputs} classes: "
            "give tokens for targets, [n, L], or name a builder of your own, 'module:function'."
        )
    if width % heads:
        nearest = max(1, round(width / heads)) * heads
        raise InputError(
            f"gpt(heads={heads}) cannot divide the width {width} among its heads: "
            f"use a width that is a multiple of {heads}, such as {nearest}, or a number of heads that divides {width}."
        )
    return GPT(width, input_shape[0], outputs, heads=heads, **options)
