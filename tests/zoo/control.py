"""Networks of which autograd must be taken as it is: control flow by values, routing, functions of one's own, hooks."""

from __future__ import annotations

import shutil
from functools import partial

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils import checkpoint

from raysat.data.fields import Fields
from raysat.models.unpacked import Unpacked

from .case import Wired, add, case, evaluated, tokens, vectors

KIND = "control flow"


def _wired(forward, *shape: int, **parts: nn.Module):
    parts = {"one": nn.Linear(4, 4), "two": nn.Linear(4, 4), "head": nn.Linear(4, 3)} | parts
    return Wired(forward, **parts), vectors(*(shape or (4,)))


def _branch(self, x):
    rows = [torch.tanh(self.one(row)) if row.sum() > 0 else self.two(row).sin() for row in x]
    return self.head(torch.stack(rows))


def _while(self, x):
    rows = []
    for row in x:
        count = 0
        while row.norm() > 0.8 and count < 6:
            row, count = torch.tanh(self.one(row)) * 0.7, count + 1
        rows.append(row)
    return self.head(torch.stack(rows))


def _masked(self, x):
    h = torch.tanh(self.one(x))
    mask = x[:, 0] > 0
    out = torch.zeros_like(h)
    out[mask] = self.two(h[mask])
    out[~mask] = h[~mask]
    return self.head(out)


def _where(self, x):
    return self.head(torch.where(x[:, :1] > 0, torch.tanh(self.one(x)), self.two(x)))


def _numbers(self, x):
    order = torch.from_numpy(x.detach().numpy().argsort(1).copy())
    return self.head(torch.tanh(self.one(x)).gather(1, order) * self.two(x))


def _items(self, x):
    rows = [self.two(row) * (1.0 + (row[0] > 0).item()) for row in torch.tanh(self.one(x))]
    return self.head(torch.stack(rows))


def _sorted(self, x):
    h = self.one(x).sort(1).values.cumsum(1)
    return self.head(h * self.two(x).topk(1).values)


def _cases(self, x):
    """Each sample by the layer that its first feature names."""
    out = torch.empty_like(x)
    for k, layer in enumerate((self.one, self.two)):
        index = ((x[:, 0] > 0) == bool(k)).nonzero()[:, 0]
        out = out.index_copy(0, index, torch.tanh(layer(x[index])))
    return self.head(out)


for _name, _forward in {
    "a branch for each sample": _branch,
    "a loop until a sample is small": _while,
    "boolean masks": _masked,
    "where": _where,
    "numpy in forward": _numbers,
    ".item() in forward": _items,
    "sort, topk, cumsum": _sorted,
    "a layer chosen by index": _cases,
}.items():
    add(KIND, _name, partial(_wired, _forward))


def _experts(self, x):
    return torch.stack([torch.tanh(expert(x)) for expert in self.experts], 1)


def _dense(self, x):
    return self.head((self.gate(x).softmax(1)[..., None] * _experts(self, x)).sum(1))


def _top1(self, x):
    weights, choice = self.gate(x).softmax(1).max(1)
    out = torch.zeros_like(x)
    for k, expert in enumerate(self.experts):
        index = (choice == k).nonzero()[:, 0]
        out.index_add_(0, index, weights[index, None] * torch.tanh(expert(x[index])))
    return self.head(out)


def _top2(self, x):
    weights, choice = self.gate(x).topk(2)
    chosen = _experts(self, x).gather(1, choice[..., None].expand(-1, -1, x.shape[1]))
    return self.head((weights.softmax(1)[..., None] * chosen).sum(1))


def _tokens_routed(self, x):
    """Top-1 of each position, positions folded."""
    flat = x.flatten(0, 1)
    gates = self.gate(flat).softmax(-1)
    out = torch.zeros_like(flat)
    for k, expert in enumerate(self.experts):
        chosen = gates.argmax(-1) == k
        out[chosen] = gates[chosen, k : k + 1] * expert(flat[chosen])
    return self.head(out.view_as(x).mean(1))


def _mixture(forward, *shape: int):
    parts = {"gate": nn.Linear(4, 3), "experts": nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])}
    return _wired(forward, *shape, one=nn.Identity(), two=nn.Identity(), **parts)


KIND = "mixture of experts"
add(KIND, "experts, dense", partial(_mixture, _dense))
add(KIND, "experts, the best by index", partial(_mixture, _top1))
add(KIND, "experts, the best by index, classes", partial(_mixture, _top1), loss="cross_entropy")
add(KIND, "experts, the best two", partial(_mixture, _top2))
add(KIND, "experts, the best of each position", partial(_mixture, _tokens_routed, 5, 4))


@case(KIND, "experts, stacked weights")
def _():
    def forward(self, x):
        choice = self.gate(x).argmax(1)
        h = torch.tanh(torch.bmm(x[:, None], self.up[choice]))[:, 0]
        return self.head(h) + self.gate(x).amax(1, keepdim=True)

    return _wired(forward, gate=nn.Linear(4, 3), up=nn.Parameter(torch.randn(3, 4, 4)))


KIND = "functions of one's own"


class Cube(torch.autograd.Function):
    """Old style: ctx in forward, no vmap, no forward mode, no second derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3 / 3 + x

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x * x + 1)


class Product(torch.autograd.Function):
    """A layer of one's own, of input and weight; its backward is differentiable, but forward mode is missing."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.flatten(0, -2).T @ x.flatten(0, -2)


class Rounded(torch.autograd.Function):
    """Straight through: the gradient is not the derivative."""

    @staticmethod
    def forward(ctx, x):
        return (x * 4).round() / 4

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Apart(torch.autograd.Function):
    """New style: setup_context, without vmap."""

    @staticmethod
    def forward(x):
        return x.exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0]


for _name, _forward in {
    "differentiable once": lambda self, x: self.head(Cube.apply(self.two(torch.tanh(self.one(x))))),
    "of input and weight": lambda self, x: self.head(torch.tanh(Product.apply(self.one(x), self.two.weight))),
    "straight through": lambda self, x: self.head(Rounded.apply(torch.tanh(self.two(self.one(x))))),
    "with setup_context": lambda self, x: self.head(Apart.apply(torch.tanh(self.one(x)))),
}.items():
    add(KIND, f"a function {_name}", partial(_wired, _forward))
add(
    KIND,
    "a function differentiable once, classes",
    partial(_wired, lambda self, x: self.head(Cube.apply(self.one(x)))),
    loss="cross_entropy",
)


def _many(function):
    def forward(self, x):
        return self.head(function(self.one(x)))

    return Wired(forward, one=nn.Linear(4, 4), head=nn.Linear(4, 200)), vectors(4, n=4)


add(KIND, "a function differentiable once, 200 outputs", partial(_many, Cube.apply))


def _hardly(self, x):
    """Most of the gradient goes past the function, so that what a second derivative loses there is small."""
    h = torch.tanh(self.one(x))
    return self.head(self.one(x) + 0.01 * Cube.apply(self.two(h)))


for _loss, _outputs in (("mse", 3), ("mse", 200), ("cross_entropy", 200)):
    add(
        KIND,
        f"a function differentiable once, of little weight, {_outputs} outputs, {_loss}",
        lambda outputs=_outputs: (_wired(_hardly, head=nn.Linear(4, outputs))[0], vectors(4, n=4)),
        loss=_loss,
    )


def _quantized(self, x):
    h = torch.tanh(self.one(x))
    return self.head(h + (torch.round(h * 4) / 4 - h).detach())


def _energy(self, x):
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        energy = torch.tanh(self.two(torch.tanh(self.one(x)))).sum(1)
        (force,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
    return self.head(force)


def _spectrum(self, x):
    spectrum = torch.fft.rfft(self.one(x))
    return (
        self.head(torch.fft.irfft(spectrum * torch.view_as_complex(self.filter), n=4)) + spectrum.abs().sum(1)[:, None]
    )


def _solved(self, x):
    """A layer defined by a fixed point that is linear in the state."""
    matrix = torch.eye(4).to(x) + 0.1 * self.two.weight @ self.two.weight.T
    return self.head(torch.linalg.solve(matrix, torch.tanh(self.one(x)).T).T) + torch.linalg.det(matrix)


def _distances(self, x):
    return self.head(torch.exp(-torch.cdist(torch.tanh(self.one(x))[:, None], self.two.weight[None])[:, 0]))


def _paused(self, x):
    with torch.no_grad():
        weights = self.two(x).softmax(1)
    return self.head(torch.tanh(self.one(x)) * weights + self.two(x).detach())


def _derivative_by_func(self, x):
    """A network's derivative along its input as the output, as in physics-informed networks."""

    def value(z):
        return torch.tanh(self.one(z)).sum(-1)

    return self.head(torch.func.vmap(torch.func.grad(value))(x))


KIND = "functions of torch"
for _name, _forward in {
    "rounding past the gradient": _quantized,
    "the gradient of an energy": _energy,
    "linear solve and determinant": _solved,
    "distances to weights": _distances,
    "a part without gradient": _paused,
    "a derivative by torch.func": _derivative_by_func,
}.items():
    add(KIND, _name, partial(_wired, _forward))
add(KIND, "Fourier transform", lambda: _wired(_spectrum, filter=nn.Parameter(torch.randn(3, 2))))

KIND = "checkpointing"


def _checkpointed(reentrant: bool, *parts: nn.Module):
    def forward(self, x):
        h = self.one(x)
        for block in self.blocks:
            h = checkpoint.checkpoint(block, h, use_reentrant=reentrant)
        return self.head(h)

    blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ReLU(True), *parts, nn.Linear(4, 4)) for _ in range(2)])
    return _wired(forward, blocks=blocks)


for _reentrant in (False, True):
    _word = "reentrant" if _reentrant else "not reentrant"
    _build = partial(_checkpointed, _reentrant)
    add(KIND, f"checkpointing, {_word}", _build)
    add(KIND, f"checkpointing, {_word}, classes", _build, loss="cross_entropy")
    add(KIND, f"checkpointing, {_word}, eval", lambda _build=_build: (_build()[0].eval(), vectors(4)))
    add(
        "random layers",
        f"checkpointing, {_word}, dropout in training",
        lambda _reentrant=_reentrant: _checkpointed(_reentrant, nn.Dropout(0.4)),
        meant=evaluated,
    )


@case(KIND, "checkpoint_sequential")
def _():
    def forward(self, x):
        return self.head(checkpoint.checkpoint_sequential(self.body, 2, self.one(x), use_reentrant=False))

    return _wired(forward, body=nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh()))


KIND = "compiled"


def _compiled(backend: str, *parts: nn.Module):
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.LayerNorm(6), *parts, nn.Linear(6, 3))
    return torch.compile(network, backend=backend), vectors(4)


for _backend in ("eager", "aot_eager"):
    add(KIND, f"torch.compile, {_backend}", partial(_compiled, _backend))
if shutil.which("g++"):
    add(KIND, "torch.compile, inductor", partial(_compiled, "inductor"))


@case(KIND, "a part compiled in place")
def _():
    network = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Tanh(), nn.Linear(6, 5)), nn.GELU(), nn.Linear(5, 3))
    network[1].compile(backend="aot_eager")
    return network, vectors(4)


KIND = "hooks"


def _hooked(register: str, hook):
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))
    getattr(network[2], register)(hook)
    return network, vectors(4)


add(KIND, "a hook that changes a layer's output", partial(_hooked, "register_forward_hook", lambda m, i, o: o * 2 + 1))
add(
    KIND, "a hook that changes a layer's input", partial(_hooked, "register_forward_pre_hook", lambda m, i: (i[0] - 1,))
)
add(KIND, "a hook that looks at gradients", partial(_hooked, "register_full_backward_hook", lambda m, i, o: None))


@case(KIND, "a hook of a tensor that scales its gradient")
def _():
    def forward(self, x):
        h = torch.tanh(self.one(x))
        if h.requires_grad:
            h.register_hook(lambda gradient: 0.5 * gradient)
        return self.head(h + self.two(x))

    return _wired(forward)


KIND = "unused parameters"


@case(KIND, "an auxiliary head")
def _():
    def forward(self, x):
        h = torch.tanh(self.one(x))
        self.two(h)  # an output that nothing uses
        return self.head(h)

    return _wired(forward, idle=nn.Linear(9, 9), loose=nn.Parameter(torch.randn(4)))


@case(KIND, "an expert that no sample takes")
def _():
    def forward(self, x):
        h = torch.tanh(self.one(x))
        return self.head(self.two(h) if x.abs().max() > 1e3 else h)

    return _wired(forward)


@case(KIND, "outputs that do not depend on the samples")
def _():
    return _wired(lambda self, x: self.head(torch.tanh(self.one(0 * x))) + 0 * self.two(x)[:, :3])


KIND = "modules within"


class Returns(nn.Module):
    """A layer that returns a tuple, takes an option, and keeps what it last gave."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(size, size)), nn.Parameter(torch.randn(size))
        self.last = None

    def forward(self, x, *, scale: float = 1.0, skip: bool = False):
        self.last = {"out": torch.tanh(x @ self.weight + self.bias)}
        return self.last["out"] * scale + (x if skip else 0), self.last


@case(KIND, "layers that return tuples and take options")
def _():
    def forward(self, x):
        h, found = self.inner(x, scale=0.5, skip=True)
        return self.head(h * found["out"])

    return _wired(forward, inner=Returns(4))


@case(KIND, "a list of tensors between layers")
def _():
    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 2)])

        def forward(self, x):
            return [part(x) for part in self.parts]

    class Join(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.randn(5))

        def forward(self, pieces):
            return torch.cat(pieces, 1) * self.scale

    return nn.Sequential(Split(), Join(), nn.Tanh(), nn.Linear(5, 3)), vectors(4)


@case(KIND, "a subclass of Linear that computes something else")
def _():
    class Squared(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight.square(), self.bias)

    return nn.Sequential(Squared(4, 5), nn.Tanh(), nn.Linear(5, 3)), vectors(4)


@case(KIND, "an instance whose forward was replaced")
def _():
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    layer = network[0]
    layer.forward = lambda x: F.linear(x, layer.weight.abs(), layer.bias)
    return network, vectors(4)


@case(KIND, "counts its calls in a buffer")
def _():
    def forward(self, x):
        self.calls += 1
        return self.head(torch.tanh(self.one(x)))

    network, x = _wired(forward)
    network.register_buffer("calls", torch.tensor(3))
    return network, x


@case(KIND, "a buffer that forward changes and uses")
def _():
    def forward(self, x):
        self.state.mul_(0.5).add_(1.0)
        return self.head(torch.tanh(self.one(x) * self.state.clone()))

    network, x = _wired(forward)
    network.register_buffer("state", torch.ones(4))
    return network, x


@case("random layers", "Dropout of each kind, train", meant=evaluated)
def _():
    layers = [nn.Conv2d(2, 4, 3), nn.Dropout2d(0.3), nn.ELU(), nn.AlphaDropout(0.2), nn.FeatureAlphaDropout(0.2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 3)), vectors(2, 6, 5)


@case("random layers", "RReLU, train", meant=evaluated)
def _():
    return nn.Sequential(nn.Linear(4, 5), nn.RReLU(), nn.Linear(5, 3)), vectors(4)


@case("random layers", "stochastic depth of one's own, train", meant=evaluated)
def _():
    class DropPath(nn.Module):
        def forward(self, x):
            return x * torch.bernoulli(torch.full_like(x[:, :1], 0.7)) / 0.7 if self.training else x

    return _wired(lambda self, x: self.head(x + self.drop(torch.tanh(self.one(x)))), drop=DropPath())


@case("random layers", "F.dropout told of the mode, train", meant=evaluated)
def _():
    return _wired(lambda self, x: self.head(F.dropout(torch.tanh(self.one(x)), 0.5, self.training)))


@case("random layers", "Dropout, 200 outputs, train", meant=evaluated)
def _():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 200)), vectors(4, n=4)


@case("random layers", "Dropout, eval")
def _():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).eval(), vectors(4)


@case("modules within", "samples with lengths")
def _():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 5), nn.Linear(5, 3)

        def forward(self, tokens, length):
            rows = [self.embed(row[:count]).tanh().mean(0) for row, count in zip(tokens, length.tolist(), strict=True)]
            return self.head(torch.stack(rows))

    return Unpacked(Pooled()), Fields({"tokens": tokens(6, 9), "length": torch.tensor([6, 3, 4, 6, 1, 2, 5])})
