"""Layers that draw in their forward pass, such as dropout: found by what they draw, and turned off one by one."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raysat.data.fields import Inputs
from raysat.ntk.refusal import NoStatistics


def turn_off_random_layers(network: nn.Module, few: Inputs) -> tuple[str, ...]:
    """Put each module that draws into evaluation mode, itself alone; its children and all others stay as they are.

    `network.eval()` would do more: it would change batch normalization, too. A module draws if a generator's state
    changes while its own forward runs, outside of its children's.

    Args:
        network: Changed in place; the caller restores it.
        few: Some samples.

    Returns:
        The names of the modules that were turned off.

    Raises:
        NoStatistics: A module draws in evaluation mode, and its output depends on it.
    """
    off: list[str] = []
    modules = dict(network.named_modules())
    while True:
        drawing = _drawing(network, few)
        new = [name for name in drawing if modules[name].training]
        if not new:
            break
        for name in new:
            modules[name].training = False
        off += [name or type(network).__name__ for name in new]
    if drawing and _differs(network, few):
        name = drawing[0]
        what = f"{name} ({type(modules[name]).__name__})" if name else type(modules[name]).__name__
        raise NoStatistics(
            f"{what} draws random numbers in its forward pass that no training flag turns off, so that a sample has no "
            "output of its own: pass training=self.training to F.dropout and its like, or use nn.Dropout."
        )
    return tuple(off)


def _drawing(network: nn.Module, few: Inputs) -> list[str]:
    """The names of the modules that draw by themselves, in the order in which they first do."""
    stack, found, last = [""], [], _generators(few.device)

    def account() -> None:
        nonlocal last
        now = _generators(few.device)
        if not all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(now, last, strict=True)):
            if stack[-1] not in found:
                found.append(stack[-1])
            last = now

    handles = []
    for name, module in network.named_modules():

        def enter(*_: object, name: str = name) -> None:
            account()
            stack.append(name)

        def leave(*_: object) -> None:
            account()
            stack.pop()

        handles += [
            module.register_forward_pre_hook(enter, prepend=True),
            module.register_forward_hook(leave, always_call=True),
        ]
    try:
        network(few)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _generators(device: torch.device) -> tuple[Any, ...]:
    """The states of the global generators."""
    legacy: Any = np.random.get_state()  # a tuple, or on request a dictionary
    _, keys, position, *_ = legacy
    states: list[Any] = [torch.get_rng_state(), (keys.tobytes(), position), random.getstate()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return tuple(states)


def _differs(network: nn.Module, few: Inputs, times: int = 8) -> bool:
    """Return whether the outputs depend on what is drawn."""
    first = network(few)
    return isinstance(first, Tensor) and any(not torch.equal(first, network(few)) for _ in range(times))
