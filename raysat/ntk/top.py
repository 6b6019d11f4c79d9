"""k_op, the largest eigenvalue of K, by the first implementation of products that is confirmed, from two starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from raysat.errors import InputError
from raysat.losses import Loss
from raysat.messages.failures import first_sentence
from raysat.ntk.certificate import TOLERANCE, check_products, second_start
from raysat.ntk.context import differentiable
from raysat.ntk.kernel import GRAPHS, KernelOperator, Products
from raysat.ntk.lanczos import Tridiagonal, excess, largest_eigenpairs, refined
from raysat.ntk.look import Look
from raysat.ntk.plain import trained
from raysat.ntk.refusal import NoStatistics

HEAD_START = 512
"""Smallest number of samples for which Lanczos starts near the eigenvector of the kernel of an eighth of them."""

RANDOM_SHARE = 1e-6
"""Random part of the squared norm of a start near an eigenvector: without it, Lanczos might never leave an invariant
subspace. Default: 1e-6, whose root is the tolerance of k_op; a larger part would cost products."""

MISSED = 0.01
"""Probability that an eigenvalue is larger than `TopEigenvalue.upper`."""

MOST_ROWS = 20_000
"""Largest number of backward passes if the Jacobian must be formed: some minutes."""


@dataclass(frozen=True)
class TopEigenvalue:
    """Largest eigenvalue k_op, with its checks.

    Attributes:
        operator: K.
        outputs: The network's outputs for the samples of K.
        subset: Indices of the samples of K in the whole set.
        value: The eigenvalue k_op.
        residual: `||K v - k_op v|| / k_op`.
        products: Products with K of the last run.
        check: Relative difference from plain autograd; see `raysat.ntk.certificate.check_products`.
        upper: Upper bound of the eigenvalues of K, which fails with probability `MISSED`.
    """

    operator: KernelOperator
    outputs: Float[Tensor, "n *outputs"]
    subset: Tensor
    value: float
    residual: float
    products: int
    check: float
    upper: float


def top_eigenvalue(look: Look, loss: Loss, subset: Tensor, tolerance: float, memory: int) -> TopEigenvalue:
    """Return the largest eigenvalue of K, by the first implementation of its products that is confirmed.

    Args:
        look: The inspected network.
        loss: The loss.
        subset: Indices of the samples of K; fewer of them are used if the Jacobian must be formed.
        tolerance: Relative residual.
        memory: Bytes for chunks, recorded graphs, or the Jacobian.

    Raises:
        NoStatistics: No implementation is confirmed.
    """
    reasons = []
    for way in _ways(look, len(subset), memory):
        samples = _that_fit(look, subset, memory) if way is Products.ROWS else subset
        try:
            found = _by(way, look, loss, samples, tolerance, memory)
        except InputError:
            raise
        except Exception as error:  # the next implementation does not depend on the one that failed
            reasons.append(f"{way} fails ({first_sentence(error)})")
            look.state.repair()
            continue
        # Rows come from plain autograd itself: what differs is the network's rounding, e.g. of float32 inside float64.
        if found.check <= TOLERANCE[torch.float32 if way is Products.ROWS else look.dtype]:
            return found
        reasons.append(f"{way} is off by {found.check:.1e}")
    raise NoStatistics(
        f"no way to products with the kernel is confirmed by plain autograd ({'; '.join(reasons)}): "
        "see 'My model fails' in the documentation."
    )


def _ways(look: Look, n: int, memory: int) -> Iterator[Products]:
    """Yield the implementations that may work, the fastest first."""
    if GRAPHS * look.saved * n <= memory:
        yield Products.RECORDED
    yield Products.FORWARD
    yield Products.DOUBLE
    yield Products.ROWS


def _that_fit(look: Look, subset: Tensor, memory: int) -> Tensor:
    """Return as many of the samples as the memory for the Jacobian and `MOST_ROWS` admit."""
    outputs = torch.Size(look.shape).numel()
    parameters = list(trained(look.network).values())
    row = sum(p.numel() for p in parameters) * parameters[0].element_size()
    count = max(1, min(memory // (2 * outputs * row), MOST_ROWS // outputs))
    if count >= len(subset):
        return subset
    order = torch.randperm(len(subset), generator=torch.Generator().manual_seed(0), device="cpu").to(subset.device)
    return subset[order[:count].sort().values]


def _by(way: Products, look: Look, loss: Loss, subset: Tensor, tolerance: float, memory: int) -> TopEigenvalue:
    """Return the largest eigenvalue by one implementation of the products, with its check."""
    network = look.network
    x, y = look.x[subset], None if look.y is None else look.y[subset]
    chunk = min(len(x), look.chunk(memory))
    with differentiable(network):
        operator = KernelOperator(network, x, chunk, loss, memory, y=y, way=way)
        outputs = operator.outputs()
        g, second = second_start(operator, outputs, tolerance)
        start = _start(operator, second, outputs)
        runs = [(second.products, 1.0)]  # for `excess`: the second start is random as a whole
        if _has_head_start(operator):
            found = refined(lambda u: operator(u[0])[None], second, start[None], tolerance=tolerance)
        else:
            found = largest_eigenpairs(lambda u: operator(u[0])[None], start[None], tolerance=tolerance)
            runs.append((found.products, RANDOM_SHARE))
            if second.values[0, -1] > found.values[0] * (1 + max(tolerance, TOLERANCE[look.dtype])):
                # The random start has found a larger eigenvalue: continue from both subspaces.
                found = refined(lambda u: operator(u[0])[None], second, found.vectors, tolerance=tolerance)
    check = check_products(network, x, y, loss, found, g, second, chunk)
    return TopEigenvalue(
        operator=operator,
        outputs=outputs,
        subset=subset,
        value=found.values.item(),
        residual=found.residuals.item(),
        products=found.products,
        check=check,
        upper=found.values.item() * excess(runs, outputs.numel(), MISSED),
    )


def _has_head_start(operator: KernelOperator) -> bool:
    """Return whether there are enough samples that a start from the kernel of some of them saves products."""
    return len(operator.x) >= HEAD_START and operator.rows is None


def _start(operator: KernelOperator, second: Tridiagonal, outputs: Tensor) -> Tensor:
    """Return a start vector near the top eigenvector of K.

    With few samples it is the Ritz vector found from the second start, with a random part of its own. With many, it is
    the top eigenvector v of the kernel of an eighth of them, extended to all as `J_all J_some^T v` (its Nystroem
    extension), at a small cost compared with products with the whole K. These samples are drawn at random, because
    their order may have a meaning. This vector joins the subspace of the second start.
    """
    n = len(operator.x)
    if not _has_head_start(operator):
        return _with_noise(_ritz_vector(second, outputs), outputs)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randperm(n, generator=generator, device="cpu")[: n // 8].sort().values.to(outputs.device)
    coarse = KernelOperator(
        operator.network,
        operator.x[drawn],
        operator.chunk,
        operator.loss,
        operator.memory_left,
        y=None if operator.y is None else operator.y[drawn],
        way=operator.way,
    )
    shape = outputs[drawn].shape
    start = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(outputs)
    found = largest_eigenpairs(lambda u: coarse(u[0])[None], start[None], tolerance=1e-2)
    # Both products apply the loss's factor: S_all^T J_all J_some^T S_some v.
    carried = operator.pushforward(coarse.pullback(found.vectors[0].to(outputs)))
    return carried / carried.norm().clamp_min(torch.finfo(carried.dtype).tiny)  # the second start adds random parts


def _ritz_vector(found: Tridiagonal, like: Tensor) -> Tensor:
    """Return the unit Ritz vector of the largest Ritz value."""
    vector = (found.vectors[0, :, -1] @ found.basis[0]).view(like.shape)
    return vector / vector.norm().clamp_min(torch.finfo(vector.dtype).tiny)


def _with_noise(vector: Tensor, like: Tensor) -> Tensor:
    """Return a vector with a random part of `RANDOM_SHARE`, as a unit vector of the dtype of `like`."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(like.shape, generator=generator, dtype=torch.float64, device="cpu").to(like.device)
    vector = vector / vector.norm().clamp_min(torch.finfo(vector.dtype).tiny)
    # Unit norm up to the small overlap of the two vectors; Lanczos normalizes again.
    return ((1 - RANDOM_SHARE) ** 0.5 * vector + RANDOM_SHARE**0.5 * noise / noise.norm()).to(like.dtype)
