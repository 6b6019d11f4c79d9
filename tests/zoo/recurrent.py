"""Recurrent layers and cells."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn.utils import rnn

from raysat.data.fields import Fields
from raysat.models.unpacked import Unpacked

from .case import Wired, add, case, evaluated, tokens, vectors


class Recurrent(nn.Module):
    """A recurrent layer and a readout of its last outputs, or of its last state."""

    def __init__(self, kind: type[nn.RNNBase], state: bool = False, **options: object) -> None:
        super().__init__()
        self.rnn, self.state = kind(3, 6, **options), state
        size = (self.rnn.proj_size or 6) * (2 if self.rnn.bidirectional else 1)
        self.head = nn.Linear(size if not state else size * self.rnn.num_layers, 2)

    def forward(self, x):
        outputs, state = self.rnn(x if self.rnn.batch_first else x.transpose(0, 1))
        if self.state:
            hidden = state[0] if isinstance(state, tuple) else state
            return self.head(hidden.transpose(0, 1).flatten(1))
        return self.head(outputs[:, -1] if self.rnn.batch_first else outputs[-1])


def _recurrent(kind: type[nn.RNNBase], n: int = 7, **options: object):
    return Recurrent(kind, **options), vectors(5, 3, n=n)


LAYERS = {
    "": {"batch_first": True},
    ", sequence first": {},
    ", two layers": {"batch_first": True, "num_layers": 2},
    ", both ways": {"batch_first": True, "bidirectional": True},
    ", two layers, both ways, last state": {"num_layers": 2, "bidirectional": True, "state": True},
    ", no bias": {"batch_first": True, "bias": False},
}
for _kind in (nn.RNN, nn.LSTM, nn.GRU):
    for _name, _options in LAYERS.items():
        add("recurrent", f"{_kind.__name__}{_name}", partial(_recurrent, _kind, **_options))
    add("recurrent", f"{_kind.__name__}, eval", lambda _kind=_kind: (_recurrent(_kind)[0].eval(), vectors(5, 3)))
    add("recurrent", f"{_kind.__name__}, classes", partial(_recurrent, _kind, batch_first=True), loss="cross_entropy")
    _options = {"batch_first": True, "num_layers": 2, "dropout": 0.4}
    add(
        "random layers",
        f"{_kind.__name__} with dropout, train",
        partial(_recurrent, _kind, **_options),
        meant=evaluated,
    )
add("recurrent", "RNN of ReLU", partial(_recurrent, nn.RNN, batch_first=True, nonlinearity="relu"))
add("recurrent", "LSTM, projected", partial(_recurrent, nn.LSTM, batch_first=True, proj_size=4))
add(
    "recurrent",
    "LSTM, projected, two layers, both ways",
    partial(_recurrent, nn.LSTM, num_layers=2, proj_size=4, bidirectional=True),
)
add("recurrent", "LSTM, as many samples as positions", partial(_recurrent, nn.LSTM, n=5))
add("recurrent", "GRU, as many samples as features", partial(_recurrent, nn.GRU, n=3, batch_first=True))
add("recurrent", "LSTM, memory for one sample", partial(_recurrent, nn.LSTM, batch_first=True), options={"memory": 1})


def _cell(kind: type[nn.RNNCellBase], steps: int, **options: object):
    def forward(self, x):
        state = None
        for step in range(steps):
            state = self.cell(x[:, step], state)
        return self.head(state[0] if isinstance(state, tuple) else state)

    return Wired(forward, cell=kind(3, 6, **options), head=nn.Linear(6, 2)), vectors(5, 3)


for _kind in (nn.RNNCell, nn.LSTMCell, nn.GRUCell):
    add("recurrent", f"{_kind.__name__} in a loop", partial(_cell, _kind, 5))
add("recurrent", "GRUCell, one step, no bias", partial(_cell, nn.GRUCell, 1, bias=False))


@case("recurrent", "LSTM with a learned first state")
def _():
    def forward(self, x):
        first = tuple(state[:, None].expand(-1, len(x), -1).contiguous() for state in (self.h, self.c))
        return self.head(self.rnn(x, first)[0].mean(1))

    states = {name: nn.Parameter(torch.randn(1, 6)) for name in ("h", "c")}
    return Wired(forward, rnn=nn.LSTM(3, 6, batch_first=True), head=nn.Linear(6, 2), **states), vectors(5, 3)


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(9, 4), nn.GRU(4, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, tokens, lengths):
        packed = rnn.pack_padded_sequence(self.embed(tokens), lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][-1])


@case("recurrent", "GRU of packed sequences", loss="cross_entropy")
def _():
    x = Fields({"tokens": tokens(6, 9), "lengths": torch.tensor([6, 3, 4, 6, 1, 2, 5])})
    return Unpacked(Packed()), x


@case("recurrent", "language model of an LSTM", loss="cross_entropy")
def _():
    def forward(self, x):
        return self.head(self.rnn(self.embed(x))[0])

    parts = {"embed": nn.Embedding(6, 4), "rnn": nn.LSTM(4, 5, batch_first=True), "head": nn.Linear(5, 6)}
    return Wired(forward, **parts), tokens(4, 6)


@case("recurrent", "state space: a scan by hand")
def _():
    def forward(self, x):
        decay, state, outputs = torch.sigmoid(self.decay), 0, []
        for step in self.inner(x).unbind(1):
            state = decay * state + step
            outputs.append(torch.tanh(state))
        return self.head(torch.stack(outputs, 1).mean(1))

    return Wired(forward, decay=nn.Parameter(torch.randn(6)), inner=nn.Linear(3, 6), head=nn.Linear(6, 2)), vectors(
        5, 3
    )
