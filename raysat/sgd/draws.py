"""What the random layers of a network, such as Dropout, draw while it trains: a function of its cell and the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def drawing(seed: int, device: torch.device, states: Sequence[Tensor] | None) -> Iterator[list[Tensor]]:
    """PyTorch's global generators as a trial left them; afterwards each is where it was for everybody else.

    Args:
        seed: From which they start.
        device: Where the steps are taken.
        states: Where they were, that of the CPU first; None at the start.

    Yields:
        A list in which the new states are, once the block has ended.
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
