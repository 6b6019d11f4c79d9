"""The spectrum of K beyond its largest eigenvalue: measures by Lanczos quadrature, and statistics of a dense kernel.

The spectral measure of K and a vector v is `sum_j (u_j^T v)^2 delta(lambda_j)`, u_j the eigenvectors. Lanczos from v
gives its Gauss quadrature: k nodes and weights that integrate every polynomial of degree below 2k exactly (Golub and
Meurant 2010). Averaged over random v, the measure is the density of eigenvalues (stochastic Lanczos quadrature: Ubaru,
Chen and Saad 2017).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from raysat.ntk.kernel import KernelOperator
from raysat.ntk.lanczos import Tridiagonal, tridiagonalize


@dataclass(frozen=True)
class Measure:
    """A discrete measure on the eigenvalues.

    Attributes:
        nodes: Eigenvalues, ascending. Shape: [k].
        weights: Mass at each node. Shape: [k].
    """

    nodes: Float64[Tensor, " k"]
    weights: Float64[Tensor, " k"]


def spectral_measure(
    operator: KernelOperator, v: Float[Tensor, "n *outputs"], steps: int
) -> tuple[Measure, Tridiagonal]:
    """Return the measure of K and v, of total mass `||v||^2`, and the Lanczos process that yields it.

    Args:
        operator: K.
        v: The vector, such as the residual at initialization.
        steps: Largest number of products with K, and of nodes.
    """
    # The weights of Gauss quadrature are the squared first components of the eigenvectors of T.
    found = tridiagonalize(lambda u: operator(u[0])[None], v[None], steps)
    mass = v.double().square().sum()
    return Measure(found.values[0], mass * found.vectors[0, 0] ** 2), found


def converged(found: Tridiagonal, tolerance: float) -> Bool[Tensor, " k"]:
    """Return which Ritz values of a Lanczos process have converged to eigenvalues, to a relative residual."""
    return found.last[0] * found.vectors[0, -1].abs() <= tolerance * found.values[0].abs()


def spectral_density(
    operator: KernelOperator,
    like: Float[Tensor, "n *outputs"],
    steps: int,
    probes: int,
    known: Tridiagonal,
    trace: float,
    tolerance: float = 1e-3,
) -> Measure:
    """Return the density of K's eigenvalues, of total mass 1.

    Each known eigenpair has exactly the mass 1 over the size of K, and the probes are orthogonal to the known vectors.
    A probe determines the mass of a single eigenvalue only up to a factor, so the largest ones, which decide up to
    which stepsize SGD is stable, would scatter most. The masses from the probes are multiplied by a linear function of
    the eigenvalue such that the number and the sum of the eigenvalues are exact.

    Args:
        operator: K.
        like: A tensor of the shape that K acts on.
        steps: Products with K for each probe.
        probes: Number of random sign vectors over which the density is averaged.
        known: A Lanczos process of K, whose converged pairs are the known ones.
        trace: The trace of K; nan if unknown.
        tolerance: Relative residual up to which pairs count as converged. Default: 1e-3, that of k_op.
    """
    pairs = converged(known, tolerance)
    top = known.values[0, pairs]
    vectors = known.vectors[0][:, pairs].T @ known.basis[0]  # Ritz vectors, one per row
    left = like.numel() - len(top)
    parts = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(probes if left else 0):
        signs = (
            torch.randint(0, 2, like.shape, generator=generator, device="cpu").double().flatten().to(vectors) * 2 - 1
        )
        # The part of the signs orthogonal to the known vectors.
        rest = (signs - (vectors @ signs) @ vectors).view_as(like).to(like)
        part, _ = spectral_measure(operator, rest, steps)
        parts.append(Measure(part.nodes, part.weights / part.weights.sum() * left / probes))
    nodes, weights = (torch.cat([getattr(part, name) for part in parts] or [top[:0]]) for name in ("nodes", "weights"))
    # The eigenvalues not known sum up to the trace minus the known ones.
    weights = _with_mean(nodes, weights, (trace - top.sum().item()) / max(left, 1))
    nodes, order = torch.cat([top, nodes]).sort()
    return Measure(nodes, torch.cat([torch.ones_like(top), weights])[order] / like.numel())


def _with_mean(nodes: Float64[Tensor, " k"], weights: Float64[Tensor, " k"], mean: float) -> Float64[Tensor, " k"]:
    """Return the weights multiplied by a linear function of the nodes, with the same sum and a given mean.

    Where the function is negative it is replaced by 0. This happens at nodes far out, with almost no weight.
    """
    total = weights.sum()
    now = (weights * nodes).sum() / total
    variance = (weights * (nodes - now) ** 2).sum() / total
    if not (len(nodes) and variance > 0 and mean > 0):  # an unknown mean is nan, and fails the last condition
        return weights
    # A factor 1 + s (node - now) keeps the sum and moves the mean by s times the variance. Clamping changes the sum.
    changed = weights * (1 + (mean - now) * (nodes - now) / variance).clamp_min(0)
    return changed * total / changed.sum()


def tight_gamma(kernel: Float[Tensor, "n n"]) -> float:
    """Return the smallest gamma with `E ||x||^2 x x^T <= gamma E x x^T` (eq. 3.2), for C = 1, from a dense K.

    For X with rows x_i = grad f_i and D = diag(||x_i||^2) = n diag(K), the condition reads `u^T D u <= gamma u^T u` for
    all u in the range of X, which is the range of K. So gamma is the largest eigenvalue of P D P, with P the projection
    onto this range. If K has full rank, it is `max_i ||x_i||^2`.
    """
    values, vectors = torch.linalg.eigh(kernel.double())
    kept = vectors[:, values > rounding(kernel) * values[-1]]  # orthonormal basis of the range of K
    norms = len(kernel) * kernel.double().diagonal()
    # In this basis P D P is V^T D V, a smaller matrix with the same largest eigenvalue.
    return torch.linalg.eigvalsh(kept.T @ (norms[:, None] * kept))[-1].item()


def smallest_eigenvalue(kernel: Float[Tensor, "size size"]) -> float:
    """Return `lambda_min(K)`; 0 if it is no larger than rounding."""
    values = torch.linalg.eigvalsh(kernel.double())
    return values[0].item() if values[0] > rounding(kernel) * values[-1] else 0.0


def rounding(kernel: Float[Tensor, "size size"]) -> float:
    """Return the size that rounding may give an eigenvalue 0, relative to the largest eigenvalue.

    A sum of products has an error of a few units times the square root of their number; this allows ten times as much.
    """
    return 100 * torch.finfo(kernel.dtype).eps * len(kernel) ** 0.5
