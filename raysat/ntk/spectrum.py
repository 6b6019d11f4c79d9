"""The spectrum of K beyond its largest eigenvalue: measures by Lanczos quadrature, and what a dense kernel tells.

A spectral measure of K and a vector v is `sum_j (u_j^T v)^2 delta(lambda_j)`, u_j the eigenvectors. Lanczos from v
gives its Gauss quadrature: a few nodes and weights that integrate every polynomial of twice their number exactly (Golub
and Meurant 2010). Averaged over random v it is the density of eigenvalues (stochastic Lanczos quadrature: Ubaru, Chen,
Saad 2017).
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
        weights: Their masses. Shape: [k].
    """

    nodes: Float64[Tensor, " k"]
    weights: Float64[Tensor, " k"]


def spectral_measure(
    operator: KernelOperator, v: Float[Tensor, "n *outputs"], steps: int
) -> tuple[Measure, Tridiagonal]:
    """The measure of K and v, of total mass `||v||^2`, and the Lanczos process that it was read from.

    Args:
        operator: K.
        v: The vector, such as the residual at initialization.
        steps: Products with K; nodes at most.
    """
    found = tridiagonalize(lambda u: operator(u[0])[None], v[None], steps)
    mass = v.double().square().sum()
    return Measure(found.values[0], mass * found.vectors[0, 0] ** 2), found


def converged(found: Tridiagonal, tolerance: float) -> Bool[Tensor, " k"]:
    """Return which Ritz values of a Lanczos process are eigenvalues, to a relative residual."""
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
    """The density of K's eigenvalues, of total mass 1.

    Each eigenpair that is known counts 1 over the size of K, exactly, and the probes are of what is orthogonal to their
    vectors: a probe finds the mass of a single eigenvalue only to within a factor, so that the largest ones, which
    decide up to which stepsize SGD is stable, would scatter most. What the probes find is weighted by a linear function
    of the eigenvalue, such that number and sum of the eigenvalues are exact.

    Args:
        operator: K.
        like: A tensor of the shape that K acts on.
        steps: Products with K for each probe.
        probes: Random vectors, of signs, averaged.
        known: A Lanczos process of K, whose converged pairs are known.
        trace: The trace of K; nan where it is not known.
        tolerance: Relative residual up to which pairs are known. Default: 1e-3, that of k_op.
    """
    pairs = converged(known, tolerance)
    top = known.values[0, pairs]
    vectors = known.vectors[0][:, pairs].T @ known.basis[0]
    left = like.numel() - len(top)
    parts = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(probes if left else 0):
        signs = (
            torch.randint(0, 2, like.shape, generator=generator, device="cpu").double().flatten().to(vectors) * 2 - 1
        )
        rest = (signs - (vectors @ signs) @ vectors).view_as(like).to(like)
        part, _ = spectral_measure(operator, rest, steps)
        parts.append(Measure(part.nodes, part.weights / part.weights.sum() * left / probes))
    nodes, weights = (torch.cat([getattr(part, name) for part in parts] or [top[:0]]) for name in ("nodes", "weights"))
    weights = _with_mean(nodes, weights, (trace - top.sum().item()) / max(left, 1))
    nodes, order = torch.cat([top, nodes]).sort()
    return Measure(nodes, torch.cat([torch.ones_like(top), weights])[order] / like.numel())


def _with_mean(nodes: Float64[Tensor, " k"], weights: Float64[Tensor, " k"], mean: float) -> Float64[Tensor, " k"]:
    """The weights times a linear function of the nodes, of the same sum and with a mean.

    Where the function is below 0 it is 0 instead: at nodes far out, of which next to no weight is.
    """
    total = weights.sum()
    now = (weights * nodes).sum() / total
    variance = (weights * (nodes - now) ** 2).sum() / total
    if not (len(nodes) and variance > 0 and mean > 0):  # a mean that is not known is nan
        return weights
    changed = weights * (1 + (mean - now) * (nodes - now) / variance).clamp_min(0)
    return changed * total / changed.sum()


def tight_gamma(kernel: Float[Tensor, "n n"]) -> float:
    """The smallest gamma with `E ||x||^2 x x^T <= gamma E x x^T` (eq. 3.2), for C = 1, from a dense K.

    With X the rows x_i = grad f_i and D = diag(||x_i||^2) = n diag(K), the condition reads
    `u^T D u <= gamma u^T u` for all u in the range of X, which is that of K: gamma is the largest eigenvalue of P D P,
    P the projection onto it. Where K has full rank it is `max_i ||x_i||^2`.
    """
    values, vectors = torch.linalg.eigh(kernel.double())
    kept = vectors[:, values > rounding(kernel) * values[-1]]  # range of K
    norms = len(kernel) * kernel.double().diagonal()
    return torch.linalg.eigvalsh(kept.T @ (norms[:, None] * kept))[-1].item()


def smallest_eigenvalue(kernel: Float[Tensor, "size size"]) -> float:
    """`lambda_min(K)`; 0 where it is no larger than rounding."""
    values = torch.linalg.eigvalsh(kernel.double())
    return values[0].item() if values[0] > rounding(kernel) * values[-1] else 0.0


def rounding(kernel: Float[Tensor, "size size"]) -> float:
    """Relative to the largest eigenvalue, what rounding alone makes of an eigenvalue that is 0.

    A sum of products has an error of a few units times the square root of their number; it has ten times that room.
    """
    return 100 * torch.finfo(kernel.dtype).eps * len(kernel) ** 0.5
