"""Random layers, such as dropout: found by the random numbers that they draw, and turned off one by one."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raysat.data.fields import Inputs
from raysat.ntk.refusal import NoStatistics


def turn_off_random_layers(network: nn.Module, few: Inputs) -> tuple[str, ...]:
    """Switch each module that draws random numbers to evaluation mode, without its children.

    All other modules are unchanged: `network.eval()` would change batch normalization, too. A module draws if the state
    of a random generator changes while the module's own forward runs, outside of its children's.

    Args:
        network: The network. It is changed in place, and the caller restores it.
        few: Some samples.

    Returns:
        The names of the modules that were turned off.

    Raises:
        NoStatistics: A module draws in evaluation mode, too, and the output depends on what it draws.
    """
    off: list[str] = []
    modules = dict(network.named_modules())
    # Repeated, because with one module turned off the network may reach others that draw.
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
    """Return the names of the modules whose own forward draws, in the order of their first draws."""
    # The generators are compared at each entry to and exit from a module: a change since the last comparison is due to
    # the module on top of the stack.
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
    """Return the states of the global random generators of PyTorch, NumPy and Python."""
    legacy: Any = np.random.get_state()  # Any: declared as a tuple or a dictionary
    _, keys, position, *_ = legacy
    states: list[Any] = [torch.get_rng_state(), (keys.tobytes(), position), random.getstate()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return tuple(states)


def _differs(network: nn.Module, few: Inputs, times: int = 8) -> bool:
    """Return whether the outputs depend on the random numbers drawn."""
    first = network(few)
    return isinstance(first, Tensor) and any(not torch.equal(first, network(few)) for _ in range(times))
