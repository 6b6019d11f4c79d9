"""The interface of a data set: training and test samples as two pairs of inputs and targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raysat.data import checks
from raysat.data.fields import Fields, Inputs, each, tensors_of
from raysat.errors import InputError
from raysat.spec.references import import_path

_TENSORS = ("x", "y", "x_test", "y_test")

Several = Mapping[str, Tensor] | Sequence[Tensor]
"""Tensors by name or by position."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples and targets. A user's loader, `module:function`, returns one too.

    One data set serves many trials of a process: its tensors are read-only by convention.

    Attributes:
        x: Training inputs: [n, *input_shape], floating and finite; or tokens, [n, L], int64; or a dictionary or tuple
            of tensors of any type with n rows each, which become `raysat.data.fields.Fields`: a network is called with
            them as its keyword or positional arguments.
        y: Training targets. Numbers, floating and finite, [n, C]: regression targets, one-hot rows, or with
            `classes=True` weights of the classes, which may also be [n, L, C]. Or labels 0..C-1 of any integer type,
            which become int64: one for each sample, [n], or for each of its positions, [n, L], such as the next token.
        x_test: Test inputs, like x, or None.
        y_test: Test targets, like y, if `x_test` is given.
        classes: Whether the largest output is a class, so that accuracy is defined; for a single output, the class is
            its side of `threshold`. Default: True if y are labels, or if every row of y is one-hot with C >= 2.
        vocabulary: Number of distinct tokens, which builders receive (`raysat.models.build`). Needed for tokens,
            possible for inputs of several tensors, None for floating inputs.
        outputs: C, the number of outputs. Default: the number of columns of y; for labels, the vocabulary if each token
            has a label, and otherwise one more than the largest label.
        threshold: For a single output with `classes=True`, the boundary between the two classes, of outputs and of
            targets alike. Default: half way between the two targets, 0 for -1 and 1, and 0.5 for 0 and 1. For a custom
            loss of logits with targets 0 and 1, set it to 0.
        transform: Import path `module:function` of a function `(x, y, generator) -> (x, y)` that changes the batch of
            each step, such as by random crops (data augmentation), and nothing that is measured (see
            `raysat.sgd.transform`). Default: None, samples are used as they are.

    Raises:
        InputError: The tensors do not fit together, a value is not finite, or a token or label is out of its range.

    Example:
        >>> data = Dataset(x=torch.zeros(5, 1, 8, 8), y=torch.eye(5))
        >>> data.n, data.n_test, data.input_shape, data.outputs, data.classes
        (5, 0, (1, 8, 8), 5, True)
        >>> data = Dataset(x=torch.zeros(3, 7).long(), y=torch.tensor([0, 1, 1]), vocabulary=50)
        >>> data.input_shape, data.outputs, data.classes
        ((7,), 2, True)
    """

    x: Inputs
    y: Tensor
    x_test: Inputs | None
    y_test: Tensor | None
    classes: bool
    vocabulary: int | None
    outputs: int
    threshold: float | None
    transform: str | None  # `object` below, so that a function is answered in a sentence

    def __init__(
        self,
        x: Inputs | Several,
        y: Tensor,
        x_test: Inputs | Several | None = None,
        y_test: Tensor | None = None,
        classes: bool | None = None,
        vocabulary: int | None = None,
        outputs: int | None = None,
        threshold: float | None = None,
        transform: object = None,
    ) -> None:
        if transform is not None:
            import_path("transform", transform)
        if (x_test is None) != (y_test is None):
            raise InputError("Dataset has only one of x_test and y_test: give both or neither.")
        x, y = checks.split("", x, y, vocabulary, positions=bool(classes))
        if x_test is not None:
            x_test, y_test = checks.split("_test", x_test, y_test, vocabulary, positions=bool(classes))
            checks.alike("x", x, x_test)
            checks.alike("y", y, y_test)
        self._set(x=x, y=y, x_test=x_test, y_test=y_test, vocabulary=vocabulary, transform=transform)
        labels = not y.is_floating_point()
        if outputs is None:
            outputs = self._columns()
        if labels:
            checks.labels(self._targets, outputs)
        if classes is None:
            classes = labels or checks.one_hot(y)
        if classes and not labels:
            checks.columns(y, outputs)
            if outputs == 1 and threshold is None:
                threshold = checks.half_way(self._targets)
        self._set(classes=classes, outputs=outputs, threshold=threshold)

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _columns(self) -> int:
        """The number of outputs if the user does not give it."""
        if self.y.is_floating_point():
            return self.y.shape[-1]
        if self.vocabulary is not None and isinstance(self.x, Tensor) and self.y.shape == self.x.shape:
            return self.vocabulary
        return checks.classes_of(self._targets)

    @property
    def _targets(self) -> list[Tensor]:
        return [y for y in (self.y, self.y_test) if y is not None]

    @property
    def n(self) -> int:
        """Number of training samples."""
        return len(self.x)

    @property
    def n_test(self) -> int:
        """Number of test samples; 0 without a test set."""
        return 0 if self.x_test is None else len(self.x_test)

    @property
    def input_shape(self) -> tuple[int, ...] | dict[str | int, tuple[int, ...]]:
        """Shape of one input; for several tensors a dictionary from the name or position of each to its shape."""
        if isinstance(self.x, Fields):
            return {name: tuple(tensor.shape[1:]) for name, tensor in self.x.tensors.items()}
        return tuple(self.x.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        inputs = [tensor for x in (self.x, self.x_test) if x is not None for tensor in tensors_of(x)]
        return sum(tensor.nbytes for tensor in (*inputs, *self._targets))

    def map(self, function: Callable[[Tensor], Tensor]) -> Dataset:
        """Apply a function to each tensor of the data set."""
        changed = {name: each(function, value) for name in _TENSORS if (value := getattr(self, name)) is not None}
        return replace(self, **changed)

    def to(self, device: torch.device) -> Dataset:
        """The same samples on a device."""
        return self.map(lambda tensor: tensor.to(device)) if device != self.x.device else self
