"""The random numbers of layers such as Dropout during training: a function of the cell and the step alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def drawing(seed: int, device: torch.device, states: Sequence[Tensor] | None) -> Iterator[list[Tensor]]:
    """Set PyTorch's global generators to the states in which a trial left them, and restore the old states afterwards.

    Args:
        seed: Seed of the generators at the trial's start.
        device: Where the steps are computed.
        states: The states that the trial left, the CPU's first; None at its start.

    Yields:
        A list that holds the new states once the block has ended.
    """
    devices = [device] if device.type == "cuda" else []
    after: list[Tensor] = []
    with torch.random.fork_rng(devices):
        if states is None:
            torch.manual_seed(seed)
        else:
            torch.set_rng_state(states[0])
            for state, one in zip(states[1:], devices, strict=False):
                torch.cuda.set_rng_state(state, one)
        yield after
        after += [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
