"""What a data set is to the rest of the project: training and test samples as two pairs of tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from raysat.validation import InputError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples and targets. This is also what a user's loader, `module:function`, returns.

    One data set serves many trials of a process: its tensors are read-only by convention.

    Attributes:
        x: Training inputs, [n, *input_shape], floating and finite; or tokens, [n, L], int64.
        y: Training targets. For floating inputs [n, C], floating and finite: regression targets, or one-hot rows for
            classes. For tokens [n, L], int64: the next token at each position.
        x_test: Test inputs, [n_test, *input_shape], or None.
        y_test: Test targets, [n_test, ...], where `x_test` is given.
        classes: Whether the largest output names a class, so that accuracy means something. Default: whether every
            row of y is one-hot, with C >= 2.
        vocabulary: Number of distinct tokens; None for floating inputs.

    Raises:
        InputError: The tensors do not fit together, a value is not finite, or a token is not in the vocabulary.

    Example:
        >>> data = Dataset(x=torch.zeros(5, 1, 8, 8), y=torch.eye(5))
        >>> data.n, data.n_test, data.input_shape, data.outputs, data.classes
        (5, 0, (1, 8, 8), 5, True)
    """

    x: Tensor
    y: Tensor
    x_test: Tensor | None = None
    y_test: Tensor | None = None
    classes: bool | None = None
    vocabulary: int | None = None

    def __post_init__(self) -> None:
        _check("", self.x, self.y, self.vocabulary)
        if (self.x_test is None) != (self.y_test is None):
            raise InputError("Dataset has only one of x_test and y_test: give both or neither.")
        if self.x_test is not None:
            _check("_test", self.x_test, self.y_test, self.vocabulary)
            for name in ("x", "y"):
                train, test = getattr(self, name), getattr(self, f"{name}_test")
                if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
                    raise InputError(
                        f"Dataset has {name} of shape {_shape(train)}, {train.dtype}, and {name}_test of shape "
                        f"{_shape(test)}, {test.dtype}: let them differ in the number of samples only."
                    )
        if self.classes is None:
            object.__setattr__(self, "classes", self.y.is_floating_point() and _one_hot(self.y))

    @property
    def n(self) -> int:
        """Number of training samples."""
        return len(self.x)

    @property
    def n_test(self) -> int:
        """Number of test samples; 0 without a test set."""
        return 0 if self.x_test is None else len(self.x_test)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.x.shape[1:])

    @property
    def outputs(self) -> int:
        """C, the number of outputs: the columns of y, or the size of the vocabulary."""
        return self.y.shape[1] if self.vocabulary is None else self.vocabulary

    def to(self, device: torch.device) -> Dataset:
        """The same samples on a device."""
        names = ("x", "y", "x_test", "y_test")
        moved = {name: tensor.to(device) for name in names if (tensor := getattr(self, name)) is not None}
        return replace(self, **moved) if device != self.x.device else self


def _check(split: str, x: object, y: object, vocabulary: int | None) -> None:
    """Refuse one split, named `""` or `"_test"`, whose tensors do not fit together."""
    x_name, y_name = f"x{split}", f"y{split}"
    for name, value in ((x_name, x), (y_name, y)):
        if not isinstance(value, Tensor):
            raise InputError(f"Dataset has {name} of type {type(value).__name__}: give a torch.Tensor.")
        if value.numel() == 0:
            raise InputError(f"Dataset has {name} of shape {_shape(value)}: give at least one sample.")
        if value.ndim < 2:
            classes = f", or one_hot({name}).float() for classes" if name == y_name else ""
            raise InputError(
                f"Dataset has {name} of shape {_shape(value)}: give {name}[:, None] for one number a sample{classes}."
            )
    if len(x) != len(y):
        raise InputError(f"Dataset has {len(x)} inputs in {x_name} and {len(y)} targets in {y_name}: give as many.")
    if x.dtype == torch.int64:
        _check_tokens(x_name, x, y_name, y, vocabulary)
        return
    for name, value in ((x_name, x), (y_name, y)):
        if not value.is_floating_point():
            remedy = f"one_hot({name}).float() for classes" if name == y_name else "int64 for tokens"
            raise InputError(f"Dataset has {name} of {value.dtype}: give floating-point numbers, or {remedy}.")
        if not torch.stack(torch.aminmax(value)).isfinite().all():
            raise InputError(f"Dataset has values in {name} that are not finite: remove or replace them in the loader.")
    if y.ndim != 2:
        raise InputError(f"Dataset has {y_name} of shape {_shape(y)}: flatten each target, so that it is [n, C].")
    if vocabulary is not None:
        raise InputError(f"Dataset has a vocabulary, but {x_name} of {x.dtype}: leave it out, or give int64 tokens.")


def _check_tokens(x_name: str, x: Tensor, y_name: str, y: Tensor, vocabulary: int | None) -> None:
    if y.dtype != torch.int64 or x.ndim != 2 or x.shape != y.shape:
        raise InputError(
            f"Dataset has tokens in {x_name} of shape {_shape(x)}, and {y_name} of shape {_shape(y)}, {y.dtype}: "
            "give both as int64 tokens [n, L], or make x floating."
        )
    if vocabulary is None:
        raise InputError(f"Dataset has tokens in {x_name} but no vocabulary: give vocabulary=, their number.")
    low, high = (int(value) for value in torch.stack((*x.aminmax(), *y.aminmax())).aminmax())
    if low < 0 or high >= vocabulary:
        raise InputError(
            f"Dataset has tokens from {low} to {high} in {x_name} and {y_name}: "
            f"number them from 0, and give a vocabulary above the last, for it is {vocabulary}."
        )


def _one_hot(y: Float[Tensor, "n C"]) -> bool:
    binary = bool(((y == 0) | (y == 1)).all())
    return y.shape[1] >= 2 and binary and bool((y.sum(1) == 1).all())


def _shape(x: Tensor) -> list[int]:
    return list(x.shape)
