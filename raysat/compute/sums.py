"""Sums of tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor


def summed(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor; `sum` by itself may as well be the number 0, that of none."""
    return cast(Tensor, sum(tensors))
