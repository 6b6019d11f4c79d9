"""Layers of torch.nn that hold parameters, each between others and in the variants that its options allow."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from raysat.data.fields import Fields
from raysat.models.unpacked import Unpacked

from .case import N, Wired, add, batch_statistics_held, case, read_out, tokens, vectors


def _conv_stem(axes: int, channels: int = 4) -> list[nn.Module]:
    return [(nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](2, channels, 1), nn.Tanh()]


def _image(axes: int) -> torch.Tensor:
    return vectors(2, *(6, 5, 3)[:axes])


def _after_convolution(axes: int, kind: type[nn.Module], *args: object, **options: object):
    return read_out(*_conv_stem(axes), kind(*args, **options), x=_image(axes))


def _after_linear(kind: type[nn.Module], *args: object, shape: tuple[int, ...] = (5,), **options: object):
    return read_out(nn.Linear(shape[-1], shape[-1]), nn.Tanh(), kind(*args, **options), x=vectors(*shape))


LINEAR = {
    "Linear": partial(_after_linear, nn.Linear, 5, 4),
    "Linear, no bias": partial(_after_linear, nn.Linear, 5, 4, bias=False),
    "Linear at positions": partial(_after_linear, nn.Linear, 5, 4, shape=(6, 5)),
    "Linear at a grid of positions": partial(_after_linear, nn.Linear, 5, 4, shape=(3, 6, 5)),
    "PReLU": partial(_after_linear, nn.PReLU),
    "PReLU of channels": partial(_after_linear, nn.PReLU, 6, shape=(6, 5)),
    "PReLU, as many samples as outputs": lambda: read_out(nn.Linear(5, 4), nn.PReLU(), x=vectors(5, n=3), outputs=3),
    "LayerNorm": partial(_after_linear, nn.LayerNorm, 5),
    "LayerNorm at positions": partial(_after_linear, nn.LayerNorm, 5, shape=(6, 5)),
    "LayerNorm over two axes": partial(_after_linear, nn.LayerNorm, (6, 5), shape=(2, 6, 5)),
    "LayerNorm, no bias": partial(_after_linear, nn.LayerNorm, 5, bias=False, shape=(6, 5)),
    "RMSNorm": partial(_after_linear, nn.RMSNorm, 5),
    "RMSNorm at positions": partial(_after_linear, nn.RMSNorm, 5, eps=1e-3, shape=(6, 5)),
    "RMSNorm over two axes": partial(_after_linear, nn.RMSNorm, (6, 5), shape=(2, 6, 5)),
    "GroupNorm of vectors": partial(_after_linear, nn.GroupNorm, 2, 6, shape=(6,)),
}
CONVOLUTIONS = {
    "Conv1d": (1, nn.Conv1d, 4, 3, 2),
    "Conv2d": (2, nn.Conv2d, 4, 3, (3, 2)),
    "Conv3d": (3, nn.Conv3d, 4, 3, (3, 2, 2)),
    "ConvTranspose1d": (1, nn.ConvTranspose1d, 4, 3, 2),
    "ConvTranspose2d": (2, nn.ConvTranspose2d, 4, 3, (3, 2)),
    "ConvTranspose3d": (3, nn.ConvTranspose3d, 4, 3, (3, 2, 2)),
    "GroupNorm": (2, nn.GroupNorm, 2, 4),
    "GroupNorm in one dimension": (1, nn.GroupNorm, 4, 4),
    "GroupNorm in three dimensions": (3, nn.GroupNorm, 1, 4),
}
OPTIONS = {
    "Conv1d, padding same": (1, nn.Conv1d, 4, 3, 4, {"padding": "same", "dilation": 2}),
    "Conv1d, circular": (1, nn.Conv1d, 4, 3, 3, {"padding": 2, "padding_mode": "circular"}),
    "Conv2d, strided, dilated, grouped": (
        2, nn.Conv2d, 4, 6, (3, 2), {"stride": (2, 1), "padding": (2, 1), "dilation": (1, 2), "groups": 2}
    ),
    "Conv2d, depthwise": (2, nn.Conv2d, 4, 4, 3, {"groups": 4, "padding": 1, "bias": False}),
    "Conv2d, reflect": (2, nn.Conv2d, 4, 3, 3, {"padding": 1, "padding_mode": "reflect"}),
    "Conv2d, replicate": (2, nn.Conv2d, 4, 3, 3, {"padding": (2, 1), "padding_mode": "replicate"}),
    "Conv3d, strided, grouped": (3, nn.Conv3d, 4, 2, 2, {"stride": (2, 2, 1), "groups": 2, "padding": 1}),
    "ConvTranspose1d, grouped": (1, nn.ConvTranspose1d, 4, 6, 3, {"stride": 2, "output_padding": 1, "groups": 2}),
    "ConvTranspose2d, strided": (
        2, nn.ConvTranspose2d, 4, 3, 3, {"stride": 2, "padding": 1, "output_padding": 1, "dilation": 2, "bias": False}
    ),
    "InstanceNorm1d": (1, nn.InstanceNorm1d, 4, {"affine": True}),
    "InstanceNorm2d": (2, nn.InstanceNorm2d, 4, {"affine": True}),
    "InstanceNorm3d": (3, nn.InstanceNorm3d, 4, {"affine": True}),
    "InstanceNorm2d, averages kept": (2, nn.InstanceNorm2d, 4, {"affine": True, "track_running_stats": True}),
}  # fmt: skip
for _name, _build in LINEAR.items():
    add("torch.nn", _name, _build)
for _name, (_axes, _kind, *_args) in (CONVOLUTIONS | OPTIONS).items():
    _options = _args.pop() if isinstance(_args[-1], dict) else {}
    add("torch.nn", _name, partial(_after_convolution, _axes, _kind, *_args, **_options))


def _evaluated(kind: type[nn.Module], axes: int):
    """In evaluation mode, running averages and weights of their own."""
    network, x = _after_convolution(axes, kind, 4) if axes else _after_linear(kind, 5)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
    return network.eval(), x


def _trained(kind: type[nn.Module], axes: int, **options: object):
    if not axes:
        return _after_linear(kind, 5, **options)
    network, x = _after_convolution(axes, kind, 4, **options)
    nn.init.normal_(network[2].weight)
    return network, x


NORMS = {"BatchNorm1d": (nn.BatchNorm1d, 1), "BatchNorm1d of vectors": (nn.BatchNorm1d, 0)}
NORMS |= {"BatchNorm2d": (nn.BatchNorm2d, 2), "BatchNorm3d": (nn.BatchNorm3d, 3)}
NORMS |= {"SyncBatchNorm": (nn.SyncBatchNorm, 2)}
for _name, (_kind, _axes) in NORMS.items():
    add("torch.nn", f"{_name}, eval", partial(_evaluated, _kind, _axes))
    add("BatchNorm in training", f"{_name}, train", partial(_trained, _kind, _axes), meant=batch_statistics_held)
add(
    "BatchNorm in training",
    "BatchNorm2d, cumulative average",
    partial(_trained, nn.BatchNorm2d, 2, momentum=None),
    meant=batch_statistics_held,
)
add(
    "BatchNorm in training",
    "BatchNorm1d without averages",
    partial(_trained, nn.BatchNorm1d, 1, track_running_stats=False),
    meant=batch_statistics_held,
)


@case("BatchNorm in training", "BatchNorm1d without averages, eval", meant=batch_statistics_held)
def _():
    network, x = _trained(nn.BatchNorm1d, 1, track_running_stats=False)
    return network.eval(), x


class Block(nn.Module):
    """A basic block as torchvision's: in-place ReLU, the shortcut added in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)


def _residual(*more: nn.Module):
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), Block(4), Block(4)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *more, nn.Linear(4, 3)), vectors(2, 6, 5)


add("BatchNorm in training", "residual network, train", _residual, meant=batch_statistics_held)
add(
    "BatchNorm in training",
    "residual network with dropout, train",
    partial(_residual, nn.Dropout(0.5)),
    meant=batch_statistics_held,
)
add("BatchNorm in training", "residual network, eval", lambda: (_residual()[0].eval(), vectors(2, 6, 5)))
add(
    "BatchNorm in training",
    "residual network, memory for one sample",
    _residual,
    meant=batch_statistics_held,
    options={"memory": 1},
)


@case("BatchNorm in training", "one BatchNorm1d called twice", meant=batch_statistics_held, may_mix=True)
def _():
    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.inner(torch.tanh(self.norm(x))))))

    parts = {"norm": nn.BatchNorm1d(5), "inner": nn.Linear(5, 5), "head": nn.Linear(5, 3)}
    return Wired(forward, **parts), vectors(5)


@case("torch.nn", "Bilinear")
def _():
    def forward(self, x):
        return self.head(torch.tanh(self.both(self.left(x), x)))

    return Wired(forward, left=nn.Linear(5, 4), both=nn.Bilinear(4, 5, 6), head=nn.Linear(6, 3)), vectors(5)


def _looked_up(length: int = 6, **options: object):
    network = nn.Sequential(nn.Embedding(9, 5, **options), nn.Tanh(), nn.Flatten(), nn.Linear(5 * length, 3))
    return network, tokens(length, 9)


add("torch.nn", "Embedding", _looked_up, loss="cross_entropy")
add("torch.nn", "Embedding with padding", partial(_looked_up, padding_idx=1))
add("torch.nn", "Embedding, sparse gradient", partial(_looked_up, sparse=True))
add("torch.nn", "Embedding with a largest norm", partial(_looked_up, max_norm=1.0))
add("torch.nn", "Embedding, scaled by frequency", partial(_looked_up, scale_grad_by_freq=True), may_mix=True)
add("torch.nn", "Embedding, one token a sample", lambda: (_looked_up(1)[0], tokens(1, 9)), loss="cross_entropy")


def _bag(**options: object):
    return nn.Sequential(nn.EmbeddingBag(9, 5, **options), nn.Tanh(), nn.Linear(5, 3)), tokens(6, 9)


for _mode in ("sum", "mean", "max"):
    add("torch.nn", f"EmbeddingBag, {_mode}", partial(_bag, mode=_mode))
add("torch.nn", "EmbeddingBag with padding", partial(_bag, padding_idx=1), loss="cross_entropy")
add("torch.nn", "EmbeddingBag, sparse gradient", partial(_bag, mode="sum", sparse=True))


@case("torch.nn", "EmbeddingBag with weights and offsets")
def _():
    def forward(self, indices, weights):
        offsets = torch.arange(0, indices.numel(), indices.shape[1])
        bags = self.bag(indices.flatten(), offsets, per_sample_weights=weights.flatten())
        return self.head(torch.tanh(bags))

    class Bags(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.head = nn.EmbeddingBag(9, 5, mode="sum"), nn.Linear(5, 3)

    Bags.forward = forward
    return Unpacked(Bags()), Fields({"indices": tokens(6, 9), "weights": vectors(6)})


@case("torch.nn", "AdaptiveLogSoftmaxWithLoss")
def _():
    def forward(self, x):
        return self.softmax.log_prob(torch.tanh(self.inner(x)))

    return Wired(forward, inner=nn.Linear(5, 8), softmax=nn.AdaptiveLogSoftmaxWithLoss(8, 10, [3, 6])), vectors(5)


@case("torch.nn", "ParameterList")
def _():
    def forward(self, x):
        for weight in self.weights:
            x = torch.tanh(x @ weight)
        return x

    return Wired(forward, weights=nn.ParameterList([torch.randn(5, 4), torch.randn(4, 3)])), vectors(5)


@case("torch.nn", "ParameterDict")
def _():
    def forward(self, x):
        return torch.tanh(x * self.weights["scale"] + self.weights["shift"]) @ self.weights["out"]

    weights = {"scale": torch.randn(5), "shift": torch.randn(5), "out": torch.randn(5, 3)}
    return Wired(forward, weights=nn.ParameterDict(weights)), vectors(5)


@case("torch.nn", "DataParallel")
def _():
    return nn.DataParallel(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))), vectors(5)


@case("torch.nn", "ModuleDict and ModuleList")
def _():
    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.heads["one"](x) + self.heads["two"](x)

    heads = nn.ModuleDict({"one": nn.Linear(5, 3), "two": nn.Linear(5, 3), "idle": nn.Linear(5, 3)})
    return Wired(forward, layers=nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5)]), heads=heads), vectors(5)


@case("torch.nn", "channels last")
def _():
    network, x = read_out(
        nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 2), nn.GroupNorm(2, 4), nn.MaxPool2d(2), x=vectors(2, 6, 7)
    )
    return network.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)


@case("torch.nn", "an autoencoder of transposed convolutions", loss="mse")
def _():
    down = [nn.Conv2d(1, 3, 3, stride=2), nn.ELU(), nn.Conv2d(3, 4, 2), nn.ELU()]
    up = [nn.ConvTranspose2d(4, 3, 2), nn.ELU(), nn.ConvTranspose2d(3, 1, 3, stride=2)]
    return nn.Sequential(*down, *up, nn.AdaptiveAvgPool2d(2), nn.Flatten()), vectors(1, 7, 9)


@case("torch.nn", "many pools and activations")
def _():
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.LPPool2d(2, 2), nn.Softplus(), nn.PixelShuffle(2), nn.Mish()]
    layers += [nn.Conv2d(1, 4, 2), nn.LocalResponseNorm(2), nn.GLU(1), nn.AvgPool2d(2), nn.Hardswish(), nn.Softmin(1)]
    return read_out(*layers, x=vectors(2, 6, 4))


def _outputs(outputs: int, n: int = N):
    return read_out(nn.Linear(5, 4), nn.Tanh(), nn.LayerNorm(4), x=vectors(5, n=n), outputs=outputs)


for _number in (1, N, 40):
    add("torch.nn", f"{_number} outputs of {N} samples", partial(_outputs, _number))
add("torch.nn", "200 classes", partial(_outputs, 200, 4), loss="cross_entropy")
add("torch.nn", "10 classes", partial(_outputs, 10), loss="cross_entropy")


@case("torch.nn", "200 outputs")
def _():
    return read_out(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 2), x=vectors(2, 5, 4, n=4), outputs=200)


@case("torch.nn", "200 outputs, memory for one sample", options={"memory": 1})
def _():
    return read_out(nn.Linear(5, 6), nn.ReLU(), nn.RMSNorm(6), x=vectors(3, 5, n=4), outputs=200)


if hasattr(nn, "LinearCrossEntropyLoss"):  # of torch 2.13

    @case("torch.nn", "LinearCrossEntropyLoss")
    def _():
        def forward(self, x):
            h = torch.tanh(self.inner(x))
            labels = torch.arange(3).expand(len(x), -1)
            return -torch.stack([self.loss(h, labels[:, c]) for c in range(3)], 1)

        return Wired(forward, inner=nn.Linear(5, 4), loss=nn.LinearCrossEntropyLoss(4, 3, reduction="none")), vectors(5)
