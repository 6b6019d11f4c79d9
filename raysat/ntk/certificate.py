"""Verification of every statistic by plain reverse-mode autograd, a path that shares nothing with its computation.

A check is a relative difference, stored in a column next to its statistic. If it is larger than rounding explains, the
next implementation is tried.
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
"""Largest check at which a statistic is accepted. In float32, a change of the order of summation alone changes the
results of networks of a hundred layers by 1e-4."""

SECOND_START = 4
"""Products from a random start, run before the search for k_op; k_op must reach their Ritz value. Default: 4 at a
tolerance of 1e-3, and one more per further digit; `raysat.ntk.lanczos.excess` bounds what they can miss."""


def check_samples(
    network: nn.Module,
    x: Inputs,
    y: Tensor | None,
    loss: Loss,
    found: PerSample,
    which: list[int],
) -> tuple[float, float]:
    """Return the largest relative differences of some samples' operator norms and gradient squares from plain autograd.

    With few outputs, all rows of the Jacobian are formed; with many, the Rayleigh quotient of the vector found.

    Args:
        network: The network.
        x: All samples.
        y: All targets, or None.
        loss: The loss.
        found: The quantities of all samples, to be checked.
        which: Indices of the samples to check.

    Returns:
        The differences, relative to the operator norm and to the mean gradient square; the second is NaN without
        targets.
    """
    of_norms, of_squares = [], []
    # Lower bound of the scale of gradient squares: residuals that are rounding errors have such gradients, too.
    rounding = torch.finfo(next(iter(plain.trained(network).values())).dtype).eps
    least = rounding * found.operator_norms.max().item()
    mean_square = max(found.gradient_squares.mean().item(), least)
    for k in which:
        sample, target = x[k : k + 1], None if y is None else y[k : k + 1]
        norm = found.operator_norms[k].item()
        if k in found.vectors:  # ||J^T S v||^2, the Rayleigh quotient of the unit vector v
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
    """Return `|value - exact| / max(|value|, |exact|)`; infinity if either is not finite."""
    if not (math.isfinite(value) and math.isfinite(exact)):
        return math.inf
    return abs(value - exact) / max(abs(value), abs(exact), TINY)


def _largest(values: list[float]) -> float:
    """Return the maximum; infinity if a value is NaN, which `max` could lose."""
    return math.inf if any(math.isnan(value) for value in values) else max(values)


def _square(gradient: dict[str, Tensor]) -> float:
    return sum(g.double().square().sum().item() for g in gradient.values())


def second_start(
    operator: KernelOperator, like: Float[Tensor, "n *outputs"], tolerance: float = 1e-3
) -> tuple[Tensor, Tridiagonal]:
    """Return a random unit vector, and the result of a few Lanczos steps from it."""
    # One more product per digit of the tolerance beyond 1e-3; 1e-9 absorbs the rounding of log10.
    most = SECOND_START + max(0, math.ceil(-math.log10(tolerance) - 3 - 1e-9))
    # Drawn on the CPU in float64, so that every device and dtype starts from the same vector.
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
    """Return the relative difference of `(v + g)^T K (v + g)` from plain autograd.

    v is the eigenvector found and g the second start. From the products the number is `v^T K v + 2 g^T K v + g^T K g`,
    whose terms are all known; plain autograd takes one backward pass. An error of K shows in any direction in which
    the random g has a component.

    Args:
        network: The network.
        x: The samples of K.
        y: Their targets, or None.
        loss: The loss.
        found: The eigenpair of k_op.
        start: g, a unit vector.
        second: Result of the Lanczos steps from g.
        chunk: Samples per chunk in the computation to be checked.
    """
    v, image = found.vectors[0], found.images[0]
    own = (second.vectors[0, 0].square() * second.values[0]).sum()  # g^T K g, the first entry of the tridiagonal matrix
    other = max(1, 2 * chunk // 3)  # another chunk size, so that any dependence on the chunks shows
    by_products = (v * image).sum() + 2 * (start * image).sum() + own
    return difference(by_products.item(), plain.quadratic_form(network, x, loss, y, v + start, other))


def check_kernel(
    network: nn.Module, x: Inputs, loss: Loss, kernel: Float[Tensor, "size size"], shape: tuple[int, ...]
) -> float:
    """Return the largest relative difference of `u^T K u` for a dense K from plain autograd, over two random vectors.

    The first vector is random in all entries. The second is zero beyond the first three samples, so that an error in
    these is a larger part of the value.
    """
    generator = torch.Generator().manual_seed(11)
    u = torch.randn((2, len(x), *shape), generator=generator, dtype=torch.float64, device="cpu")
    u[1, 3:] = 0
    differences = []
    for vector in u.to(kernel.device):
        flat = vector.flatten().to(kernel)
        exact = plain.quadratic_form(network, x, loss, None, vector, 1)  # no chunk mixes two samples
        differences.append(difference((flat @ kernel @ flat).item(), exact))
    return _largest(differences)
