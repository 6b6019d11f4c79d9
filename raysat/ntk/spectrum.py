"""The spectrum of K beyond its largest eigenvalue: spectral measures by Lanczos quadrature, and dense on a subset.

A spectral measure of K and a vector v is `sum_j (u_j^T v)^2 delta(lambda_j)`, u_j the eigenvectors. Lanczos from v
gives its Gauss quadrature: a few nodes and weights that integrate every polynomial of twice their number exactly (Golub
and Meurant 2010). Averaged over random v it is the density of eigenvalues (stochastic Lanczos quadrature: Ubaru, Chen,
Saad 2017).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor, nn

from raysat.ntk import grams
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


def spectral_density(operator: KernelOperator, like: Float[Tensor, "n *outputs"], steps: int, probes: int) -> Measure:
    """The density of K's eigenvalues, of total mass 1.

    Args:
        operator: K.
        like: A tensor of the shape that K acts on.
        steps: Products with K for each probe.
        probes: Random vectors, of signs, averaged.
    """
    generator = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(probes):
        signs = torch.randint(0, 2, like.shape, generator=generator).to(like) * 2 - 1
        parts.append(spectral_measure(operator, signs, steps)[0])
    nodes, order = torch.cat([part.nodes for part in parts]).sort()
    weights = torch.cat([part.weights for part in parts])[order]
    return Measure(nodes, weights / (probes * like.numel()))


def dense_kernel(network: nn.Module, x: Shaped[Tensor, "n *input"]) -> Float[Tensor, "size size"]:
    """K of a few samples as a matrix of size nC, for the squared error, by layer rules where they serve the network."""
    rules = grams.uncovered(network) is None
    return grams.kernel_by_rules(network, x) if rules else grams.kernel_by_jacobians(network, x)


def tight_gamma(kernel: Float[Tensor, "n n"]) -> float:
    """The smallest gamma with `E ||x||^2 x x^T <= gamma E x x^T` (eq. 3.2), for C = 1, from a dense K.

    With X the rows x_i = grad f_i and D = diag(||x_i||^2) = n diag(K), the condition reads
    `u^T D u <= gamma u^T u` for all u in the range of X, which is that of K: gamma is the largest eigenvalue of P D P,
    P the projection onto it. Where K has full rank it is `max_i ||x_i||^2`.
    """
    kernel = kernel.double()
    values, vectors = torch.linalg.eigh(kernel)
    kept = vectors[:, values > 1e-10 * values[-1]]  # range of K, up to rounding
    norms = len(kernel) * kernel.diagonal()
    return torch.linalg.eigvalsh(kept.T @ (norms[:, None] * kept))[-1].item()
