"""Recurrent layers as loops of linear maps, in place of fused kernels that lack second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

State = tuple[Tensor, ...]
"""The state h, and for an LSTM also c. Shape of each: [n, hidden]."""


@contextmanager
def unrolled(network: nn.Module) -> Iterator[None]:
    """Run the network's `nn.RNN`, `nn.LSTM` and `nn.GRU` layers as loops within the context."""
    kinds = nn.RNN, nn.LSTM, nn.GRU
    # Exact types: a subclass, or an instance with its own `forward`, may compute something else.
    layers = [
        m for m in network.modules() if isinstance(m, nn.RNNBase) and type(m) in kinds and "forward" not in vars(m)
    ]
    for layer in layers:
        layer.__dict__["forward"] = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _forward(
    layer: nn.RNNBase, x: Tensor | PackedSequence, hx: Tensor | State | None = None
) -> tuple[Tensor | PackedSequence, Tensor | State]:
    """Compute the layer's forward pass (formulas: documentation of `torch.nn.LSTM`, `GRU` and `RNN`)."""
    dropout = layer.dropout > 0 and layer.training and layer.num_layers > 1
    if not isinstance(x, Tensor) or dropout:  # packed sequences, and dropout between layers: PyTorch's own forward
        return type(layer).forward(layer, x, hx)
    alone = x.ndim == 2
    if alone:  # one sequence without a batch axis
        x = x.unsqueeze(0 if layer.batch_first else 1)
        hx = None if hx is None else tuple(h.unsqueeze(1) for h in hx) if isinstance(hx, tuple) else hx.unsqueeze(1)
    if layer.batch_first:
        x = x.transpose(0, 1)  # [length, n, features], as without batch_first
    states = (hx if isinstance(hx, tuple) else (hx,)) if hx is not None else None
    directions = 2 if layer.bidirectional else 1
    sequence, ends = list(x), []  # one [n, features] per time
    for depth in range(layer.num_layers):
        passes = []
        for direction in range(directions):
            k = depth * directions + direction  # PyTorch's order of weights and states
            start = _start(layer, x) if states is None else tuple(state[k] for state in states)
            steps, end = _along(layer, k, sequence[::-1] if direction else sequence, start)
            passes.append(steps[::-1] if direction else steps)
            ends.append(end)
        sequence = [torch.cat(step, -1) for step in zip(*passes, strict=True)]
    output = torch.stack(sequence, 1 if layer.batch_first else 0)
    last = tuple(torch.stack(parts) for parts in zip(*ends, strict=True))
    if alone:
        output, last = output.squeeze(0 if layer.batch_first else 1), tuple(part.squeeze(1) for part in last)
    return output, last if isinstance(layer, nn.LSTM) else last[0]


def _start(layer: nn.RNNBase, x: Tensor) -> State:
    """Return the zero initial state; with projections, h has `proj_size` features and c has `hidden_size`."""
    zeros = x.new_zeros(x.shape[1], layer.hidden_size)
    return (x.new_zeros(x.shape[1], layer.proj_size or layer.hidden_size), zeros)[: 1 + isinstance(layer, nn.LSTM)]


def _along(layer: nn.RNNBase, k: int, sequence: list[Tensor], state: State) -> tuple[list[Tensor], State]:
    """Run one layer in one direction; return the outputs along the sequence, and the last state."""
    weights = layer._all_weights[k]

    def of(name: str) -> Any:
        return next((getattr(layer, w) for w in weights if w.startswith(name)), None)

    w_in, w_hidden, b_in, b_hidden, w_out = map(of, ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"))
    step = _STEPS[type(layer)](layer)
    outputs = []
    for x in sequence:
        state = step(F.linear(x, w_in, b_in), F.linear(state[0], w_hidden, b_hidden), state)
        if w_out is not None:
            state = F.linear(state[0], w_out), *state[1:]  # an LSTM with `proj_size` projects h
        outputs.append(state[0])
    return outputs, state


Step = Callable[[Tensor, Tensor, State], State]
"""One time step, `(W_ih x + b_ih, W_hh h + b_hh, state) -> state`."""


def _lstm(layer: nn.RNNBase) -> Step:
    def step(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
        i, f, g, o = (from_input + from_hidden).chunk(4, -1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    return step


def _gru(layer: nn.RNNBase) -> Step:
    def step(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
        (r, z, n), (hidden_r, hidden_z, hidden_n) = from_input.chunk(3, -1), from_hidden.chunk(3, -1)
        z = (z + hidden_z).sigmoid()
        # The reset gate acts on W_hn h + b_hn, as in PyTorch; in the original paper it acts on h.
        n = (n + (r + hidden_r).sigmoid() * hidden_n).tanh()
        return ((1 - z) * n + z * state[0],)

    return step


def _rnn(layer: nn.RNNBase) -> Step:
    activation = torch.tanh if layer.nonlinearity == "tanh" else torch.relu
    return lambda from_input, from_hidden, state: (activation(from_input + from_hidden),)


_STEPS: dict[type[nn.RNNBase], Callable[[nn.RNNBase], Step]] = {nn.LSTM: _lstm, nn.GRU: _gru, nn.RNN: _rnn}
