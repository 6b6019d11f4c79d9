"""k_op, the largest eigenvalue of K: by an ordered list of ways to its products, certified by a start of its own."""

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
"""Samples from which on Lanczos begins near the eigenvector of an eighth of them."""

RANDOM_SHARE = 1e-6
"""Random part of the squared norm of a start that begins near an eigenvector: without one, Lanczos may never leave an
invariant subspace. Default: 1e-6, in amplitude the tolerance of k_op, beyond which it would cost products."""

MISSED = 0.01
"""Probability that an eigenvalue is above `TopEigenvalue.upper`."""

MOST_ROWS = 20_000
"""Backward passes for the Jacobian, where it has to be formed: some minutes."""


@dataclass(frozen=True)
class TopEigenvalue:
    """k_op, and what confirms it.

    Attributes:
        operator: K.
        outputs: The network's outputs for its samples.
        subset: Which samples of the whole set they are.
        value: k_op.
        residual: `||K v - k_op v|| / k_op`.
        products: Products with K that were used for it.
        check: Relative difference from plain autograd; see `raysat.ntk.certificate.check_products`.
        upper: Above this K has no eigenvalue, but for a probability of `MISSED`.
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
    """The largest eigenvalue of K, by the first way to products with it that is confirmed.

    Args:
        look: The network, looked at.
        loss: The loss.
        subset: The samples of K; fewer of them are taken where the Jacobian has to be formed.
        tolerance: Relative residual.
        memory: Bytes for chunks, recorded graphs, or the Jacobian.

    Raises:
        NoStatistics: No way is confirmed.
    """
    reasons = []
    for way in _ways(look, len(subset), memory):
        samples = _that_fit(look, subset, memory) if way is Products.ROWS else subset
        try:
            found = _by(way, look, loss, samples, tolerance, memory)
        except InputError:
            raise
        except Exception as error:  # the next way does not depend on what failed here
            reasons.append(f"{way} fails ({first_sentence(error)})")
            look.state.repair()
            continue
        # Rows are plain autograd's own: what they are off by is the network's rounding, as of float32 inside float64.
        if found.check <= TOLERANCE[torch.float32 if way is Products.ROWS else look.dtype]:
            return found
        reasons.append(f"{way} is off by {found.check:.1e}")
    raise NoStatistics(
        f"no way to products with the kernel is confirmed by plain autograd ({'; '.join(reasons)}): "
        "see 'My model fails' in the documentation."
    )


def _ways(look: Look, n: int, memory: int) -> Iterator[Products]:
    if GRAPHS * look.saved * n <= memory:
        yield Products.RECORDED
    yield Products.FORWARD
    yield Products.DOUBLE
    yield Products.ROWS


def _that_fit(look: Look, subset: Tensor, memory: int) -> Tensor:
    """As many of the samples as memory holds the Jacobian of, and `MOST_ROWS` allows."""
    outputs = torch.Size(look.shape).numel()
    parameters = list(trained(look.network).values())
    row = sum(p.numel() for p in parameters) * parameters[0].element_size()
    count = max(1, min(memory // (2 * outputs * row), MOST_ROWS // outputs))
    if count >= len(subset):
        return subset
    order = torch.randperm(len(subset), generator=torch.Generator().manual_seed(0), device="cpu").to(subset.device)
    return subset[order[:count].sort().values]


def _by(way: Products, look: Look, loss: Loss, subset: Tensor, tolerance: float, memory: int) -> TopEigenvalue:
    network = look.network
    x, y = look.x[subset], None if look.y is None else look.y[subset]
    chunk = min(len(x), look.chunk(memory))
    with differentiable(network):
        operator = KernelOperator(network, x, chunk, loss, memory, y=y, way=way)
        outputs = operator.outputs()
        g, second = second_start(operator, outputs, tolerance)
        start = _start(operator, second, outputs)
        runs = [(second.products, 1.0)]
        if _has_head_start(operator):
            found = refined(lambda u: operator(u[0])[None], second, start[None], tolerance=tolerance)
        else:
            found = largest_eigenpairs(lambda u: operator(u[0])[None], start[None], tolerance=tolerance)
            runs.append((found.products, RANDOM_SHARE))
            if second.values[0, -1] > found.values[0] * (1 + max(tolerance, TOLERANCE[look.dtype])):
                # The random start saw a larger one: go on from what both have found.
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
    """Return whether there are so many samples that the kernel of a part of them is worth a look first."""
    return len(operator.x) >= HEAD_START and operator.rows is None


def _start(operator: KernelOperator, second: Tridiagonal, outputs: Tensor) -> Tensor:
    """A vector near the top eigenvector of K, to start from, and a random part of its own.

    Of few samples it is what another random start has found. Of many, the eigenvector v of the kernel of an eighth of
    them, carried to all: `J_all J_some^T v`, its Nystroem extension, which costs little beside products with the whole
    K. The samples are drawn, for their order may mean something. It joins what the random start has found.
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
    carried = operator.pushforward(coarse.pullback(found.vectors[0].to(outputs)))
    return carried / carried.norm().clamp_min(torch.finfo(carried.dtype).tiny)  # random parts come of the other start


def _ritz_vector(found: Tridiagonal, like: Tensor) -> Tensor:
    """The unit Ritz vector of the largest value."""
    vector = (found.vectors[0, :, -1] @ found.basis[0]).view(like.shape)
    return vector / vector.norm().clamp_min(torch.finfo(vector.dtype).tiny)


def _with_noise(vector: Tensor, like: Tensor) -> Tensor:
    """A vector with a random part of `RANDOM_SHARE`, as a unit vector of a tensor's type."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(like.shape, generator=generator, dtype=torch.float64, device="cpu").to(like.device)
    vector = vector / vector.norm().clamp_min(torch.finfo(vector.dtype).tiny)
    return ((1 - RANDOM_SHARE) ** 0.5 * vector + RANDOM_SHARE**0.5 * noise / noise.norm()).to(like.dtype)
