"""The global random generators, seeded for a while."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from raysat.user_code.process import generators_kept


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The generators of PyTorch, NumPy and Python seeded; afterwards each is where it was.

    Args:
        seed: The seed. NumPy takes its last 32 bits.
    """
    with generators_kept():
        torch.manual_seed(seed)
        np.random.seed(seed % (1 << 32))
        random.seed(seed)
        yield
