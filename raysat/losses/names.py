"""A loss by name, by import path, or as a function."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from raysat.errors import InputError
from raysat.losses.builtin import CrossEntropy, SquaredError
from raysat.losses.custom import Custom
from raysat.spec.references import is_reference
from raysat.user_code import plugins

Loss = SquaredError | CrossEntropy | Custom
LOSSES: dict[str, Loss] = {loss.name: loss for loss in (SquaredError(), CrossEntropy())}
"""The built-in losses by name."""


def resolve(loss: str | Callable[[Tensor, Tensor], Tensor] | Loss) -> Loss:
    """Return the loss that a name, an import path or a function stands for.

    Args:
        loss: A built-in name; the import path `module:function` of a function `(outputs, y) -> losses [n]`, or such a
            function itself (see `Custom`); or a loss already.

    Raises:
        InputError: It is none of these, or there is no such module or function.

    Example:
        >>> resolve("mse").name
        'mse'
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str) and loss in LOSSES:
        return LOSSES[loss]
    if isinstance(loss, str) and is_reference(loss):
        return Custom(loss, plugins.resolve(loss))
    if callable(loss):
        return Custom(getattr(loss, "__name__", type(loss).__name__), loss)
    raise InputError(f"loss={loss!r}: use one of {', '.join(LOSSES)}, or 'module:function' for a loss of your own.")
