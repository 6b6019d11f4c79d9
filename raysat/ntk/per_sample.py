"""Per-sample quantities, streamed in chunks: operator norms, Frobenius norms and gradient norms.

There are several implementations (`ways`), tried in order of speed; `raysat.ntk.certificate` verifies that the result
is right for the network.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from raysat.compute.memory import give_back, out_of_memory
from raysat.compute.sums import summed
from raysat.data.fields import Inputs
from raysat.losses import Loss
from raysat.ntk import grams, plain
from raysat.ntk.grams import Parts, without_rules
from raysat.ntk.lanczos import largest_eigenpairs
from raysat.ntk.look import Look
from raysat.ntk.plain import trained
from raysat.ntk.products import ByRules, by_vmap, gradient_squares_by_vmap, one_sample
from raysat.ntk.refusal import NoStatistics
from raysat.ntk.survey import Survey

MOST_OUTPUTS = 128
"""Largest number of outputs per sample for which its Gram matrix is formed, at one backward pass per output."""


AT_ONCE = 64
"""Samples per chunk if they are processed one by one: larger chunks are no faster and report progress less often."""


class Method(enum.StrEnum):
    """How per-sample quantities are computed.

    GRAM wins if layers have rules and a sample has few outputs: it takes C backward passes and forms gradients only of
    the parameters that no rule covers. JACOBIAN works for any module that `torch.func.vmap(jacrev)` supports, with few
    outputs, at C p numbers per sample. ITERATION wins if a sample has many outputs, such as a sequence of logits: it
    takes about ten products per sample and no matrix of outputs by outputs, but gives no Frobenius norm. PLAIN takes
    one sample at a time, in reverse mode only, and works for any network that `loss.backward()` works for.
    """

    GRAM = "gram"
    JACOBIAN = "jacobian"
    ITERATION = "iteration"
    PLAIN = "plain"


@dataclass(frozen=True)
class PerSample:
    """Quantities of each sample.

    Attributes:
        operator_norms: `lambda_max(J_i J_i^T)`, weighted by the loss's Hessian. Shape: [n].
        frobenius: `||J_i||_F^2`, weighted likewise; NaN by iteration. Shape: [n].
        gradient_squares: `||J_i^T r_i||^2`; NaN without targets. Shape: [n].
        loss: Sum of the samples' losses; NaN without targets.
        gradient: `sum_i J_i^T r_i`, the gradient of `loss`, by parameter; empty without targets.
        vectors: By index of some samples, the unit vector v whose `||J_i^T S_i v||^2` is the operator norm; by
            iteration only.
    """

    operator_norms: Float64[Tensor, " n"]
    frobenius: Float64[Tensor, " n"]
    gradient_squares: Float64[Tensor, " n"]
    loss: float
    gradient: Sequence[Float64[Tensor, "..."]] = ()
    vectors: dict[int, Tensor] = field(default_factory=dict)


class Chunk(NamedTuple):
    """Quantities of the samples of a chunk, as in `PerSample`; `vectors` has one row per sample, or is None."""

    operator_norms: Tensor
    frobenius: Tensor
    gradient_squares: Tensor
    loss: float
    gradient: Sequence[Tensor]
    vectors: Tensor | None


@dataclass(frozen=True)
class Way:
    """An implementation of the per-sample quantities.

    Attributes:
        method: The method that it implements.
        compute: Function `(network, x, y, loss, tolerance) -> Chunk` of samples that fit in memory.
        bytes_per_sample: Function that measures the bytes that a sample takes.
        rehearse: Whether it is first verified on a few samples. Not needed for rules, which the survey verifies, and
            for plain autograd.
    """

    method: Method
    compute: Callable[[nn.Module, Inputs, Tensor | None, Loss, float], Chunk]
    bytes_per_sample: Callable[[], int]
    rehearse: bool = True


def many_outputs(shape: tuple[int, ...]) -> bool:
    """Return whether a sample has too many outputs for its Gram matrix."""
    return len(shape) > 1 or math.prod(shape) > MOST_OUTPUTS


def ways(look: Look, surveyed: Survey, method: str | None, memory: int) -> Iterator[Way]:
    """Yield the implementations that may work for a network, the fastest first.

    Args:
        look: The inspected network.
        surveyed: The parameters that the layer rules cover.
        method: One of `Method`, to use this one only.
        memory: Bytes that the Jacobian of one sample may take.
    """
    for way in _many(look, surveyed, memory) if _iterates(look, method) else _few(look, surveyed):
        if method in (None, way.method):
            yield way


def _iterates(look: Look, method: str | None) -> bool:
    """Return whether the quantities come from products, without Gram matrices."""
    if method in (Method.GRAM, Method.JACOBIAN) and len(look.shape) > 1:
        raise NoStatistics(f"method={method!r} needs outputs [n, C]: use method='iteration' for sequences.")
    return method == Method.ITERATION or (method not in (Method.GRAM, Method.JACOBIAN) and many_outputs(look.shape))


def _few(look: Look, surveyed: Survey) -> Iterator[Way]:
    """Yield the implementations by Gram matrices, for few outputs per sample."""

    def by_grams(method: Method, parts: Parts, rehearse: bool = True) -> Way:
        def compute(network: nn.Module, x: Inputs, y: Tensor | None, loss: Loss, tolerance: float) -> Chunk:
            return _of_grams(network, *grams.grams(network, x, parts), y, loss)

        return Way(method, compute, lambda: grams.bytes_per_sample(look.network, look.few, parts), rehearse)

    if surveyed.covered:
        # Rules alone were verified by the survey; the rows of the other parameters were not.
        yield by_grams(Method.GRAM, Parts(surveyed, surveyed.rest, grams.jacobians), bool(surveyed.rest))
        if surveyed.rest:
            yield by_grams(Method.GRAM, Parts(surveyed, surveyed.rest, plain.rows))
    yield by_grams(Method.JACOBIAN, without_rules(look.network, grams.jacobians))
    yield by_grams(Method.PLAIN, without_rules(look.network, plain.rows), rehearse=False)


def _of_grams(network: nn.Module, graph: Tensor, gram: Tensor, y: Tensor | None, loss: Loss) -> Chunk:
    """Return the quantities from Gram matrices, and the outputs with their graph."""
    outputs = graph.detach()
    squares, total, pulled = torch.full([len(outputs)], math.nan, device=outputs.device), math.nan, []
    if y is not None:
        residual = loss.residual(outputs, y)
        squares = (residual[:, None] @ gram @ residual[:, :, None]).flatten()  # r_i^T J_i J_i^T r_i
        total, pulled = _summed(network, graph, residual, y, loss)
    weighed = weighed_gram(outputs, gram, y, loss)
    frobenius = weighed.diagonal(dim1=1, dim2=2).sum(1)
    return Chunk(torch.linalg.eigvalsh(weighed)[:, -1], frobenius, squares, total, pulled, None)


def weighed_gram(outputs: Tensor, gram: Tensor, y: Tensor | None, loss: Loss) -> Tensor:
    """Return `S^T G S` of each sample, for symmetric G. Shape: [n, C, C]."""

    def times_s(rows: Tensor) -> Tensor:
        """Multiply each sample's matrix by S: `S^T` applied to its rows, whose axis comes before the batch axis."""
        return loss.factor_transposed(outputs, y, rows.transpose(0, 1)).transpose(0, 1)

    return times_s(times_s(gram).mT)  # G S, whose transpose is S^T G, times S


def _many(look: Look, surveyed: Survey, memory: int) -> Iterator[Way]:
    """Yield the implementations by products with each sample's own kernel, for many outputs per sample."""
    saved = look.saved
    weights = trained(look.network)
    size = sum(p.numel() for p in weights.values()) * next(iter(weights.values())).element_size()

    def rules(network: nn.Module, x: Inputs, y: Tensor | None, loss: Loss, tolerance: float) -> Chunk:
        products = ByRules(network, x, loss, y, surveyed)
        return _of_products(network, products, products.gradient_squares, products.outputs, y, loss, tolerance)

    def vmap(network: nn.Module, x: Inputs, y: Tensor | None, loss: Loss, tolerance: float) -> Chunk:
        products = by_vmap(network, x, loss, y)
        squares = partial(gradient_squares_by_vmap, network, x)
        return _of_products(network, products, squares, network(x), y, loss, tolerance)

    def alone(network: nn.Module, x: Inputs, y: Tensor | None, loss: Loss, tolerance: float) -> Chunk:
        parts: list[Chunk] = []
        for k in range(len(x)):
            sample, target = x[k : k + 1], None if y is None else y[k : k + 1]
            operator = one_sample(network, sample, loss, target, memory)
            parts.append(_of_products(network, operator, None, network(sample), target, loss, tolerance))
        return Chunk(
            *_joined(parts),
            sum(part.loss for part in parts),
            [summed(p) for p in zip(*(part.gradient for part in parts), strict=True)],
            torch.cat([part.vectors for part in parts if part.vectors is not None]),
        )

    if surveyed.covered and not surveyed.rest:
        largest = max(p.numel() for p in weights.values()) * next(iter(weights.values())).element_size()
        # `OuterSum.between` is no larger than the layer's input, wherever it is formed.
        yield Way(Method.ITERATION, rules, lambda: 9 * saved + 3 * largest, rehearse=False)
    # The gradient and the direction of each sample are formed, and activations at every layer with their tangents.
    yield Way(Method.ITERATION, vmap, lambda: 3 * size + 10 * saved)
    yield Way(Method.PLAIN, alone, lambda: 4 * saved, rehearse=False)


def _joined(parts: Sequence[Chunk]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the operator norms, Frobenius norms and gradient squares of all samples."""
    norms = torch.cat([part.operator_norms for part in parts])
    frobenius = torch.cat([part.frobenius for part in parts])
    return norms, frobenius, torch.cat([part.gradient_squares for part in parts])


def _of_products(
    network: nn.Module,
    products: Callable[[Tensor], Tensor],
    squares: Callable[[Tensor], Tensor] | None,
    graph: Tensor,
    y: Tensor | None,
    loss: Loss,
    tolerance: float,
) -> Chunk:
    """Return the quantities from products with each sample's own kernel, and the outputs with their graph.

    `squares` maps the residual to the gradient squares. It is None for a single sample, whose gradient square is that
    of the summed gradient.
    """
    outputs = graph.detach()
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(outputs.shape, generator=generator, dtype=torch.float64, device="cpu").to(outputs)
    found = largest_eigenpairs(products, start, tolerance=tolerance)
    nothing = torch.full([len(outputs)], math.nan, device=outputs.device)
    if y is None:
        return Chunk(found.values, nothing, nothing, math.nan, [], found.vectors)
    residual = loss.residual(outputs, y)
    square = squares(residual) if squares else None  # before `_summed` frees the graph
    total, pulled = _summed(network, graph, residual, y, loss)
    if square is None:
        square = summed(g.double().square().sum() for g in pulled)[None]
    return Chunk(found.values, nothing, square, total, pulled, found.vectors)


def _summed(network: nn.Module, graph: Tensor, residual: Tensor, y: Tensor, loss: Loss) -> tuple[float, list[Tensor]]:
    """Return the sum of the samples' losses, and its gradient by the last backward pass of the graph."""
    gradient = plain.gradients(graph, list(trained(network).values()), residual)
    return loss.total(graph.detach().double(), y).item(), gradient


def per_sample(
    network: nn.Module,
    x: Inputs,
    y: Tensor | None,
    loss: Loss,
    way: Way,
    memory: int,
    tolerance: float,
    watched: tuple[int, ...] = (),
    progress: Callable[[int], object] | None = None,
) -> PerSample:
    """Compute the quantities of every sample, in chunks.

    Args:
        network: The network.
        x: Inputs.
        y: Targets, or None.
        loss: The loss.
        way: One of `ways`.
        memory: Bytes that the intermediate values of a chunk may take. If memory runs out, chunks are halved.
        tolerance: Relative residual of each operator norm by iteration.
        watched: Indices of samples whose vectors are kept, besides the one with the largest operator norm.
        progress: Callback with the number of samples that are done.
    """
    most = AT_ONCE if way.method is Method.PLAIN else len(x)
    chunk = max(1, min(most, memory // max(1, way.bytes_per_sample())))
    parts: list[Chunk] = []
    vectors: dict[int, Tensor] = {}
    gradient = [] if y is None else [torch.zeros_like(p, dtype=torch.float64) for p in trained(network).values()]
    first, largest = 0, -math.inf
    while first < len(x):
        here = slice(first, first + chunk)
        try:
            part = way.compute(network, x[here], None if y is None else y[here], loss, tolerance)
        except RuntimeError as error:
            if chunk == 1 or not out_of_memory(error):
                raise
            chunk = -(-chunk // 2)  # halved, rounded up, and the same samples again
            continue
        norms, kept = part.operator_norms, part.vectors
        for total, addend in zip(gradient, part.gradient, strict=True):
            total += addend
        if kept is not None:
            vectors |= {k: kept[k - first] for k in watched if first <= k < first + len(norms)}
            if norms.max() > largest:  # the vector of the new largest norm replaces the previous one
                top = int(norms.argmax())
                vectors = {k: v for k, v in vectors.items() if k in watched} | {first + top: kept[top]}
        largest = max(largest, norms.max().item())
        parts.append(part._replace(gradient=(), vectors=None))  # already accumulated, and large
        first += len(norms)
        if way.rehearse:  # these implementations form rows of the Jacobian, in large blocks
            give_back()
        if progress:
            progress(first)
    norms, frobenius, squares = (values.double() for values in _joined(parts))
    return PerSample(norms, frobenius, squares, sum(part.loss for part in parts), gradient, vectors)
