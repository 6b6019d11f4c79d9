"""Lanczos with full reorthogonalization, for one symmetric operator or for a batch of independent ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

Operator = Callable[[Tensor], Tensor]
"""Product of each operator of a batch with its own vector."""


@dataclass(frozen=True)
class Tridiagonal:
    """Tridiagonal `T = Q^T A Q` for each operator A of a batch; Q has orthonormal columns, the first the unit start.

    Attributes:
        values: Eigenvalues of T (Ritz values), ascending. Shape: [batch, k].
        vectors: Eigenvectors of T, as columns. Shape: [batch, k, k].
        basis: Columns of Q. Shape: [batch, k, size].
        last: Norm of the next vector before normalization: `last * |vectors[-1, j]|` is the residual of value j.
        products: Number of products with the operator.
        images: Columns of A Q. Shape: [batch, k, size].
    """

    values: Float64[Tensor, "batch k"]
    vectors: Float64[Tensor, "batch k k"]
    basis: Float64[Tensor, "batch k size"]
    last: Float64[Tensor, " batch"]
    products: int
    images: Float64[Tensor, "batch k size"]


def tridiagonalize(
    operator: Operator, start: Tensor, most: int, done: Callable[[Tridiagonal], bool] = lambda _: False
) -> Tridiagonal:
    """Run Lanczos (Golub and Van Loan, section 10.3), with vectors kept orthogonal in float64.

    Args:
        operator: Symmetric positive semidefinite operators on tensors of the start's shape and dtype, one for each
            entry of the first axis.
        start: The start vectors. Shape: [batch, ...].
        most: Largest number of products. The iteration also ends if all Krylov spaces are exhausted.
        done: Stopping criterion, evaluated after every product.
    """
    size = start[0].numel()

    def apply(vector: Float64[Tensor, "batch size"]) -> Float64[Tensor, "batch size"]:
        return operator(vector.view(start.shape).to(start.dtype)).flatten(1).double()

    q = start.flatten(1).double()
    q = q / q.norm(dim=1, keepdim=True)
    basis, images, diagonal, off_diagonal = [q], [], [], []
    while True:
        w = apply(basis[-1])
        images.append(w)
        diagonal.append((w * basis[-1]).sum(1))
        stacked = torch.stack(basis, 1)
        for _ in range(2):  # "twice is enough" (Kahan and Parlett)
            w = w - ((stacked @ w[:, :, None]).mT @ stacked).squeeze(1)
        last = w.norm(dim=1)
        matrix = torch.diag_embed(torch.stack(diagonal, 1))
        if off_diagonal:
            off = torch.stack(off_diagonal, 1)
            matrix = matrix + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
        values, vectors = torch.linalg.eigh(matrix)
        exhausted = last <= 1e-13 * values[:, -1].abs().clamp_min(torch.finfo(torch.float64).tiny)
        result = Tridiagonal(
            values, vectors, stacked, torch.where(exhausted, 0.0, last), len(diagonal), torch.stack(images, 1)
        )
        if result.products >= min(most, size) or exhausted.all() or done(result):
            return result
        # An exhausted operator continues with zero vectors, which add eigenvalues 0 and change nothing else.
        off_diagonal.append(result.last)
        basis.append(torch.where(exhausted[:, None], 0.0, w / last.clamp_min(torch.finfo(torch.float64).tiny)[:, None]))


@dataclass(frozen=True)
class Eigenpairs:
    """The largest eigenvalue of each operator of a batch.

    Attributes:
        values: Ritz values; up to rounding, lower bounds of the largest eigenvalues. Shape: [batch].
        vectors: Unit Ritz vectors v, float64. Shape: that of the start.
        images: Products `A v`. Shape: that of the start.
        residuals: `||A v - value v|| / value`, computed from the vectors, not from the recurrence. Shape: [batch].
        products: Number of products with the operator.
    """

    values: Float64[Tensor, " batch"]
    vectors: Float64[Tensor, "batch *shape"]
    images: Float64[Tensor, "batch *shape"]
    residuals: Float64[Tensor, " batch"]
    products: int


def largest_eigenpairs(operator: Operator, start: Tensor, *, tolerance: float = 1e-3, most: int = 200) -> Eigenpairs:
    """Return the largest eigenvalues, to a relative residual.

    The iteration stops by the recurrence's estimate of the residual. The residual returned is computed from the vectors
    and their images.

    Args:
        operator: As for `tridiagonalize`.
        start: The start vectors; random ones work. Shape: [batch, ...].
        tolerance: Relative residual to reach. Default: 1e-3; the relative error of the eigenvalue is then about its
            square over the relative gap.
        most: Largest number of products. The residual says how far the iteration came.
    """
    tiny = torch.finfo(torch.float64).tiny

    def done(found: Tridiagonal) -> bool:
        # Half the tolerance, because rounding adds to the estimate of the recurrence. The estimate is one product ahead
        # of the computed residual, and so exposes a start near an eigenvector other than the largest one's.
        estimates = found.last * found.vectors[:, -1, -1].abs()
        return bool((estimates <= tolerance / 2 * found.values[:, -1].abs().clamp_min(tiny)).all())

    found = tridiagonalize(operator, start, most, done)
    values, coefficients = found.values[:, -1], found.vectors[:, None, :, -1]
    # v = Q s and A v = (A Q) s, for the eigenvector s of T: no further product with the operator.
    vectors, products = ((coefficients @ all_).squeeze(1) for all_ in (found.basis, found.images))
    norms = vectors.norm(dim=1, keepdim=True).clamp_min(tiny)  # the zero operator may have a zero vector
    vectors, products = vectors / norms, products / norms
    residuals = (products - values[:, None] * vectors).norm(dim=1) / values.abs().clamp_min(tiny)
    return Eigenpairs(values, vectors.view(start.shape), products.view(start.shape), residuals, found.products)


def refined(
    operator: Operator, known: Tridiagonal, start: Tensor, *, tolerance: float = 1e-3, most: int = 200
) -> Eigenpairs:
    """Return the largest eigenvalue, from a known subspace and one more vector, near the eigenvector.

    Rayleigh-Ritz on a subspace that grows by the residual of its largest Ritz vector (Davidson's method without a
    preconditioner; Saad 2011, Numerical Methods for Large Eigenvalue Problems, section 8.4). From a single vector this
    is Lanczos; with several, none of them is lost. The value is at least the largest Ritz value of `known`.

    Args:
        operator: As for `tridiagonalize`, a batch of one.
        known: Lanczos process from another start; its images are reused.
        start: The further vector. Shape: [1, ...].
        tolerance: Relative residual to reach, as computed from the vectors.
        most: Largest number of products.
    """
    tiny = torch.finfo(torch.float64).tiny
    basis, images = list(known.basis[0]), list(known.images[0])
    direction, products, first = start.flatten().double(), 0, True
    while True:
        before = direction.norm()
        for _ in range(2):  # "twice is enough" (Kahan and Parlett)
            stacked = torch.stack(basis)
            direction = direction - (stacked @ direction) @ stacked
        grows = bool(direction.norm() > 1e-13 * before)  # otherwise it lies in the subspace, up to rounding
        if grows:
            basis.append(direction / direction.norm())
            images.append(operator(basis[-1].view(start.shape).to(start.dtype)).flatten().double())
            products += 1
        stacked, of_stacked = torch.stack(basis), torch.stack(images)
        matrix = stacked @ of_stacked.T
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)  # symmetric up to the operator's rounding
        value, vector, image = values[-1], vectors[:, -1] @ stacked, vectors[:, -1] @ of_stacked
        direction = image - value * vector
        residual = direction.norm() / value.abs().clamp_min(tiny)
        # The first direction may lie in the subspace without the iteration being over: the residual is not yet tried.
        exhausted = (not first and not grows) or direction.norm() <= tiny
        if residual <= tolerance or products >= min(most, len(vector)) or exhausted:
            one = (value[None], vector.view(start.shape), image.view(start.shape), residual[None])
            return Eigenpairs(*one, products)
        first = False


def excess(runs: Sequence[tuple[int, float]], size: int, probability: float) -> float:
    """Return the factor by which the largest eigenvalue may exceed the largest Ritz value, up to a small probability.

    Let `mu` be the largest Ritz value after m products from a unit start q, and `w = (u^T q)^2` for the top eigenvector
    u. If the largest eigenvalue is `c mu`, every polynomial p of degree m - 1 satisfies
    `sum_j w_j p(lambda_j)^2 (lambda_j - mu) <= 0`, summed over the eigenvalues. For the Chebyshev polynomial of
    [0, mu], which is at most 1 there, this gives `w T_{m-1}(2c - 1)^2 (c - 1) <= 1`. A random component of squared norm
    `share` in the start makes a small w improbable, whatever the rest of the start: `P(w <= t) <= 2 sqrt(t size / (2 pi
    share))`, since the density of one of its coordinates is at most `sqrt(size / (2 pi share))`. If there are several
    runs with independent random components, all of them must miss the eigenvalue.

    Args:
        runs: For each run, m and the squared norm of the random component of its unit start.
        size: Dimension of the space.
        probability: Probability that an eigenvalue is larger than the bound.

    Returns:
        c, at least 1; infinity if the products give no bound.
    """

    def log_missed(c: float) -> float:
        """Return the log of the bound on the probability that all runs miss an eigenvalue of `c mu`."""
        total = 0.0
        for products, share in runs:
            # log_t is the log of the largest w possible, 1 / (T_{m-1}(2c - 1)^2 (c - 1)). In logarithms, because
            # T_k(z) = cosh(k arccosh z) overflows for many products.
            angle = (products - 1) * math.acosh(2 * c - 1)
            log_t = -2 * (angle + math.log1p(math.exp(-2 * angle)) - math.log(2)) - math.log(c - 1)
            total += min(0.0, math.log(2) + (log_t + math.log(size / (2 * math.pi * share))) / 2)
        return total

    if size == 1:
        return 1.0
    low, high = 1.0, 2.0  # the bound falls with c: bracket, then bisect
    while log_missed(high) > math.log(probability):
        low, high = high, 2 * high
        if high > 1e9:
            return math.inf
    for _ in range(60):
        middle = (low + high) / 2
        below = middle > 1 and log_missed(middle) <= math.log(probability)
        low, high = (low, middle) if below else (middle, high)
    return high
