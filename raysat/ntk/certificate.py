"""Checks of every statistic by a path that shares nothing with the one that computed it: plain reverse-mode autograd.

A check is a relative difference. It is a column beside the statistic, and where it is larger than rounding explains the
next way is taken.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raysat.data.fields import Inputs
from raysat.losses import Loss
from raysat.ntk import plain
from raysat.ntk.kernel import KernelOperator
from raysat.ntk.lanczos import Eigenpairs, Tridiagonal, tridiagonalize
from raysat.ntk.per_sample import PerSample, weighed_gram

TOLERANCE = {torch.float32: 5e-4, torch.float64: 1e-6}
"""Up to which difference a statistic is believed. In float32, networks of a hundred layers differ by 1e-4 where nothing
but the order of sums does."""

SECOND_START = 4
"""Products from the random start of k_op that comes first, and that k_op must not fall short of, at a tolerance of
1e-3. Default: 4, and one more for each digit beyond; see `raysat.ntk.lanczos.excess` for what they can miss."""


def check_samples(
    network: nn.Module,
    x: Inputs,
    y: Tensor | None,
    loss: Loss,
    found: PerSample,
    which: list[int],
) -> tuple[float, float]:
    """Largest relative differences of operator norms, and of gradient squares, of some samples from plain autograd.

    Of few outputs all rows of the Jacobian are made; of many, the Rayleigh quotient of the vector that was found.

    Args:
        network: The network.
        x: All samples.
        y: All targets, or None.
        loss: The loss.
        found: What was found of all samples.
        which: The samples to check.

    Returns:
        The differences, relative to the operator norm and to the mean gradient square; the second is NaN without
        targets.
    """
    of_norms, of_squares = [], []
    # Residuals of rounding alone have gradients of rounding alone.
    rounding = torch.finfo(next(iter(plain.trained(network).values())).dtype).eps
    least = rounding * found.operator_norms.max().item()
    mean_square = max(found.gradient_squares.mean().item(), least)
    for k in which:
        sample, target = x[k : k + 1], None if y is None else y[k : k + 1]
        norm = found.operator_norms[k].item()
        if k in found.vectors:
            v = found.vectors[k][None]
            exact = _square(plain.sample_gradient(network, sample, lambda f: loss.factor(f, target, v.to(f))))  # noqa: B023
        else:
            outputs = network(sample).detach().double()
            weighed = weighed_gram(outputs, plain.sample_gram(network, sample)[None], target, loss)
            exact = torch.linalg.eigvalsh(weighed)[0, -1].item()
        of_norms.append(difference(norm, exact))
        if y is not None:
            exact = _square(plain.sample_gradient(network, sample, lambda f: loss.residual(f, y[k : k + 1])))  # noqa: B023
            of_squares.append(abs(found.gradient_squares[k].item() - exact) / max(mean_square, TINY))
    return _largest(of_norms), _largest(of_squares) if of_squares else math.nan


TINY = torch.finfo(torch.float64).tiny


def difference(value: float, exact: float) -> float:
    """`|value - exact| / max(|value|, |exact|)`; infinite where one is not finite."""
    if not (math.isfinite(value) and math.isfinite(exact)):
        return math.inf
    return abs(value - exact) / max(abs(value), abs(exact), TINY)


def _largest(values: list[float]) -> float:
    """The maximum, in which a NaN is not lost."""
    return math.inf if any(math.isnan(value) for value in values) else max(values)


def _square(gradient: dict[str, Tensor]) -> float:
    return sum(g.double().square().sum().item() for g in gradient.values())


def second_start(
    operator: KernelOperator, like: Float[Tensor, "n *outputs"], tolerance: float = 1e-3
) -> tuple[Tensor, Tridiagonal]:
    """A few products with K from a random start of its own: the unit start, and what Lanczos made of them."""
    most = SECOND_START + max(0, math.ceil(-math.log10(tolerance) - 3 - 1e-9))
    start = torch.randn(like.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64, device="cpu")
    start = (start / start.norm()).to(like.device)
    return start, tridiagonalize(lambda u: operator(u[0])[None], start[None].to(like), most)


def check_products(
    network: nn.Module,
    x: Inputs,
    y: Tensor | None,
    loss: Loss,
    found: Eigenpairs,
    start: Float[Tensor, "n *outputs"],
    second: Tridiagonal,
    chunk: int,
) -> float:
    """Relative difference of `(v + g)^T K (v + g)` from plain autograd, v the eigenvector found, g the second start.

    By products it is `v^T K v + 2 g^T K v + g^T K g`, each known already; by plain autograd one backward pass. A fault
    in any direction that a random vector sees shows.

    Args:
        network: The network.
        x: The samples of K.
        y: Their targets, or None.
        loss: The loss.
        found: k_op's eigenpair.
        start: g, a unit vector.
        second: What Lanczos made of it.
        chunk: Samples at a time.
    """
    v, image = found.vectors[0], found.images[0]
    own = (second.vectors[0, 0].square() * second.values[0]).sum()  # g^T K g, the first entry of the tridiagonal matrix
    other = max(1, 2 * chunk // 3)  # what depends on how samples are put together shows
    by_products = (v * image).sum() + 2 * (start * image).sum() + own
    return difference(by_products.item(), plain.quadratic_form(network, x, loss, y, v + start, other))


def check_kernel(
    network: nn.Module, x: Inputs, loss: Loss, kernel: Float[Tensor, "size size"], shape: tuple[int, ...]
) -> float:
    """Largest relative difference of `u^T K u` by a dense K from plain autograd, over two random vectors.

    One vector is random in all entries, one in those of three samples, which are a larger part of it.
    """
    generator = torch.Generator().manual_seed(11)
    u = torch.randn((2, len(x), *shape), generator=generator, dtype=torch.float64, device="cpu")
    u[1, 3:] = 0
    differences = []
    for vector in u.to(kernel.device):
        flat = vector.flatten().to(kernel)
        exact = plain.quadratic_form(network, x, loss, None, vector, 1)
        differences.append(difference((flat @ kernel @ flat).item(), exact))
    return _largest(differences)
