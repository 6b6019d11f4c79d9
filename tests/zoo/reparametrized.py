"""Weights that are made of other parameters: parametrizations, the old hooks of torch.nn.utils, pruning."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations, parametrize, prune

from .case import add, case, vectors


def _all_linear(change: Callable[..., nn.Module], *args: object, mode: bool = True, **options: object):
    layers = [nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        changed = [change(m, *args, **options) if isinstance(m, nn.Linear) else m for m in layers]
    return nn.Sequential(*changed).train(mode), vectors(5)


def _all_convolutions(change: Callable[..., nn.Module], mode: bool = True, **options: object):
    layers = [nn.Conv2d(2, 4, 3), nn.ELU(), nn.Conv2d(4, 3, 2), nn.ELU()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        changed = [change(m, **options) if isinstance(m, nn.Conv2d) else m for m in layers]
    return nn.Sequential(*changed, nn.Flatten(), nn.Linear(3 * 3 * 2, 3)).train(mode), vectors(2, 6, 5)


KIND = "reparametrized"
for _module, _how in ((parametrizations, "parametrization"), (utils, "old hook")):
    for _mode, _word in ((True, "train"), (False, "eval")):
        add(KIND, f"spectral_norm, {_how}, {_word}", partial(_all_linear, _module.spectral_norm, mode=_mode))
    add(KIND, f"spectral_norm of convolutions, {_how}, train", partial(_all_convolutions, _module.spectral_norm))
    add(KIND, f"weight_norm, {_how}", partial(_all_linear, _module.weight_norm))
    add(KIND, f"weight_norm of the whole, {_how}", partial(_all_linear, _module.weight_norm, dim=None))
    add(KIND, f"weight_norm of convolutions, {_how}, eval", partial(_all_convolutions, _module.weight_norm, mode=False))
for _map in ("matrix_exp", "cayley", "householder"):
    _change = partial(parametrizations.orthogonal, orthogonal_map=_map)
    add(KIND, f"orthogonal, {_map}", partial(_all_linear, _change))


@case(KIND, "weight_norm of an LSTM, old hook")
def _():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                utils.weight_norm(self.rnn, "weight_hh_l0")

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    return Last(), vectors(5, 3)


def _pruned(change: Callable[..., nn.Module], **options: object):
    network, x = _all_linear(lambda m: m)
    for module in network[::2]:
        change(module, "weight", **options)
    return network, x


add(KIND, "pruned by size", partial(_pruned, prune.l1_unstructured, amount=0.5))
add(KIND, "pruned by rows", partial(_pruned, prune.ln_structured, amount=2, n=2, dim=0))
add(KIND, "pruned at random", partial(_pruned, prune.random_unstructured, amount=0.3))


@case(KIND, "pruned, then made permanent")
def _():
    network, x = _pruned(prune.l1_unstructured, amount=0.5)
    for module in network[::2]:
        prune.remove(module, "weight")
    return network, x


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight.triu() + weight.triu(1).mT


@case(KIND, "a parametrization of one's own, over another")
def _():
    layer = nn.Linear(5, 5)
    parametrizations.weight_norm(layer)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(5, 3)), vectors(5)


class LowRank(nn.Module):
    """LoRA: the base is frozen, two thin factors are trained."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = (
            nn.Linear(base.in_features, rank, bias=False),
            nn.Linear(rank, base.out_features, bias=False),
        )

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


@case(KIND, "LoRA", loss="cross_entropy")
def _():
    return nn.Sequential(LowRank(nn.Linear(5, 6)), nn.Tanh(), LowRank(nn.Linear(6, 3))), vectors(5)


@case(KIND, "weight standardization in a convolution of one's own")
def _():
    class Standardized(nn.Conv2d):
        def forward(self, x):
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return self._conv_forward(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)

    layers = [Standardized(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 3)]
    return nn.Sequential(*layers), vectors(2, 6, 5)


@case(KIND, "frozen weights")
def _():
    network = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    network[0].requires_grad_(False)
    network[2].bias.requires_grad_(False)
    network[3].weight.requires_grad_(False)
    return network, vectors(5)


@case(KIND, "all frozen but the head")
def _():
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.Flatten(), nn.Linear(48, 3))
    network[:4].requires_grad_(False).eval()
    return network, vectors(2, 6, 5)


@case(KIND, "only biases are trained")
def _():
    network, x = _all_convolutions(lambda m: m)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    return network, x
