"""Networks for which there are no statistics, each with what the sentence must say: the reason, and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .case import Build, Wired, vectors


@dataclass(frozen=True)
class Refused:
    """A network without statistics.

    Attributes:
        name: Its name.
        build: Makes network and samples.
        words: Regular expressions, each of which the sentence matches.
        needs: A package without which there is no such network.
    """

    name: str
    build: Build
    words: tuple[str, ...]
    needs: str = ""

    def made(self) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        return self.build()

    def __str__(self) -> str:
        return self.name


REFUSED: list[Refused] = []


def refused(name: str, *words: str, needs: str = "") -> Callable[[Build], Build]:
    """One more."""

    def register(build: Build) -> Build:
        REFUSED.append(Refused(name, build, words, needs))
        return build

    return register


def _body(forward, **parts: nn.Module):
    return Wired(forward, **({"one": nn.Linear(4, 4), "head": nn.Linear(4, 3)} | parts)), vectors(4)


@refused("a lazy layer", r"(?i)lazy", r"\b0\b|LazyLinear", "once|sample|forward")
def _():
    return nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.Linear(5, 3)), vectors(4)


@refused("lazy layers within", r"(?i)lazy", "conv|LazyConv2d", "once|sample|forward")
def _():
    network = nn.Sequential()
    network.add_module("conv", nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d()))
    return network.append(nn.Flatten()).append(nn.LazyLinear(3)), vectors(2, 5, 4)


ADAPTER = r"return|class |def forward|\[0\]|\.logits"


@refused("a tuple", "tuple", ADAPTER)
def _():
    return _body(lambda self, x: (self.head(torch.tanh(self.one(x))), self.one(x)))


@refused("a list of tensors", "list", ADAPTER)
def _():
    return _body(lambda self, x: [self.head(self.one(x)), self.one(x)])


@refused("a dictionary", "dict", ADAPTER)
def _():
    return _body(lambda self, x: {"scores": self.head(torch.tanh(self.one(x)))})


@refused("an output of Hugging Face", "Output", r"\.logits", ADAPTER, needs="transformers")
def _():
    from .hugging_face import _bert

    return _bert(), torch.randint(1, 9, (6, 5))


@refused("TorchScript, scripted", "TorchScript", "module|Module|network|script")
def _():
    return torch.jit.script(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))), vectors(4)


@refused("TorchScript, traced", "TorchScript", "module|Module|network|trace")
def _():
    network, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), vectors(4)
    return torch.jit.trace(network, x), x


@refused("complex weights", "complex", r"one\.weight|weight", "real|split|two")
def _():
    def forward(self, x):
        return self.head(self.one(x.to(torch.complex64)).abs())

    return _body(forward, one=nn.Linear(4, 4, dtype=torch.complex64))


MIXES = r"(?i)mix|other samples|among|batch"


@refused("centred over the batch", MIXES)
def _():
    def forward(self, x):
        h = torch.tanh(self.one(x))
        return self.head(h - h.mean(0))

    return _body(forward)


@refused("F.batch_norm", MIXES)
def _():
    def forward(self, x):
        return self.head(F.batch_norm(self.one(x), None, None, training=True))

    return _body(forward)


@refused("attention over the batch", MIXES)
def _():
    def forward(self, x):
        h = self.one(x)
        return self.head(torch.softmax(h @ h.T, 1) @ h)

    return _body(forward)


@refused("nn.MultiheadAttention told the wrong dimension", MIXES)
def _():
    def forward(self, x):
        h = self.attention(x, x, x, need_weights=False)[0]
        return self.readout(h.mean(1))

    return Wired(forward, attention=nn.MultiheadAttention(4, 2), readout=nn.Linear(4, 3)), vectors(5, 4)


@refused("a softmax over the batch", MIXES)
def _():
    return _body(lambda self, x: self.head(torch.tanh(self.one(x))).softmax(0))


@refused("the sample before", MIXES)
def _():
    return _body(lambda self, x: self.head(torch.tanh(self.one(x + x.roll(1, 0)))))


@refused("mixing in the gradient alone", MIXES)
def _():
    """The outputs do not mix, what comes back does: each sample's gradient is divided by the number of samples."""

    def forward(self, x):
        h = torch.tanh(self.one(x))
        h = h / len(x) + (h * (1 - 1 / len(x))).detach()
        return self.head(h)

    return _body(forward)


RANDOM = r"(?i)random|draw|same input twice"


@refused("F.dropout by its default", RANDOM, "training|eval|module|Dropout")
def _():
    return _body(lambda self, x: self.head(F.dropout(torch.tanh(self.one(x)), 0.5)))


@refused("noise added in evaluation, too", RANDOM)
def _():
    network, x = _body(lambda self, x: self.head(torch.tanh(self.one(x)) + 0.1 * torch.randn_like(x)))
    return network.eval(), x


@refused("a sampled code", RANDOM)
def _():
    def forward(self, x):
        h = self.one(x)
        return self.head(torch.nn.functional.gumbel_softmax(h, hard=True))

    return _body(forward)
