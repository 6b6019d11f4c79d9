"""The base stepsize of a network without statistics, in place of 1/beta(b): an inverse curvature along the gradient.

With `g = grad L(w_0)`, let `c(t)` be the curvature of the parabola through the loss at `w_0 - t g`,

    L(w_0 - t g) = L(w_0) - t ||g||^2 + c(t) t^2 ||g||^2 / 2.

The base stepsize is the t at which `t c(t) = 1`. As t -> 0, c tends to the Rayleigh quotient `g^T H g / g^T g`, whose
inverse is Cauchy's step. With the parabola inserted, `t c(t) <= 1` reads

    L(w_0 - t g) <= L(w_0) - t ||g||^2 / 2,

Armijo's condition with the constant 1/2. It needs losses and one gradient only, so it applies to any network that can
be trained: without second derivatives, mixing the samples of a batch, or under a loss that is not convex. With the
Gauss-Newton matrix for H, c is at most k_op, so the base stepsize is of the order of 1/k_op = 1/beta(n), and above it.

The search is deterministic: the network stays in the mode in which it is trained, and every loss is evaluated from the
same random seed.
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
"""Largest number of doublings or halvings of t: 18 orders of magnitude in either direction."""

HALVINGS = 5
"""Bisections of the last factor of two. They determine t to 2 %, far below the factor sqrt 2 of the grid."""


def base_stepsize(network: nn.Module, x: Inputs, y: Tensor, loss: Loss, chunk: int) -> float:
    """Return the largest stepsize found at which the loss falls by at least half of its first-order prediction.

    Args:
        network: At w_0. Its weights are moved and restored; buffers that a forward pass changes stay changed.
        x: Inputs.
        y: Targets.
        loss: The loss of a sample.
        chunk: Largest number of samples per pass; a network that mixes samples treats each chunk as one batch.

    Returns:
        The stepsize; nan if the loss is not finite, its gradient is zero or not finite, or no stepsize is found.
    """
    weights = [p for p in network.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in weights]
    (initial, gradient), chunk = retry_on_oom(lambda count: _loss_and_gradient(network, x, y, loss, count), chunk)
    square = sum(part.double().square().sum().item() for part in gradient)
    if not (math.isfinite(initial) and 0 < square < math.inf):
        return math.nan

    def falls(t: float) -> bool:
        nonlocal chunk  # what fits once is what the next pass begins with
        with torch.no_grad():
            for weight, before, part in zip(weights, start, gradient, strict=True):
                weight.copy_(before - t * part)
        (found, _), chunk = retry_on_oom(lambda count: _loss_and_gradient(network, x, y, loss, count, only=True), chunk)
        return found <= initial - t * square / 2

    try:
        # Start from 1/c: a residual along one eigenvector, of eigenvalue c, has L = ||g||^2 / (2 c).
        return _largest(falls, 2 * abs(initial) / square or 1.0)
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, start, strict=True):
                weight.copy_(before)


def _largest(holds: Callable[[float], bool], t: float) -> float:
    """Return the t up to which a condition holds: bracketed by factors of two from the given t, then bisected."""
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
        middle = math.sqrt(low * high)  # bisects on a logarithmic scale: what matters is the relative error of t
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _loss_and_gradient(
    network: nn.Module, x: Inputs, y: Tensor, loss: Loss, chunk: int, *, only: bool = False
) -> tuple[float, list[Tensor]]:
    """Return the mean loss and its gradient, or zeros for the gradient if `only` the loss is requested."""
    weights = [p for p in network.parameters() if p.requires_grad]
    total, gradient = 0.0, [torch.zeros_like(p) for p in weights]
    # One seed for every evaluation: random layers draw the same masks at every t, so the losses are comparable.
    with seeded(0), torch.set_grad_enabled(not only):
        for samples, targets in zip(x.split(chunk), y.split(chunk), strict=True):
            value = loss.total(network(samples), targets)
            total += value.item()
            if not only:
                parts = torch.autograd.grad(value, weights, allow_unused=True, materialize_grads=True)
                for sum_, part in zip(gradient, parts, strict=True):
                    sum_ += part / len(x)
    return total / len(x), gradient
