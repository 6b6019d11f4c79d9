"""Inputs of several tensors a sample, such as tokens with their attention mask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.utils import _pytree

from raysat.errors import InputError


class Fields:
    """The input tensors of some samples, by name or by position; indexed and split along the samples like one tensor.

    A network is called with them as its keyword arguments (if named) or its positional ones; see
    `raysat.models.unpacked.Unpacked`. `torch.func` transforms handle it like a dictionary.

    Args:
        tensors: Tensors of equal length, by name, or in the order of the network's arguments.

    Example:
        >>> x = Fields({"input_ids": torch.zeros(5, 3), "attention_mask": torch.ones(5, 3)})
        >>> len(x), len(x[:2]), [len(part) for part in x.split(2)]
        (5, 2, [2, 2, 1])
    """

    def __init__(self, tensors: Mapping[Any, Tensor] | Sequence[Tensor]) -> None:
        self.named = isinstance(tensors, Mapping)
        keyed = tensors.items() if isinstance(tensors, Mapping) else enumerate(tensors)
        self.tensors: dict[str | int, Tensor] = dict(keyed)

    def map(self, function: Callable[[Tensor], Tensor]) -> Fields:
        """Apply a function to each tensor."""
        changed = {name: function(tensor) for name, tensor in self.tensors.items()}
        return Fields(changed if self.named else tuple(changed.values()))

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: Any) -> Fields:
        return self.map(lambda tensor: tensor[index])

    def split(self, size: int) -> list[Fields]:
        """Split into parts of `size` samples; the last may have fewer."""
        return [self[first : first + size] for first in range(0, len(self), size)]

    def index_select(self, dim: int, index: Tensor) -> Fields:
        """Select the samples of some indices; `dim` is 0."""
        return self.map(lambda tensor: tensor.index_select(dim, index))

    def to(self, device: torch.device) -> Fields:
        """Move all tensors to a device."""
        return self.map(lambda tensor: tensor.to(device))

    def cpu(self) -> Fields:
        """Move all tensors to the CPU."""
        return self.map(Tensor.cpu)

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return next(iter(self.tensors.values())).device

    @property
    def is_cuda(self) -> bool:
        """Whether the tensors are on a GPU."""
        return self.device.type == "cuda"


Inputs = Tensor | Fields
"""Inputs of some samples: one tensor, or several."""


def fields_of(x: Mapping[str, Tensor] | Sequence[Tensor], name: str = "x") -> Fields:
    """Make fields of a dictionary or a sequence of tensors.

    Raises:
        InputError: They are not tensors of equal length.
    """
    fields = Fields(x)
    if not fields.tensors:
        raise InputError(f"{name} has no tensor: give at least one, by name or by position.")
    for key, tensor in fields.tensors.items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name} has {key!r} of type {type(tensor).__name__}: give a torch.Tensor.")
        if tensor.ndim == 0:
            raise InputError(f"{name} has {key!r} of shape []: give a row for each sample.")
    lengths = {key: len(tensor) for key, tensor in fields.tensors.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"{name} has tensors of the lengths {lengths}: give a row of each for every sample.")
    return fields


def tensors_of(x: Inputs) -> list[Tensor]:
    """The tensors of which inputs consist."""
    return list(x.tensors.values()) if isinstance(x, Fields) else [x]


@overload
def each(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor: ...


@overload
def each(function: Callable[[Tensor], Tensor], x: Fields) -> Fields: ...


def each(function: Callable[[Tensor], Tensor], x: Inputs) -> Inputs:
    """Apply a function to each tensor of the inputs."""
    return x.map(function) if isinstance(x, Fields) else function(x)


@overload
def repeated(x: Tensor, count: int) -> Tensor: ...


@overload
def repeated(x: Fields, count: int) -> Fields: ...


def repeated(x: Inputs, count: int) -> Inputs:
    """Repeat the first sample `count` times, in the memory of one.

    Example:
        >>> repeated(torch.zeros(5, 3), 2).shape
        torch.Size([2, 3])
    """
    return each(lambda tensor: tensor[:1].expand(count, *tensor.shape[1:]), x)


def _flatten(fields: Fields) -> tuple[list[Tensor], tuple]:
    return list(fields.tensors.values()), (fields.named, tuple(fields.tensors))


def _unflatten(tensors: Iterable[Any], context: tuple) -> Fields:
    # Transforms put things other than tensors in their places, such as the numbers of batched axes.
    named, names = context
    return Fields(dict(zip(names, tensors, strict=True)) if named else tuple(tensors))


_pytree.register_pytree_node(Fields, _flatten, _unflatten)
