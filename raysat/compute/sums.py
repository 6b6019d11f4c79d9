"""Sums of tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor


def summed(tensors: Iterable[Tensor]) -> Tensor:
    """Return the sum of at least one tensor. `sum` is typed to return 0 as well, its value for no tensors."""
    return cast(Tensor, sum(tensors))
