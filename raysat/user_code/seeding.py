"""Temporary seeding of the global random generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from raysat.user_code.process import generators_kept


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of PyTorch, NumPy and Python inside the block, and restore their states afterwards.

    Args:
        seed: The seed. NumPy uses its last 32 bits.
    """
    with generators_kept():
        torch.manual_seed(seed)
        np.random.seed(seed % (1 << 32))
        random.seed(seed)
        yield
