"""Layers whose first dimension is not the batch, or which are called once for all samples; shared and tied weights."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from raysat.data.fields import Fields
from raysat.models.unpacked import Unpacked

from .case import Wired, add, case, tokens, vectors

KIND = "not batch first"


def _positions(forward, n: int = 7, **options: object):
    return Wired(forward, inner=nn.Linear(3, 6), norm=nn.LayerNorm(6), head=nn.Linear(6, 2)), vectors(5, 3, n=n)


def _sequence_first(self, x):
    return self.head(self.norm(torch.tanh(self.inner(x.transpose(0, 1))))).mean(0)


def _folded(self, x):
    n, t, d = x.shape
    return self.head(self.norm(torch.tanh(self.inner(x.reshape(n * t, d))))).view(n, t, -1).mean(1)


def _folded_time_major(self, x):
    n, t, d = x.shape
    h = torch.tanh(self.inner(x.transpose(0, 1).reshape(t * n, d)))
    return self.head(self.norm(h).view(t, n, -1)[-1])


def _unbound(self, x):
    return sum(self.head(self.norm(torch.tanh(self.inner(step)))) for step in x.unbind(1))


def _sample_by_sample(self, x):
    return torch.stack([self.head(self.norm(torch.tanh(self.inner(sample)))).mean(0) for sample in x])


def _batch_last(self, x):
    h = torch.tanh(torch.einsum("ud,ntd->utn", self.inner.weight, x) + self.inner.bias[:, None, None])
    return torch.einsum("cu,utn->nc", self.head.weight, h) + self.norm(h.permute(2, 1, 0)).mean((1, 2))[:, None]


def _batch_of_one(self, x):
    h = torch.tanh(self.inner(x[None]))
    return self.head(self.norm(h))[0].mean(1)


def _only_some(self, x):
    """The readout sees the last position, the layers all; the first is read by another way."""
    h = self.norm(torch.tanh(self.inner(x)))
    return self.head(h[:, -1]) + F.linear(h[:, 0], self.head.weight)


FORWARDS = {
    "sequence first": _sequence_first,
    "positions folded into the batch": _folded,
    "positions folded, time major": _folded_time_major,
    "one position after another": _unbound,
    "one sample after another": _sample_by_sample,
    "batch last": _batch_last,
    "a batch of one batch": _batch_of_one,
    "some positions only": _only_some,
}
for _name, _forward in FORWARDS.items():
    add(KIND, _name, partial(_positions, _forward))
for _name in ("sequence first", "positions folded into the batch"):
    add(KIND, f"{_name}, as many samples as positions", partial(_positions, FORWARDS[_name], n=5))
    add(KIND, f"{_name}, as many samples as features", partial(_positions, FORWARDS[_name], n=6))
    add(KIND, f"{_name}, classes", partial(_positions, FORWARDS[_name]), loss="cross_entropy")


@case(KIND, "patches folded into the batch")
def _():
    def forward(self, x):
        n, t, d = x.shape
        return self.head(torch.tanh(self.inner(x.reshape(n * t, 1, d))).view(n, t, -1).mean(1))

    return Wired(forward, inner=nn.Conv1d(1, 6, 3), head=nn.Linear(12, 2)), vectors(5, 4)


@case(KIND, "frames folded into the batch")
def _():
    def forward(self, x):
        h = self.norm(self.conv(x.flatten(0, 1))).relu().mean((2, 3))
        return self.head(h.unflatten(0, x.shape[:2]).amax(1))

    return Wired(forward, conv=nn.Conv2d(2, 4, 2), norm=nn.GroupNorm(2, 4), head=nn.Linear(4, 3)), vectors(4, 2, 5, 3)


@case(KIND, "windows of an image, as in Swin")
def _():
    def forward(self, x):
        n = len(x)
        windows = x.view(n, 2, 3, 2, 2, 4).transpose(2, 3).reshape(n * 4, 6, 4)
        q, k, v = self.qkv(windows).chunk(3, -1)
        h = torch.softmax(q @ k.mT + self.bias[self.index], -1) @ v
        return self.head(h.view(n, -1, 4).mean(1))

    parts = {"qkv": nn.Linear(4, 12), "bias": nn.Parameter(torch.randn(11)), "head": nn.Linear(4, 3)}
    network = Wired(forward, **parts)
    network.register_buffer("index", torch.arange(6)[:, None] - torch.arange(6) + 5)
    return network, vectors(6, 4, 4)


@case(KIND, "a mixer of positions and channels")
def _():
    def forward(self, x):
        x = x + self.positions(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return self.head(torch.tanh(self.channels(x)).mean(1))

    parts = {"norm": nn.LayerNorm(4), "positions": nn.Linear(5, 5), "channels": nn.Linear(4, 4)}
    return Wired(forward, head=nn.Linear(4, 3), **parts), vectors(5, 4)


@case(KIND, "channels after pixels, as in ConvNeXt")
def _():
    def forward(self, x):
        h = self.norm(self.conv(x).permute(0, 2, 3, 1))
        h = self.scale * self.wide(F.gelu(h))
        return self.head(h.permute(0, 3, 1, 2).mean((2, 3)))

    parts = {"conv": nn.Conv2d(3, 4, 3, groups=1), "norm": nn.LayerNorm(4), "wide": nn.Linear(4, 5)}
    return Wired(forward, scale=nn.Parameter(torch.randn(5)), head=nn.Linear(5, 2), **parts), vectors(3, 5, 4)


@case(KIND, "kernels made for each sample, samples as groups")
def _():
    def forward(self, x):
        n, c = x.shape[:2]
        weight = self.weight * (1 + self.style(x.mean((2, 3))))[:, None, :, None, None]
        h = F.conv2d(x.reshape(1, n * c, *x.shape[2:]), weight.flatten(0, 1), groups=n)
        return self.head(torch.tanh(h.view(n, -1, *h.shape[2:])).mean((2, 3)))

    weight = nn.Parameter(torch.randn(4, 3, 2, 2))
    return Wired(forward, weight=weight, style=nn.Linear(3, 3), head=nn.Linear(4, 2)), vectors(3, 5, 4)


@case(KIND, "pairs of samples as two halves of an input")
def _():
    def forward(self, x):
        left, right = self.body(torch.cat(x.chunk(2, 1))).chunk(2)
        return self.head(torch.cat([left * right, (left - right).abs()], 1))

    return Wired(forward, body=nn.Sequential(nn.Linear(3, 4), nn.Tanh()), head=nn.Linear(8, 2)), vectors(6)


KIND = "called once for all samples"


class Placed(nn.Module):
    """Embeddings of tokens and of positions, one block and a classifier of the last token."""

    def __init__(self, place: str, length: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(7, 6), nn.Embedding(length, 6)
        self.mlp, self.head, self.place = nn.Linear(6, 6), nn.Linear(6, classes), place

    def forward(self, tokens):
        t = torch.arange(tokens.shape[1])
        rows = {
            "[t]": lambda: self.wpe(t),
            "[1, t]": lambda: self.wpe(t[None]),
            "expanded": lambda: self.wpe(t[None].expand(len(tokens), -1)),
            "one by one": lambda: torch.stack([self.wpe(k) for k in t]),
            "the weight": lambda: self.wpe.weight,
            "a slice of the weight": lambda: self.wpe.weight[: tokens.shape[1]].unsqueeze(0),
        }[self.place]()
        h = self.wte(tokens) + rows
        return self.head((h + torch.relu(self.mlp(h)))[:, -1])


for _place in ("[t]", "[1, t]", "expanded", "one by one", "the weight", "a slice of the weight"):
    add(KIND, f"positions {_place}", lambda place=_place: (Placed(place), tokens(4, 7)))
for _place in ("[t]", "[1, t]"):
    add(KIND, f"positions {_place}, one for each sample", lambda place=_place: (Placed(place), tokens(4, 7, n=4)))
    add(KIND, f"positions {_place}, classes", lambda p=_place: (Placed(p), tokens(4, 7)), loss="cross_entropy")


def _with_vector(shape: tuple[int, ...], n: int = 7):
    def forward(self, x):
        return self.head(torch.tanh(self.inner(x) + self.vector).flatten(1))

    return Wired(
        forward, inner=nn.Linear(3, 6), vector=nn.Parameter(torch.randn(shape)), head=nn.Linear(30, 2)
    ), vectors(5, 3, n=n)


for _shape in ((6,), (5, 6), (1, 5, 6), (1, 1, 6), (5, 1), ()):
    add(KIND, f"a parameter of shape {list(_shape)} added", partial(_with_vector, _shape))
add(KIND, "a parameter of shape [5, 6] added to 5 samples", partial(_with_vector, (5, 6), n=5))


@case(KIND, "a class token and positions, as in ViT")
def _():
    def forward(self, x):
        h = self.patch(x).flatten(2).mT
        h = torch.cat([self.token.expand(len(x), -1, -1), h], 1) + self.place
        h = h + self.mlp(self.norm(h)) + h.mean(1, keepdim=True)
        return self.head(h[:, 0])

    parts = {"patch": nn.Conv2d(2, 6, 2, stride=2), "norm": nn.LayerNorm(6), "mlp": nn.Linear(6, 6)}
    parts |= {"token": nn.Parameter(torch.randn(1, 1, 6)), "place": nn.Parameter(torch.randn(1, 7, 6))}
    return Wired(forward, head=nn.Linear(6, 3), **parts), vectors(2, 6, 4)


def _prompted(count: int):
    def forward(self, x):
        prompt = torch.tanh(self.project(self.prompt))
        h = torch.cat([prompt.expand(len(x), -1, -1), self.inner(x)], 1)
        return self.head(torch.tanh(h).mean(1))

    prompt = nn.Parameter(torch.randn(count, 4))
    return Wired(forward, prompt=prompt, project=nn.Linear(4, 6), inner=nn.Linear(3, 6), head=nn.Linear(6, 2)), vectors(
        5, 3
    )


add(KIND, "a layer of a parameter", partial(_prompted, 3))
add(KIND, "a layer of a parameter of as many rows as samples", partial(_prompted, 7))


@case(KIND, "weights made by a layer of a code")
def _():
    def forward(self, x):
        weight = self.make(self.code).view(4, 3)
        return self.head(torch.tanh(F.linear(x, weight)))

    return Wired(forward, code=nn.Parameter(torch.randn(5)), make=nn.Linear(5, 12), head=nn.Linear(4, 2)), vectors(3)


@case(KIND, "a table of labels encoded once, as in CLIP", loss="cross_entropy")
def _():
    def forward(self, x):
        labels = F.normalize(self.text(self.labels(torch.arange(4))), dim=-1)
        return F.normalize(self.image(x), dim=-1) @ labels.T * self.temperature.exp()

    parts = {"labels": nn.Embedding(4, 5), "text": nn.Linear(5, 6), "image": nn.Linear(3, 6)}
    return Wired(forward, temperature=nn.Parameter(torch.tensor(0.7)), **parts), vectors(3)


@case(KIND, "graph convolutions on one graph for all samples")
def _():
    def forward(self, x):
        h = torch.tanh(self.adjacency @ self.one(x))
        return self.head((self.adjacency @ h).mean(1) + self.node(torch.arange(4)).sum(0))

    network = Wired(forward, one=nn.Linear(3, 5), node=nn.Embedding(4, 5), head=nn.Linear(5, 2))
    network.register_buffer("adjacency", torch.eye(4).roll(1, 0) + torch.eye(4))
    return network, vectors(4, 3)


KIND = "shared weights"


def _square(forward, outputs: int = 3, **parts: nn.Module):
    return Wired(forward, **({"one": nn.Linear(5, 5), "head": nn.Linear(5, outputs)} | parts)), vectors(5)


def _thrice(self, x):
    for _ in range(3):
        x = torch.tanh(self.one(x)) + x
    return self.head(x)


def _tied_outside(self, x):
    return self.head(torch.tanh(F.linear(torch.tanh(self.one(x)), self.one.weight)))


def _transposed(self, x):
    return self.head(torch.tanh(F.linear(torch.tanh(self.one(x)), self.one.weight.T)))


def _by_keyword(self, x):
    return self.head(input=torch.tanh(self.one(input=x)))


def _regularized(self, x):
    """The weight's size enters the output."""
    return self.head(torch.tanh(self.one(x))) * (1 + self.one.weight.square().sum())


def _normalized(self, x):
    """Cosine classifier: the weight is used outside its module."""
    return 5 * F.linear(F.normalize(self.one(x)), F.normalize(self.head.weight))


for _name, _forward in {
    "one layer thrice": _thrice,
    "a weight again by F.linear": _tied_outside,
    "a weight again, transposed": _transposed,
    "layers called by keyword": _by_keyword,
    "a weight's norm in the output": _regularized,
    "a cosine classifier": _normalized,
}.items():
    add(KIND, _name, partial(_square, _forward))


@case(KIND, "two modules, one parameter")
def _():
    def forward(self, x):
        return self.head(torch.tanh(self.two(torch.tanh(self.one(x)))))

    network, x = _square(forward, two=nn.Linear(5, 5))
    network.two.weight = network.one.weight
    return network, x


@case(KIND, "an embedding is the head: language model", loss="cross_entropy")
def _():
    def forward(self, x):
        h = self.wte(x) + self.wpe(torch.arange(x.shape[1]))
        return self.head(self.norm(h + torch.tanh(self.mlp(h))))

    parts = {"wte": nn.Embedding(6, 4), "wpe": nn.Embedding(5, 4), "mlp": nn.Linear(4, 4), "norm": nn.LayerNorm(4)}
    network = Wired(forward, head=nn.Linear(4, 6, bias=False), **parts)
    network.head.weight = network.wte.weight
    return network, tokens(5, 6)


@case(KIND, "one module under two names")
def _():
    layer = nn.Linear(5, 5)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), layer, nn.Linear(5, 3)), vectors(5)


@case(KIND, "one convolution at three scales")
def _():
    def forward(self, x):
        sizes = [x, F.avg_pool2d(x, 2), F.interpolate(x, scale_factor=2, mode="bilinear")]
        return self.head(torch.cat([torch.tanh(self.conv(h)).mean((2, 3)) for h in sizes], 1))

    return Wired(forward, conv=nn.Conv2d(2, 4, 2), head=nn.Linear(12, 3)), vectors(2, 6, 4)


@case(KIND, "inputs of several tensors")
def _():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.place, self.head = nn.Linear(3, 4), nn.Embedding(5, 4), nn.Linear(4, 2)

        def forward(self, image, place):
            return self.head(torch.tanh(self.image(image) + self.place(place)))

    return Unpacked(Two()), Fields((vectors(3), tokens(1, 5)[:, 0]))
