"""Networks that change tensors in place."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from .case import Wired, add, case, evaluated, read_out, tokens, vectors

KIND = "in place"


def _convolutions(activation: nn.Module):
    return read_out(nn.Conv2d(2, 4, 3), activation, nn.Conv2d(4, 4, 2), activation, x=vectors(2, 6, 5))


for _activation in (nn.ReLU, nn.ELU, nn.SiLU, nn.LeakyReLU, nn.Hardtanh, nn.ReLU6, nn.CELU, nn.Hardswish):
    add(KIND, f"{_activation.__name__}(inplace=True)", lambda kind=_activation: _convolutions(kind(inplace=True)))
add(KIND, "ReLU(inplace=True), classes", lambda: _convolutions(nn.ReLU(True)), loss="cross_entropy")
add(KIND, "ReLU(inplace=True), memory for one sample", lambda: _convolutions(nn.ReLU(True)), options={"memory": 1})


def _wired(forward, *shape: int, n: int = 7, **parts: nn.Module):
    parts = {"one": nn.Linear(4, 4), "two": nn.Linear(4, 4), "head": nn.Linear(4, 3)} | parts
    return Wired(forward, **parts), vectors(*(shape or (4,)), n=n)


def _shortcut(self, x):
    out = self.two(torch.relu(self.one(x)))
    out += x
    return self.head(torch.relu_(out))


def _scaled(self, x):
    h = self.one(x)
    gate = torch.sigmoid(self.two(x))
    h.mul_(gate).add_(x)
    return self.head(h)


def _own_output_returned(self, x):
    h = torch.tanh(self.two(torch.tanh(self.one(x))))
    out = self.head(h)
    out -= out.mean(1, keepdim=True)
    return out.mul_(2.0)


def _column_set(self, x):
    h = torch.tanh(self.one(x))
    h = h.clone()
    h[:, 0] = self.two(x)[:, 1]
    h[:, 2:] *= 0.5
    return self.head(h)


def _buffer_filled(self, x):
    steps = x.new_zeros(len(x), 3, 4)
    state = x
    for k in range(3):
        state = torch.tanh(self.one(state)) + self.two(x)
        steps[:, k] = state
    return self.head(steps).mean(1)


def _masked(self, x):
    h = self.one(x)
    h.masked_fill_(x < 0, 0.1)
    h[h > 1] = 1.0
    return self.head(torch.tanh(self.two(h)))


def _functional(self, x):
    h = F.leaky_relu(self.one(x), 0.1, inplace=True)
    h = F.relu(self.two(h), inplace=True)
    return self.head(F.dropout(h, 0.5, training=False, inplace=True))


def _accumulated(self, x):
    total = torch.zeros_like(x)
    for layer in (self.one, self.two, self.one):
        total += torch.tanh(layer(x))
    return self.head(total)


def _chunk_changed(self, x):
    h = self.one(x)
    left, right = h.tensor_split(2, dim=1)
    out = torch.cat([left * 1.0, right.sigmoid()], 1)
    out[:, :2].tanh_()
    return self.head(out)


FORWARDS = {
    "out += x; relu_": _shortcut,
    "mul_ by a gate, add_": _scaled,
    "the output itself": _own_output_returned,
    "columns set by index": _column_set,
    "a buffer filled step by step": _buffer_filled,
    "masked_fill_ and boolean assignment": _masked,
    "inplace=True of torch.nn.functional": _functional,
    "a sum accumulated": _accumulated,
    "a view changed": _chunk_changed,
}
for _name, _forward in FORWARDS.items():
    add(KIND, _name, partial(_wired, _forward))


@case(KIND, "ReLU(inplace=True) on the samples themselves")
def _():
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)), vectors(5)


@case(KIND, "a sum into the output of an embedding", loss="cross_entropy")
def _():
    def forward(self, x):
        h = self.embed(x)
        h += self.place.weight
        h[:, 0] += 1.0
        return self.head(h.relu_().mean(1))

    return Wired(forward, embed=nn.Embedding(9, 4), place=nn.Embedding(6, 4), head=nn.Linear(4, 3)), tokens(6, 9)


@case(KIND, "index_add_ and scatter_add_")
def _():
    def forward(self, x):
        edges = torch.tensor([[0, 1, 2, 2, 3], [1, 0, 3, 0, 2]])
        messages = torch.tanh(self.message(x[:, edges[0]]))
        h = self.inner(x)
        h.index_add_(1, edges[1], messages)
        return self.head(torch.relu_(h)).mean(1)

    return Wired(forward, message=nn.Linear(3, 5), inner=nn.Linear(3, 5), head=nn.Linear(5, 2)), vectors(4, 3)


@case("random layers", "Dropout(inplace=True), train", meant=evaluated)
def _():
    layers = [nn.Linear(5, 6), nn.ReLU(True), nn.Dropout(0.5, inplace=True), nn.Linear(6, 4), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Linear(4, 3)), vectors(5)
