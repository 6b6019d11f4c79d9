"""Checks of the tensors of a data set: each error is a sentence with the remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raysat.data.fields import Fields, Inputs, fields_of, tensors_of
from raysat.errors import InputError
from raysat.losses.targets import check_range, whole_or_finite


def split(name: str, x: Any, y: Any, vocabulary: int | None, *, positions: bool) -> tuple[Inputs, Tensor]:
    """Check and convert one split: several input tensors to `Fields`, labels to int64.

    Args:
        name: `""` or `"_test"`.
        x: Inputs.
        y: Targets.
        vocabulary: The number of distinct tokens; None without tokens.
        positions: Whether floating targets may be [n, L, C].
    """
    x_name, y_name = f"x{name}", f"y{name}"
    if isinstance(x, Mapping | list | tuple):
        x = fields_of(x, f"Dataset's {x_name}")
    for one, value in ((x_name, x), (y_name, y)):
        if not isinstance(value, Tensor | Fields):
            raise InputError(f"Dataset has {one} of type {type(value).__name__}: give a torch.Tensor.")
        for tensor in tensors_of(value):
            if tensor.numel() == 0:
                raise InputError(f"Dataset has {one} of shape {_shape(tensor)}: give at least one sample.")
    if isinstance(x, Fields):
        _fields(x_name, x)
    else:
        _input(x_name, x, vocabulary)
    y = _target(y_name, y, positions)
    if len(x) != len(y):
        raise InputError(f"Dataset has {len(x)} inputs in {x_name} and {len(y)} targets in {y_name}: give as many.")
    if not y.is_floating_point():
        _label_shape(x, y_name, y)
    return x, y


def _fields(name: str, x: Fields) -> None:
    """Refuse tensors with NaN; infinity is allowed, because an additive mask contains it."""
    for key, tensor in x.tensors.items():
        if tensor.isnan().any():
            raise InputError(f"Dataset has NaN in {name}[{key!r}]: remove or replace it in the loader.")


def _input(name: str, x: Tensor, vocabulary: int | None) -> None:
    if x.ndim < 2:
        raise InputError(f"Dataset has {name} of shape {_shape(x)}: give {name}[:, None] for one number a sample.")
    if x.dtype == torch.int64:
        _tokens(name, x, vocabulary)
        return
    if not x.is_floating_point():
        raise InputError(f"Dataset has {name} of {x.dtype}: give floating-point numbers, or int64 for tokens.")
    if not torch.stack(torch.aminmax(x)).isfinite().all():
        raise InputError(f"Dataset has values in {name} that are not finite: remove or replace them in the loader.")
    if vocabulary is not None:
        raise InputError(f"Dataset has a vocabulary, but {name} of {x.dtype}: leave it out, or give int64 tokens.")


def _tokens(name: str, x: Tensor, vocabulary: int | None) -> None:
    if x.ndim != 2:
        raise InputError(
            f"Dataset has {name} of shape {_shape(x)}, {x.dtype}: give tokens as [n, L], or make {name} floating."
        )
    if vocabulary is None:
        raise InputError(f"Dataset has tokens in {name} but no vocabulary: give vocabulary=, their number.")
    low, high = (int(value) for value in x.aminmax())
    if low < 0 or high >= vocabulary:
        raise InputError(
            f"Dataset has tokens from {low} to {high} in {name}: number them from 0, and give a vocabulary above the "
            f"last; it is {vocabulary}."
        )


def _target(name: str, y: Tensor, positions: bool) -> Tensor:
    if y.is_floating_point() and y.ndim < 2:
        raise InputError(
            f"Dataset has {name} of shape {_shape(y)}: give {name}[:, None] for one number a sample, or {name}.long() "
            "for labels."
        )
    if y.is_floating_point() and y.ndim > 2 and not positions:
        raise InputError(
            f"Dataset has {name} of shape {_shape(y)}: flatten each target, so that it is [n, C], or say classes=True "
            "where a row weighs the classes of a position."
        )
    return whole_or_finite(y, f"Dataset's {name}")


def _label_shape(x: Inputs, name: str, y: Tensor) -> None:
    tokens = isinstance(x, Tensor) and not x.is_floating_point()
    if y.ndim == 0:
        raise InputError(f"Dataset has {name} of shape []: give a label for each sample.")
    if tokens and isinstance(x, Tensor) and y.ndim > 1 and y.shape != x.shape:
        raise InputError(
            f"Dataset has tokens of shape {_shape(x)}, and {name} of shape {_shape(y)}: give one label for each token, "
            "or one for each sample, [n]."
        )
    if not tokens and y.ndim > 1 and y.shape[1:].numel() == 1:
        raise InputError(
            f"Dataset has {name} of shape {_shape(y)}: give {name}.flatten() for one label a sample, or {name}.float() "
            "for numbers."
        )


def alike(name: str, train: Inputs, test: Inputs) -> None:
    """Refuse test tensors that differ from the training ones in more than the number of samples."""
    keys = [list(value.tensors) if isinstance(value, Fields) else None for value in (train, test)]
    if keys[0] != keys[1]:
        raise InputError(f"Dataset has {name} and {name}_test of other tensors: give both the same, in one order.")
    for one, other in zip(tensors_of(train), tensors_of(test), strict=True):
        if one.shape[1:] != other.shape[1:] or one.dtype != other.dtype:
            raise InputError(
                f"Dataset has {name} of shape {_shape(one)}, {one.dtype}, and {name}_test of shape "
                f"{_shape(other)}, {other.dtype}: let them differ in the number of samples only."
            )


def labels(targets: Sequence[Tensor], classes: int) -> None:
    """Refuse labels that are not 0..C-1."""
    check_range(*_range(targets), classes, "Dataset's y")


def classes_of(targets: Sequence[Tensor]) -> int:
    """Return one more than the largest label; refuse labels that do not begin at 0."""
    low, high = _range(targets)
    if low > 0:
        raise InputError(
            f"Dataset has labels from {low} to {high} in y: number the classes from 0, such as by y - {low}, or give "
            "outputs=, their number, where those before the first have no sample."
        )
    return max(high, 0) + 1


def _range(targets: Sequence[Tensor]) -> tuple[int, int]:
    return min(int(y.amin()) for y in targets), max(int(y.amax()) for y in targets)


def columns(y: Tensor, outputs: int) -> None:
    """Refuse rows whose number of classes is not the number of outputs."""
    if y.shape[-1] != outputs:
        raise InputError(
            f"Dataset has classes=True, outputs={outputs} and y of shape {_shape(y)}: give a column of y for each "
            "output, or leave classes out."
        )


def half_way(targets: Sequence[Tensor]) -> float:
    """Return the midpoint of the two targets of a binary classification."""
    values = torch.cat([y.flatten() for y in targets]).unique().tolist()
    if len(values) != 2:
        some = ", ".join(f"{value:g}" for value in values[:4])
        raise InputError(
            f"Dataset has classes=True, one output and the targets {some}{', ...' if len(values) > 4 else ''}: give "
            "two, such as -1 and 1, or threshold=, which parts the classes, or leave classes out."
        )
    return sum(values) / 2


def one_hot(y: Tensor) -> bool:
    """Return whether every row names one of at least two classes."""
    binary = bool(((y == 0) | (y == 1)).all())
    return y.shape[1] >= 2 and binary and bool((y.sum(1) == 1).all())


def _shape(x: Tensor) -> list[int]:
    return list(x.shape)
