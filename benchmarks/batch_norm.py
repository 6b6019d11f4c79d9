"""How far gradients of real batches lie from what statistics with frozen batch normalization predict. CIFAR-10.

    RAYSAT_DATA=... python -W ignore benchmarks/batch_norm.py [--n 1000] [--width 8] [--seed 0] [--networks NAME]

It measures `E ||g(S)||^2` over random batches S of b samples, g the gradient of their mean loss in training mode, with
the batch's own statistics. Beside it stands what follows from the gradients g_i of single samples of the frozen network
by Lemma 3.1's algebra, which is exact where a sample has a gradient:

    E ||g(S)||^2 = mean_i ||g_i||^2 / b (1 - (b-1)/(n-1)) + (b-1) n / (b (n-1)) ||grad L||^2

Between the two, "constant" is measured with the statistics of each batch, but no gradient through them. From it to the
prediction is how statistics of b samples scatter; from it to what is measured is the gradient through mean and variance
(and with ghost batches, that "constant" has statistics of the whole batch). At b = n it is the prediction itself.

Under each table is the noise scale `tr(Sigma) / ||grad L||^2`, measured by the same formula from b = 8 and b = n; under
those of the squared error k_op of the first 500 samples, measured by the Jacobian of their outputs in training mode.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from raysat import data, models, resnet
from raysat.losses import LOSSES, Loss
from raysat.ntk import largest_eigenpairs
from raysat.ntk.batchnorm import frozen_batch_norm

BATCHES = {8: 200, 64: 60, 512: 16}
"""Random batches of each size: the standard error is then 1 to 5 %."""


def conv_net(width: int, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Three convolutions in PyTorch's own parametrization, each with batch normalization, ReLU and pooling."""
    layers, channels = [], input_shape[0]
    for after in (width, 2 * width, 4 * width):
        layers += [
            nn.Conv2d(channels, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        channels = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs))


def networks(width: int) -> Iterator[tuple[str, Callable[[tuple[int, ...], int, int], nn.Module]]]:
    """The networks by name, as functions of input shape, outputs and seed."""

    def plain(input_shape: tuple[int, ...], outputs: int, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return conv_net(width, input_shape, outputs)

    yield f"conv net, width {width}", plain
    for ghost in (0, 8):
        model = resnet(10, norm="batch", ghost=ghost)
        name = f"ResNet-10, width {width}" + (f", ghost batches of {ghost}" if ghost else "")
        yield name, lambda shape, outputs, seed, model=model: models.build(model, width, shape, outputs, seed)


def gradient(network: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """The gradient of the mean loss. Shape: [p]."""
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(loss.total(network(x), y) / len(x), parameters)
    return torch.cat([part.flatten() for part in gradients]).double()


def predicted(network: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Callable[[int], float]:
    """E ||g(S)||^2 of the frozen network, by b."""
    n, squares, total = len(x), 0.0, 0.0
    with frozen_batch_norm(network, x):
        for sample, target in zip(x.split(1), y.split(1), strict=True):
            one = gradient(network, sample, target, loss)
            squares, total = squares + one.square().sum().item() / n, total + one / n
    signal = total.square().sum().item()
    return lambda b: squares / b * (1 - (b - 1) / (n - 1)) + (b - 1) * n / (b * (n - 1)) * signal


def measured(
    network: nn.Module, x: Tensor, y: Tensor, loss: Loss, b: int, count: int, constant: bool
) -> tuple[float, float]:
    """Mean of ||g(S)||^2 over random batches, and its standard error."""
    generator = torch.Generator().manual_seed(b)
    squares = []
    for _ in range(count):
        chosen = torch.randperm(len(x), generator=generator)[:b]
        here = x[chosen]
        with frozen_batch_norm(network, here) if constant else nullcontext():
            squares.append(gradient(network, here, y[chosen], loss).square().sum())
    squares = torch.stack(squares)
    return squares.mean().item(), (squares.std() / count**0.5).item() if count > 1 else 0.0


def k_op(network: nn.Module, x: Tensor) -> float:
    """The largest eigenvalue of `(1/n) J J^T` to 1 %, J the Jacobian of all outputs together, mixing or not."""
    parameters, outputs = list(network.parameters()), network(x)
    u = torch.zeros_like(outputs, requires_grad=True)
    pulled = torch.autograd.grad(outputs, parameters, u, create_graph=True)  # J^T u, linear in u

    def product(v: Tensor) -> Tensor:
        direction = torch.autograd.grad(outputs, parameters, v[0], retain_graph=True)
        return torch.autograd.grad(pulled, u, direction, retain_graph=True)[0][None] / len(x)

    start = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0))
    return largest_eigenpairs(product, start[None], tolerance=1e-2).values.item()


def noise_scale(expected: float, signal: float, b: int, n: int) -> float:
    """`(mean_i ||g_i||^2 - ||grad L||^2) / ||grad L||^2` from E ||g(S)||^2 at b and ||grad L||^2."""
    mean_square = (expected - (b - 1) * n / (b * (n - 1)) * signal) * b / (1 - (b - 1) / (n - 1))
    return (mean_square - signal) / signal


def table(network: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> None:
    """Print the figures of a network under a loss."""
    started, n, real = time.perf_counter(), len(x), {}
    frozen = predicted(network, x, y, loss)
    print("| b | measured | constant | predicted | measured / predicted | constant / predicted |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for b, count in {**BATCHES, n: 1}.items():
        (real[b], error), (held, _) = (measured(network, x, y, loss, b, count, constant) for constant in (False, True))
        print(
            f"| {b} | {real[b]:.3g} ± {error:.1g} | {held:.3g} | {frozen(b):.3g} | {real[b] / frozen(b):.2f} | "
            f"{held / frozen(b):.2f} |",
            flush=True,
        )
    if loss.name == "mse":
        sharpness = k_op(network, x[:500])
        with frozen_batch_norm(network, x[:500]):
            print(f"\nk_op of 500 samples: measured {sharpness:.3g}, frozen {k_op(network, x[:500]):.3g}")
    scales = noise_scale(real[8], real[n], 8, n), noise_scale(frozen(1), frozen(n), 1, n)
    print(f"\nnoise scale: measured {scales[0]:.3g}, predicted {scales[1]:.3g}; {time.perf_counter() - started:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--networks", default="", help="only those whose name contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = data.load("cifar10", n_train=arguments.n, n_test=0, preprocessing="standardize")
    for name, build in networks(arguments.width):
        for loss in LOSSES.values():
            if arguments.networks in name:
                network = build(dataset.input_shape, dataset.outputs, arguments.seed).train()
                print(f"\n{name}, {loss.name}, n = {arguments.n}\n")
                table(network, dataset.x, dataset.y, loss)


if __name__ == "__main__":
    main()
