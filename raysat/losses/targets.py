"""Check and conversion of targets, the same for data sets and for statistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raysat.errors import InputError
from raysat.losses.builtin import CrossEntropy, SquaredError
from raysat.losses.names import Loss


def as_targets(
    y: Tensor, outputs_shape: Sequence[int], loss: Loss, dtype: torch.dtype | None = None, name: str = "y"
) -> Tensor:
    """Convert targets to the form that the loss uses: labels as int64, numbers in the outputs' type.

    Args:
        y: Under the cross-entropy, labels 0..C-1 of any integer type, of the outputs' shape but for its last dimension,
            or weights of the classes of at least 0, of the outputs' shape; under the squared error, numbers of the
            outputs' shape; under a loss of the user's own, whatever it takes, for each sample.
        outputs_shape: Shape of the outputs of all n samples: [n, C], or [n, L, V] under the cross-entropy.
        loss: The loss.
        dtype: Type of the outputs. Default: numbers stay as they are.
        name: The name of the targets in messages.

    Raises:
        InputError: They do not fit the outputs or the loss, or a number is not finite.

    Example:
        >>> from raysat.losses import LOSSES
        >>> as_targets(torch.tensor([0, 2, 1], dtype=torch.uint8), (3, 3), LOSSES["cross_entropy"]).dtype
        torch.int64
    """
    shape = list(outputs_shape)
    if not isinstance(y, Tensor):
        raise InputError(f"{name} is of type {type(y).__name__}: give a torch.Tensor.")
    if y.ndim == 0 or len(y) != shape[0]:
        raise InputError(f"{name} has shape {list(y.shape)}, and there are {shape[0]} samples: give a target for each.")
    y = whole_or_finite(y, name, dtype)
    if isinstance(loss, SquaredError):
        _check_numbers(y, shape, name)
    elif isinstance(loss, CrossEntropy):
        _check_classes(y, shape, name)
    return y


def whole_or_finite(y: Tensor, name: str = "y", dtype: torch.dtype | None = None) -> Tensor:
    """Convert the targets of any loss: whole numbers to int64, others to finite numbers of `dtype`.

    Raises:
        InputError: They are neither, or a number is not finite.
    """
    if y.dtype == torch.bool or y.is_complex():
        raise InputError(f"{name} is of {y.dtype}: give y.float() for weights of classes, or y.long() for labels.")
    if not y.is_floating_point():
        return y.to(torch.int64)
    if y.numel() and not torch.stack(torch.aminmax(y)).isfinite().all():
        raise InputError(f"{name} has values that are not finite: remove or replace them.")
    cast = y if dtype is None else y.to(dtype)
    if cast is not y and not torch.stack(torch.aminmax(cast)).isfinite().all():
        raise InputError(f"{name} has values that {dtype} cannot hold: scale the targets down.")
    return cast


def _check_numbers(y: Tensor, shape: list[int], name: str) -> None:
    """Refuse what the squared error cannot use."""
    if not y.is_floating_point():
        raise InputError(
            f"{name} has whole numbers, and the squared error needs floating-point ones: give one_hot(y, "
            f"{shape[-1]}).float() for classes, y.float() for numbers, or set loss='cross_entropy'."
        )
    if list(y.shape) != shape:
        remedy = "give y[:, None]" if shape == [*y.shape, 1] else "make them agree"
        raise InputError(f"{name} has shape {list(y.shape)}, and the outputs have {shape} under mse: {remedy}.")


def _check_classes(y: Tensor, shape: list[int], name: str) -> None:
    """Refuse what the cross-entropy cannot use."""
    if shape[-1] == 1:
        raise InputError(
            f"the outputs have shape {shape}, and the cross-entropy of a single class is 0 whatever the network says: "
            "return an output for each class, or use loss='mse' or a loss of your own."
        )
    if y.is_floating_point():
        _check_rows(y, shape, name)
    else:
        _check_labels(y, shape, name)


def _check_rows(y: Tensor, shape: list[int], name: str) -> None:
    if list(y.shape) != shape:
        labels = ", or y.long() for labels" if list(y.shape) == shape[:-1] else ""
        raise InputError(
            f"{name} has shape {list(y.shape)}, {y.dtype}, and the outputs have {shape} under cross_entropy: give a "
            f"weight for each output{labels}."
        )
    if (least := y.amin().item()) < 0:
        raise InputError(
            f"{name} has the negative entry {least:.4g}, and the cross-entropy takes weights of classes: give numbers "
            "of at least 0, or set loss='mse'."
        )


def _check_labels(y: Tensor, shape: list[int], name: str) -> None:
    if list(y.shape) != shape[:-1]:
        if list(y.shape) == [*shape[:-1], 1]:
            remedy = "give y.squeeze(-1)"
        elif list(y.shape) == [shape[0], *shape[2:]]:
            remedy = "let the network return the classes last, [n, L, V]"
        elif y.ndim == 1:
            remedy = "let the network return [n, C], or give a label for each position"
        else:
            remedy = f"give labels of shape {shape[:-1]}"
        raise InputError(f"{name} has shape {list(y.shape)}, and the outputs have {shape}: {remedy}.")
    low, high = (int(value) for value in y.aminmax())
    check_range(low, high, shape[-1], name)


def check_range(low: int, high: int, classes: int, name: str = "y") -> None:
    """Refuse labels outside 0..C-1.

    Raises:
        InputError: Some label is.
    """
    if low >= 0 and high < classes:
        return
    if low < 0:
        remedy = "leave out what is to be ignored, or give it a row of zeros among one-hot rows, [..., C]"
    elif low > 0 and high - low < classes:
        remedy = "give y - 1" if low == 1 else "number them from 0"
    else:
        remedy = f"return {high + 1} outputs, or number the classes without gaps"
    raise InputError(
        f"{name} has labels from {low} to {high} for {classes} classes, which are 0 to {classes - 1}: {remedy}."
    )
