"""What stands for 1/beta(b) where a network has no statistics: the inverse curvature of the loss along its gradient.

With `g = grad L(w_0)` let `c(t)` be the curvature that makes the loss at `w_0 - t g` a parabola,

    L(w_0 - t g) = L(w_0) - t ||g||^2 + c(t) t^2 ||g||^2 / 2.

The base stepsize is the t at which `t c(t) = 1`: for t -> 0, c is the Rayleigh quotient `g^T H g / g^T g`, and t its
inverse, Cauchy's step. With the parabola put in, `t c(t) <= 1` says

    L(w_0 - t g) <= L(w_0) - t ||g||^2 / 2,

Armijo's condition with the constant 1/2, so that losses and one gradient are all it takes: it serves whatever can be
trained, be it without second derivatives, mixing the samples of a batch, or under a loss that is not convex. By the
Gauss-Newton matrix c is k_op at most, so that the base stepsize is of the order of 1/k_op = 1/beta(n), and above it.

It is deterministic: the network is in the mode in which it is trained, and each loss is taken with the random
generators seeded alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from raysat.compute.micro_batch import retry_on_oom
from raysat.data.fields import Inputs
from raysat.losses import Loss
from raysat.user_code.seeding import seeded

DOUBLINGS = 60
"""How often t is doubled or halved before the search ends: over 18 orders of magnitude either way."""

HALVINGS = 5
"""Bisections of the last factor of two: t is then known to 2 %, far below the factor sqrt 2 of the grid."""


def base_stepsize(network: nn.Module, x: Inputs, y: Tensor, loss: Loss, chunk: int) -> float:
    """The largest stepsize found at which the loss along its gradient falls by half of what the gradient promises.

    Args:
        network: At w_0. Its weights are moved and put back; buffers that a forward pass changes stay changed.
        x: Inputs.
        y: Targets.
        loss: The loss of a sample.
        chunk: Samples at a time, at most, of each of which a network that mixes samples makes its own batch.

    Returns:
        It; nan where the loss is not finite, has no gradient, or falls at no stepsize.
    """
    weights = [p for p in network.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in weights]
    (initial, gradient), chunk = retry_on_oom(lambda count: _loss_and_gradient(network, x, y, loss, count), chunk)
    square = sum(part.double().square().sum().item() for part in gradient)
    if not (math.isfinite(initial) and 0 < square < math.inf):
        return math.nan

    def falls(t: float) -> bool:
        with torch.no_grad():
            for weight, before, part in zip(weights, start, gradient, strict=True):
                weight.copy_(before - t * part)
        (found, _), _ = retry_on_oom(lambda count: _loss_and_gradient(network, x, y, loss, count, only=True), chunk)
        return found <= initial - t * square / 2

    try:
        # A residual that lies in one eigenvector, of eigenvalue c, has L = ||g||^2 / 2c.
        return _largest(falls, 2 * abs(initial) / square or 1.0)
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, start, strict=True):
                weight.copy_(before)


def _largest(holds: Callable[[float], bool], t: float) -> float:
    """The t up to which a condition holds: the first one found going up or down by factors of two, then bisected."""
    up = holds(t)
    for _ in range(DOUBLINGS):
        further = 2 * t if up else t / 2
        if holds(further) != up:
            break
        t = further
    else:
        return math.nan
    low, high = (t, 2 * t) if up else (t / 2, t)
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _loss_and_gradient(
    network: nn.Module, x: Inputs, y: Tensor, loss: Loss, chunk: int, *, only: bool = False
) -> tuple[float, list[Tensor]]:
    """The mean loss, and its gradient unless the loss `only` is asked for."""
    weights = [p for p in network.parameters() if p.requires_grad]
    total, gradient = 0.0, [torch.zeros_like(p) for p in weights]
    with seeded(0), torch.set_grad_enabled(not only):
        for samples, targets in zip(x.split(chunk), y.split(chunk), strict=True):
            value = loss.total(network(samples), targets)
            total += value.item()
            if not only:
                parts = torch.autograd.grad(value, weights, allow_unused=True, materialize_grads=True)
                for sum_, part in zip(gradient, parts, strict=True):
                    sum_ += part / len(x)
    return total / len(x), gradient
