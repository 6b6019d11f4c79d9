"""A grammar of networks, from which hypothesis draws: layers of every kind, shared, in place, broadcast, branching.

A network is built as it is drawn, step by step, from the shape of one sample: a vector (d,), a sequence (t, d), an
image (c, h, w), or tokens (t,). Sizes are small, so that the number of samples often is that of positions, features, or
outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from zoo.case import Wired
from zoo.control import Cube, Product

Shape = tuple[int, ...]
RARE = 50
"""One network in so many mixes its samples, and one draws: what must be refused."""


@dataclass
class Drawn:
    """A network with samples, as hypothesis drew it.

    Attributes:
        network: The network, float32.
        x: Samples.
        classes: C, or V of outputs [n, L, V].
        loss: The loss.
        memory: Bytes for the statistics.
        said: What it is made of, in words.
        mixes: Whether a step makes samples depend on each other.
        draws: Whether a step draws, whatever the mode.
    """

    network: nn.Module
    x: Tensor
    classes: int
    loss: str
    memory: int
    said: list[str]
    mixes: bool
    draws: bool

    def __repr__(self) -> str:
        steps = "\n    ".join(self.said)
        return f"{self.loss} of {self.classes}, x {list(self.x.shape)}, memory {self.memory}:\n    {steps}"


@dataclass
class Drawing:
    """What is known while a network is drawn.

    Attributes:
        draw: Draws from a strategy.
        n: Samples.
        said: The steps so far, in words.
        depth: How deep steps are nested.
        shared: Whether the steps are called several times.
        fresh: Whether nothing needs the last step's output for its backward pass, so that it may be changed in place.
        mixes: See `Drawn`.
        draws: Likewise.
    """

    draw: Callable
    n: int
    said: list[str] = field(default_factory=list)
    depth: int = 0
    shared: bool = False
    fresh: bool = False
    mixes: bool = False
    draws: bool = False

    def of(self, *values):
        """One of some values, each as likely."""
        return self.draw(st.sampled_from(values))

    def size(self, least: int = 2, most: int = 6) -> int:
        return self.draw(st.integers(least, most))

    def say(self, words: str) -> None:
        self.said.append("  " * self.depth + words)


Made = tuple[nn.Module, Shape]
STEPS: dict[str, tuple[tuple[int, ...], Callable[[Drawing, Shape, bool], Made | None]]] = {}
"""The steps, each with the numbers of axes of a sample that it takes; None where it does not fit after all."""


def step(*axes: int):
    """Register a step: `(drawing, shape of a sample, whether the shape must stay) -> module and new shape`."""

    def register(make):
        STEPS[make.__name__] = axes, make
        return make

    return register


def one_step(g: Drawing, shape: Shape, keep: bool) -> Made:
    """A step that fits, or the identity."""
    names = [name for name, (axes, _) in STEPS.items() if len(shape) in axes]
    for _ in range(3):
        name = g.of(*names)
        at = len(g.said)
        g.say(f"{name} {list(shape)}")
        was_fresh = g.fresh
        made = STEPS[name][1](g, shape, keep)
        if made is not None and (not keep or made[1] == shape):
            g.said[at] += "" if made[1] == shape else f" -> {list(made[1])}"
            g.fresh = name in FRESH
            return made
        g.fresh = was_fresh
        del g.said[at:]
    return nn.Identity(), shape


FRESH = {"linear", "convolution", "convolution_1d", "transposed", "norm", "image_norm", "experts", "gate", "positions"}


def some_steps(g: Drawing, shape: Shape, keep: bool, most: int = 2) -> Made:
    """One step or several, within another."""
    g.depth += 1
    g.fresh = False
    made = []
    for _ in range(g.size(1, most)):
        module, shape = one_step(g, shape, keep)
        made.append(module)
    g.depth -= 1
    return nn.Sequential(*made), shape


# Layers ---------------------------------------------------------------------------------------------------------------


def _sequence_first(self, x):
    return self.layer(x.transpose(0, 1)).transpose(0, 1)


def _folded(self, x):
    return self.layer(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


def _one_by_one(self, x):
    return torch.stack([self.layer(sample) for sample in x])


LINEAR = {
    "module": lambda self, x: self.layer(x),
    "keyword": lambda self, x: self.layer(input=x),
    "F.linear": lambda self, x: F.linear(x, self.layer.weight, self.layer.bias),
    "product": lambda self, x: x @ self.layer.weight.T + self.layer.bias,
    "einsum": lambda self, x: torch.einsum("n...i,ui->n...u", x, self.layer.weight) + self.layer.bias,
    "absolute": lambda self, x: F.linear(x, self.layer.weight.abs()),
    "own function": lambda self, x: Product.apply(x, self.layer.weight) + self.layer.bias,
    "sequence first": _sequence_first,
    "folded": _folded,
    "one by one": _one_by_one,
}


@step(1, 2, 3)
def linear(g: Drawing, shape: Shape, keep: bool) -> Made:
    how = g.of(*(name for name in LINEAR if name not in ("sequence first", "folded") or len(shape) > 1))
    g.said[-1] += f", {how}"
    units = shape[-1] if keep else g.size()
    return Wired(LINEAR[how], layer=nn.Linear(shape[-1], units)), (*shape[:-1], units)


@step(1, 2, 3)
def activation(g: Drawing, shape: Shape, keep: bool) -> Made:
    inplace = g.fresh and g.of(True, False)
    kinds = {"ReLU": nn.ReLU, "ELU": nn.ELU, "SiLU": nn.SiLU, "LeakyReLU": nn.LeakyReLU, "Hardtanh": nn.Hardtanh}
    name = g.of(*kinds, *([] if inplace else ("Tanh", "GELU", "PReLU", "PReLU of channels")))
    g.said[-1] += f", {name}{' in place' if inplace else ''}"
    if name.startswith("PReLU"):
        return nn.PReLU(shape[0] if "channels" in name else 1), shape
    return kinds[name](inplace=True) if inplace else getattr(nn, name)(), shape


@step(1, 2, 3)
def norm(g: Drawing, shape: Shape, keep: bool) -> Made:
    over = g.of(*range(1, len(shape) + 1))
    kind = g.of(nn.LayerNorm, nn.RMSNorm)
    g.said[-1] += f", {kind.__name__} over {over}"
    return _spread(kind(shape[-over:])), shape


@step(1, 2, 3)
def broadcast(g: Drawing, shape: Shape, keep: bool) -> Made:
    leave = g.size(0, len(shape))
    ones = g.size(0, 2)
    form = (1,) * ones + shape[len(shape) - leave :] if len((1,) * ones) + leave <= len(shape) + 1 else shape
    how = g.of("add", "multiply")
    g.said[-1] += f", {how} {list(form)}"
    work = {"add": lambda self, x: x + self.weight, "multiply": lambda self, x: x * self.weight}[how]
    return Wired(work, weight=nn.Parameter(torch.randn(form) + 1)), shape


@step(2)
def positions(g: Drawing, shape: Shape, keep: bool) -> Made:
    t, d = shape
    forms = {
        "[t]": lambda self, x: x + self.table(torch.arange(t)),
        "[1, t]": lambda self, x: x + self.table(torch.arange(t)[None]),
        "expanded": lambda self, x: x + self.table(torch.arange(t)[None].expand(len(x), -1)),
        "the weight": lambda self, x: x + self.table.weight,
        "in place": lambda self, x: x.clone().add_(self.table(torch.arange(t))),
        "through a layer": lambda self, x: x + torch.tanh(self.layer(self.table(torch.arange(t)))),
    }
    how = g.of(*forms)
    g.said[-1] += f", {how}"
    return Wired(forms[how], table=nn.Embedding(t, d), layer=nn.Linear(d, d)), shape


@step(2)
def attention(g: Drawing, shape: Shape, keep: bool) -> Made | None:
    _, d = shape
    if d % 2:
        return None
    how = g.of("SDPA", "causal", "written out", "MultiheadAttention", "sequence first", "with weights")
    g.said[-1] += f", {how}"
    if how in ("SDPA", "causal", "written out"):

        def attend(self, x):
            q, k, v = (z.unflatten(2, (2, d // 2)).transpose(1, 2) for z in self.qkv(x).chunk(3, -1))
            if how == "written out":
                z = torch.softmax(q @ k.mT, -1) @ v
            else:
                z = F.scaled_dot_product_attention(q, k, v, is_causal=how == "causal")
            return self.out(z.transpose(1, 2).flatten(2))

        return Wired(attend, qkv=nn.Linear(d, 3 * d), out=nn.Linear(d, d)), shape

    first = how != "sequence first"

    def own(self, x):
        z = x if first else x.transpose(0, 1)
        z, weights = self.layer(z, z, z, need_weights=how == "with weights")
        z = z if first else z.transpose(0, 1)
        return z if weights is None else z + weights.mean(2, keepdim=True)

    return Wired(own, layer=nn.MultiheadAttention(d, 2, batch_first=first)), shape


@step(2)
def recurrence(g: Drawing, shape: Shape, keep: bool) -> Made:
    kind, how = g.of(nn.RNN, nn.LSTM, nn.GRU), g.of("layer", "sequence first", "cell")
    units = shape[1] if keep else g.size(2, 4)
    g.said[-1] += f", {kind.__name__}, {how}"
    if how == "cell":
        cell = {nn.RNN: nn.RNNCell, nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell}[kind](shape[1], units)

        def loop(self, x):
            state, found = None, []
            for part in x.unbind(1):
                state = self.cell(part, state)
                found.append(state[0] if isinstance(state, tuple) else state)
            return torch.stack(found, 1)

        return Wired(loop, cell=cell), (shape[0], units)
    if how == "layer":
        return Wired(lambda self, x: self.rnn(x)[0], rnn=kind(shape[1], units, batch_first=True)), (shape[0], units)

    def run(self, x):
        return self.rnn(x.transpose(0, 1))[0].transpose(0, 1)

    return Wired(run, rnn=kind(shape[1], units)), (shape[0], units)


@step(2)
def convolution_1d(g: Drawing, shape: Shape, keep: bool) -> Made:
    t, d = shape
    units, k = d if keep else g.size(1, 4), g.of(1, 3) if keep else g.size(1, min(3, t))
    layer = nn.Conv1d(d, units, k, padding=k // 2 if keep else 0)
    return Wired(lambda self, x: self.conv(x.mT).mT, conv=layer), (t if keep else t - k + 1, units)


@step(3)
def convolution(g: Drawing, shape: Shape, keep: bool) -> Made:
    c, h, w = shape
    mode = g.of("zeros", "zeros", "circular")
    if keep:
        return nn.Conv2d(c, c, 3, padding=1, groups=g.of(1, c), padding_mode=mode), shape
    kh, kw, s = g.size(1, min(3, h)), g.size(1, min(3, w)), g.of(1, 1, 2)
    units = g.size(1, 4)
    return nn.Conv2d(c, units, (kh, kw), stride=s), (units, (h - kh) // s + 1, (w - kw) // s + 1)


@step(3)
def transposed(g: Drawing, shape: Shape, keep: bool) -> Made | None:
    c, h, w = shape
    if keep or h * w > 12:
        return None
    units = g.size(1, 3)
    return nn.ConvTranspose2d(c, units, 2), (units, h + 1, w + 1)


@step(3)
def image_norm(g: Drawing, shape: Shape, keep: bool) -> Made | None:
    c, h, w = shape
    kinds = ["GroupNorm", "InstanceNorm2d", "BatchNorm2d, eval", "BatchNorm2d, eval"]
    if not g.shared and g.n * h * w > 1:
        kinds.append("BatchNorm2d, train")
    name = g.of(*kinds)
    if name == "InstanceNorm2d" and h * w == 1:
        return None
    g.said[-1] += f", {name}"
    if name == "GroupNorm":
        return _spread(nn.GroupNorm(1, c)), shape
    if name == "InstanceNorm2d":
        return _spread(nn.InstanceNorm2d(c, affine=True)), shape
    layer = _spread(nn.BatchNorm2d(c))
    nn.init.normal_(layer.running_mean)
    return layer.train(name.endswith("train")), shape


def _spread(layer: nn.Module) -> nn.Module:
    """Weights other than all 1, which would hide that they are used."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 0.5)
    return layer


# Shapes ---------------------------------------------------------------------------------------------------------------


@step(2, 3)
def permuted(g: Drawing, shape: Shape, keep: bool) -> Made | None:
    if keep:
        return None
    return Wired(lambda self, x: x.transpose(1, -1)), (shape[-1], *shape[1:-1], shape[0])


@step(2, 3)
def pooled(g: Drawing, shape: Shape, keep: bool) -> Made | None:
    if keep:
        return None
    how = g.of("mean", "last", "largest")
    g.said[-1] += f", {how}"
    work = {"mean": lambda self, x: x.mean(1), "last": lambda self, x: x[:, -1], "largest": lambda self, x: x.amax(1)}
    return Wired(work[how]), shape[1:]


@step(1)
def unflattened(g: Drawing, shape: Shape, keep: bool) -> Made | None:
    if keep or shape[0] % 2:
        return None
    return nn.Unflatten(1, (2, shape[0] // 2)), (2, shape[0] // 2)


@step(3)
def pixels(g: Drawing, shape: Shape, keep: bool) -> Made | None:
    if keep or shape[1] * shape[2] > 12:
        return None
    return Wired(lambda self, x: x.flatten(2).mT), (shape[1] * shape[2], shape[0])


# Structure ------------------------------------------------------------------------------------------------------------


def _added_in_place(self, x):
    out = self.body(x)
    out = out + 0  # of its own memory, whatever the body ends in
    out += x
    return out


@step(1, 2, 3)
def residual(g: Drawing, shape: Shape, keep: bool) -> Made | None:
    if g.depth > 1:
        return None
    how = g.of("sum", "in place", "half")
    g.said[-1] += f", {how}"
    body, _ = some_steps(g, shape, True)
    forms = {
        "sum": lambda self, x: x + self.body(x),
        "in place": _added_in_place,
        "half": lambda self, x: torch.add(x, self.body(x), alpha=0.5),
    }
    return Wired(forms[how], body=body), shape


@step(1, 2, 3)
def branches(g: Drawing, shape: Shape, keep: bool) -> Made | None:
    if g.depth > 1:
        return None
    how = g.of("sum", "product", "joined")
    g.said[-1] += f", {how}"
    one, two = some_steps(g, shape, True)[0], some_steps(g, shape, True)[0]
    forms = {
        "sum": lambda self, x: self.one(x) + self.two(x),
        "product": lambda self, x: self.one(x) * torch.tanh(self.two(x)),
        "joined": lambda self, x: self.out(torch.cat([self.one(x), self.two(x)], -1)),
    }
    return Wired(forms[how], one=one, two=two, out=nn.Linear(2 * shape[-1], shape[-1])), shape


@step(1, 2, 3)
def repeated(g: Drawing, shape: Shape, keep: bool) -> Made | None:
    if g.depth > 1:
        return None
    times, before = g.size(2, 3), g.shared
    g.said[-1] += f", {times} times"
    g.shared = True
    body, _ = some_steps(g, shape, True)
    g.shared = before

    def repeat(self, x):
        for _ in range(times):
            x = torch.tanh(self.body(x))
        return x

    return Wired(repeat, body=body), shape


@step(1, 2, 3)
def checkpointed(g: Drawing, shape: Shape, keep: bool) -> Made | None:
    if g.depth > 1 or any("train" in words for words in g.said):
        return None
    reentrant = g.of(True, False)
    g.said[-1] += ", reentrant" if reentrant else ""
    before, g.shared = g.shared, True  # its steps run again in the backward pass
    body, _ = some_steps(g, shape, True)
    g.shared = before
    return Wired(lambda self, x: checkpoint(self.body, x, use_reentrant=reentrant), body=body), shape


@step(1, 2, 3)
def tied(g: Drawing, shape: Shape, keep: bool) -> Made:
    forms = {
        "modules": lambda self, x: self.two(torch.tanh(self.one(x))),
        "F.linear": lambda self, x: F.linear(torch.tanh(self.one(x)), self.one.weight),
        "transposed": lambda self, x: torch.tanh(self.one(x)) @ self.one.weight,
        "size": lambda self, x: self.one(x) * self.one.weight.square().mean(),
    }
    how = g.of(*forms)
    g.said[-1] += f", {how}"
    network = Wired(forms[how], one=nn.Linear(shape[-1], shape[-1]), two=nn.Linear(shape[-1], shape[-1]))
    network.two.weight = network.one.weight
    return network, shape


@step(1, 2, 3)
def gate(g: Drawing, shape: Shape, keep: bool) -> Made:
    def forward(self, x):
        h = self.one(x)
        return h.mul_(torch.sigmoid(self.two(x))) if inplace else h * torch.sigmoid(self.two(x))

    inplace = g.of(True, False)
    g.said[-1] += ", in place" if inplace else ""
    return Wired(forward, one=nn.Linear(shape[-1], shape[-1]), two=nn.Linear(shape[-1], shape[-1])), shape


@step(1, 2)
def experts(g: Drawing, shape: Shape, keep: bool) -> Made:
    how = g.of("dense", "index", "mask")
    g.said[-1] += f", {how}"

    def forward(self, x):
        flat = x.flatten(0, -2)
        weights = self.route(flat).softmax(-1)
        if how == "dense":
            return (torch.stack([e(flat) for e in self.experts], -1) * weights[:, None]).sum(-1).view_as(x)
        out = torch.zeros_like(flat)
        for k, expert in enumerate(self.experts):
            chosen = weights.argmax(-1) == k
            if how == "mask":
                out[chosen] = weights[chosen, k : k + 1] * expert(flat[chosen])
            else:
                index = chosen.nonzero()[:, 0]
                out.index_add_(0, index, weights[index, k : k + 1] * expert(flat[index]))
        return out.view_as(x)

    d = shape[-1]
    return Wired(forward, route=nn.Linear(d, 2), experts=nn.ModuleList([nn.Linear(d, d) for _ in range(2)])), shape


@step(1, 2, 3)
def by_value(g: Drawing, shape: Shape, keep: bool) -> Made:
    forms = {
        "a branch": lambda self, x: torch.stack([self.one(s) if s.sum() > 0 else self.two(s).sin() for s in x]),
        "sorted": lambda self, x: self.one(x.sort(-1).values),
        "where": lambda self, x: torch.where(x > 0, self.one(x), self.two(x)),
        "assigned": _assigned,
        "once differentiable": lambda self, x: Cube.apply(torch.tanh(self.one(x))),
        "detached": lambda self, x: self.one(x) * torch.tanh(self.two(x)).detach(),
    }
    how = g.of(*forms)
    g.said[-1] += f", {how}"
    return Wired(forms[how], one=nn.Linear(shape[-1], shape[-1]), two=nn.Linear(shape[-1], shape[-1])), shape


def _assigned(self, x):
    h = torch.tanh(self.one(x)).clone()
    h[..., 0] = self.two(x)[..., -1]
    h[h > 0.8] = 0.8
    return h


@step(1, 2, 3)
def seldom(g: Drawing, shape: Shape, keep: bool) -> Made | None:
    """Dropout in training mode; and what must be refused, in one network of RARE each."""
    how = g.draw(st.integers(0, RARE // 2 - 1))
    if how > 5:
        return None
    if how == 3:
        g.mixes = True
        g.said[-1] += ", centred over the batch"
        return Wired(lambda self, x: x - x.mean(0)), shape
    if how == 4:
        g.draws = True
        g.said[-1] += ", F.dropout"
        return Wired(lambda self, x: F.dropout(x, 0.5)), shape
    g.said[-1] += ", Dropout"
    return nn.Dropout(0.4), shape


# Networks -------------------------------------------------------------------------------------------------------------


@st.composite
def networks(draw) -> Drawn:
    """Networks of one to five steps between samples and readout."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    g = Drawing(draw, draw(st.integers(1, 9)))
    kind = g.of("vector", "sequence", "image", "tokens")
    if kind == "tokens":
        shape, vocabulary = (g.size(1, 5),), g.size(2, 6)
        x = torch.randint(vocabulary, (g.n, *shape))
        layers, shape = _embedded(g, shape, vocabulary)
    else:
        shape = {
            "vector": (g.size(),),
            "sequence": (g.size(2, 5), g.size()),
            "image": (g.size(1, 3), g.size(3, 5), g.size(3, 5)),
        }[kind]
        x, layers = torch.randn(g.n, *shape), []
    for _ in range(g.size(1, 5)):
        module, shape = one_step(g, shape, False)
        layers.append(module)
    loss = g.of("mse", "cross_entropy")
    if len(shape) == 3:
        layers, shape = [*layers, nn.Flatten(2)], (shape[0], shape[1] * shape[2])
    sequences = loss == "cross_entropy" and len(shape) == 2 and g.of(True, False)
    if len(shape) == 2 and not sequences:
        layers, shape = [*layers, nn.Flatten()], (shape[0] * shape[1],)
    classes = g.size(2, 4) if loss == "cross_entropy" or g.n > 3 or g.size(0, 9) else 130
    g.say(f"readout of {list(shape)}")
    network = nn.Sequential(*layers, nn.Linear(shape[-1], classes))
    if g.size(0, 4) == 2:
        frozen = g.of(*list(network.parameters())[:-1])
        frozen.requires_grad_(False)
        g.say(f"frozen: a parameter of shape {list(frozen.shape)}")
    # Without second derivatives the rows of a sample must fit.
    least = 1 << 20 if any("once differentiable" in words or ", reentrant" in words for words in g.said) else 1
    return Drawn(network, x, classes, loss, g.of(1 << 30, least), g.said, g.mixes, g.draws)


def _embedded(g: Drawing, shape: Shape, vocabulary: int) -> tuple[list[nn.Module], Shape]:
    units, how = g.size(), g.of("embedding", "embedding", "padding", "bag")
    g.say(f"{how} {list(shape)} of {vocabulary}")
    if how == "bag":
        return [nn.EmbeddingBag(vocabulary, units, mode=g.of("sum", "mean", "max"))], (units,)
    return [nn.Embedding(vocabulary, units, padding_idx=0 if how == "padding" else None)], (*shape, units)
