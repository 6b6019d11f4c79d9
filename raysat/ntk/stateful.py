"""Stateful networks, which change in their forward pass: every pass starts from the state given."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from raysat.data.fields import Inputs
from raysat.ntk.refusal import NoStatistics


class State:
    """Buffers and attributes of a network, with which each pass starts."""

    def __init__(self, network: nn.Module) -> None:
        self.modules = [
            (module, dict(module._buffers), {k: v for k, v in vars(module).items() if k not in _REGISTRIES})
            for module in network.modules()
        ]
        self.parameters = [(module, dict(module._parameters)) for module in network.modules()]
        self.weights_move = False
        self.weights = [(p, p.detach().clone()) for p in network.parameters()]
        self.names = {module: name for name, module in network.named_modules()}
        held = {id(b): b for _, buffers, _ in self.modules for b in buffers.values() if b is not None}
        self.values = _copies(held)

    def leave_out(self, names: Iterable[str]) -> None:
        """Exclude some modules, such as those whose buffers were changed on purpose."""
        self.modules = [entry for entry in self.modules if self.names[entry[0]] not in set(names)]

    def changed(self) -> bool:
        """Return whether the value of a weight, of a buffer or of a plain attribute has changed."""
        self.weights_move = any(not torch.equal(p, value) for p, value in self.weights)
        if self.weights_move:
            return True
        for module, buffers, attributes in self.modules:
            for name, buffer in buffers.items():
                now = module._buffers.get(name)
                if (now is None) != (buffer is None) or (now is not None and not _equal(now, self.values[id(buffer)])):
                    return True
            if any(not _equal(vars(module).get(name), value) for name, value in attributes.items()):
                return True
        return False

    def put_back(self) -> None:
        """Restore the state; buffers become new copies, because a recorded graph may hold those of the last pass."""
        if self.weights_move:  # changed by a forward pass, through `.data`
            for p, value in self.weights:
                p.data.copy_(value)
        fresh = _copies(self.values)
        for module, buffers, attributes in self.modules:
            for name, buffer in buffers.items():
                module._buffers[name] = None if buffer is None else fresh[id(buffer)]
            vars(module).update(attributes)

    def repair(self) -> None:
        """Restore the state and the parameters themselves, which a transform that failed midway may have replaced."""
        for module, parameters in self.parameters:
            module._parameters.clear()
            module._parameters.update(parameters)
        self.put_back()


_REGISTRIES = frozenset(vars(nn.Module()))
"""Attributes that every module has, such as the registries of parameters and hooks; the others are plain attributes."""


def _copies(buffers: dict[int, Tensor]) -> dict[int, Tensor]:
    """Copies of buffers by identity, which share memory where the buffers do: one module may read another's changes."""
    return copy.deepcopy({key: buffer.detach() for key, buffer in buffers.items()})


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all()))
    if isinstance(a, int | float | str | bool | None) and isinstance(b, int | float | str | bool | None):
        return a == b
    return True  # not comparable: a change that matters shows in the outputs


@contextmanager
def restarted(network: nn.Module, few: Inputs, state: State) -> Iterator[bool]:
    """Start every forward pass from a state within the context, if passes change it. Yield whether they do.

    Args:
        network: The network.
        few: Some samples.
        state: State of the network as it was given.

    Raises:
        NoStatistics: The same input and state give different outputs nevertheless.
    """
    # Earlier passes may have changed the state; the next one shows whether a single pass does.
    if state.changed():
        state.put_back()
    first = network(few).detach()
    stateful, handle = state.changed(), None
    if stateful:
        handle = network.register_forward_pre_hook(lambda *_: state.put_back(), prepend=True)
    try:
        first, second = network(few).detach() if stateful else first, network(few).detach()
        # Not equality: atomic additions on a GPU change the last digits.
        allowed = (1e-10 if first.dtype == torch.float64 else 1e-4) * first.abs().max()
        if not (first - second).abs().max() <= allowed:
            raise NoStatistics(
                "the network gives different outputs for the same input, weights and buffers: "
                "let its forward depend on nothing else."
            )
        yield stateful
    finally:
        if handle:
            handle.remove()
            state.put_back()
