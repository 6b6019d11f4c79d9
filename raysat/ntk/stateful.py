"""Networks that change in their forward pass: every pass begins with the state that was given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from raysat.data.fields import Inputs
from raysat.ntk.refusal import NoStatistics


class State:
    """Buffers and attributes of a network, to begin each pass with."""

    def __init__(self, network: nn.Module) -> None:
        self.modules = [
            (module, dict(module._buffers), {k: v for k, v in vars(module).items() if k not in _REGISTRIES})
            for module in network.modules()
        ]
        self.parameters = [(module, dict(module._parameters)) for module in network.modules()]
        self.weights_move = False
        self.weights = [(p, p.detach().clone()) for p in network.parameters()]
        self.names = {module: name for name, module in network.named_modules()}
        self.values = {id(b): b.clone() for _, buffers, _ in self.modules for b in buffers.values() if b is not None}

    def leave_out(self, names: Iterable[str]) -> None:
        """Say nothing of some modules, such as those whose buffers were changed on purpose."""
        self.modules = [entry for entry in self.modules if self.names[entry[0]] not in set(names)]

    def changed(self) -> bool:
        """Return whether a weight or a buffer has another value, or a plain attribute is another one."""
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
        """Fresh copies of the buffers, for a recorded graph may hold those of the pass before."""
        if self.weights_move:  # a forward pass changes them through `.data`
            for p, value in self.weights:
                p.data.copy_(value)
        for module, buffers, attributes in self.modules:
            for name, buffer in buffers.items():
                module._buffers[name] = None if buffer is None else self.values[id(buffer)].clone()
            vars(module).update(attributes)

    def repair(self) -> None:
        """Parameters where they were, also after a transform that was torn out of its course."""
        for module, parameters in self.parameters:
            module._parameters.clear()
            module._parameters.update(parameters)
        self.put_back()


_REGISTRIES = frozenset(vars(nn.Module()))


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all()))
    if isinstance(a, int | float | str | bool | None) and isinstance(b, int | float | str | bool | None):
        return a == b
    return True  # what cannot be compared shows in the outputs


@contextmanager
def restarted(network: nn.Module, few: Inputs, state: State) -> Iterator[bool]:
    """Let every forward pass begin with a state, if passes change it. Yields whether they do.

    Args:
        network: The network.
        few: Some samples.
        state: As it was given.

    Raises:
        NoStatistics: The same input, weights and buffers give different outputs even so.
    """
    if state.changed():
        state.put_back()
    first = network(few).detach()
    stateful, handle = state.changed(), None
    if stateful:
        handle = network.register_forward_pre_hook(lambda *_: state.put_back(), prepend=True)
    try:
        first, second = network(few).detach() if stateful else first, network(few).detach()
        # Atomic additions of a GPU make the last digits differ.
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
