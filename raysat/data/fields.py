"""Inputs of several tensors a sample, such as tokens with their attention mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils import _pytree


class Fields:
    """The input tensors of some samples, by name or by position; indexed and split along the samples like one tensor.

    A network is called with them as its keyword arguments (named) or its positional ones; see
    `raysat.models.unpacked.Unpacked`. `torch.func` transforms see through it, as through a dictionary.

    Args:
        tensors: Tensors of equal length, by name, or in the order of the network's arguments.

    Example:
        >>> x = Fields({"input_ids": torch.zeros(5, 3), "attention_mask": torch.ones(5, 3)})
        >>> len(x), len(x[:2]), [len(part) for part in x.split(2)]
        (5, 2, [2, 2, 1])
    """

    def __init__(self, tensors: Mapping[str, Tensor] | Sequence[Tensor]) -> None:
        self.named = isinstance(tensors, Mapping)
        self.tensors = dict(tensors) if self.named else dict(enumerate(tensors))

    def map(self, function: Callable[[Tensor], Tensor]) -> Fields:
        """The same fields, a function applied to each tensor."""
        changed = {name: function(tensor) for name, tensor in self.tensors.items()}
        return Fields(changed if self.named else tuple(changed.values()))

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: object) -> Fields:
        return self.map(lambda tensor: tensor[index])

    def split(self, size: int) -> list[Fields]:
        """Parts of `size` samples, the last of which may have fewer."""
        return [self[first : first + size] for first in range(0, len(self), size)]

    def index_select(self, dim: int, index: Tensor) -> Fields:
        """The samples of some indices; `dim` is 0."""
        return self.map(lambda tensor: tensor.index_select(dim, index))

    def to(self, device: torch.device) -> Fields:
        """The same on a device."""
        return self.map(lambda tensor: tensor.to(device))

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(iter(self.tensors.values())).device


Inputs = Tensor | Fields
"""Inputs of some samples: one tensor, or several."""


def _flatten(fields: Fields) -> tuple[list[Tensor], tuple]:
    return list(fields.tensors.values()), (fields.named, tuple(fields.tensors))


def _unflatten(tensors: Sequence[Tensor], context: tuple) -> Fields:
    # Transforms put other things than tensors in their place, such as the numbers of batched axes.
    named, names = context
    return Fields(dict(zip(names, tensors, strict=True)) if named else tuple(tensors))


_pytree.register_pytree_node(Fields, _flatten, _unflatten)
