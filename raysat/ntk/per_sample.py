"""What is a maximum or a mean over single samples: operator norms, Frobenius norms, gradient norms; streamed in chunks.

Three ways, which agree (`Method`): layer rules, per-sample Jacobians, or products with each sample's own kernel.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from raysat.data.fields import Inputs
from raysat.losses import Loss
from raysat.ntk import grams
from raysat.ntk.kernel import gradient_squares, per_sample_products
from raysat.ntk.lanczos import largest_eigenpairs
from raysat.validation import InputError

MOST_OUTPUTS = 128
"""Above this many numbers a sample, its Gram is not formed: it takes a backward pass for each of them."""


class Method(enum.StrEnum):
    """How per-sample quantities are computed.

    GRAM wins when every layer has a rule and a sample has few outputs: C backward passes, and no gradient of a
    parameter is formed. JACOBIAN serves any module with few outputs, at C p numbers a sample. ITERATION wins when a
    sample has many outputs, such as a sequence of logits: p numbers a sample, some ten products each, and no matrix of
    outputs by outputs; the Frobenius norm is then not to be had.
    """

    GRAM = "gram"
    JACOBIAN = "jacobian"
    ITERATION = "iteration"


@dataclass(frozen=True)
class PerSample:
    """Quantities of each sample.

    Attributes:
        operator_norms: `lambda_max(J_i J_i^T)`, weighted by the loss's Hessian. Shape: [n].
        frobenius: `||J_i||_F^2`, likewise; NaN by iteration. Shape: [n].
        gradient_squares: `||J_i^T r_i||^2`; NaN without targets. Shape: [n].
        loss: The sum of the samples' losses; NaN without targets.
    """

    operator_norms: Float64[Tensor, " n"]
    frobenius: Float64[Tensor, " n"]
    gradient_squares: Float64[Tensor, " n"]
    loss: float


def choose(network: nn.Module, x: Inputs, method: str | None = None) -> tuple[Method, str]:
    """The way that serves a network, and why layer rules do not (empty where they do, or are not asked).

    Args:
        network: The network.
        x: The samples.
        method: One of `Method`, to have that one; None to choose.

    Raises:
        InputError: GRAM is asked for, and a parameter has no rule or is used outside its own layer: it is named.
    """
    with torch.no_grad():
        outputs = network(x[:1])
    if method == Method.ITERATION or (method is None and (outputs.ndim > 2 or outputs.numel() > MOST_OUTPUTS)):
        return Method.ITERATION, ""
    if outputs.ndim > 2:
        raise InputError(f"method={method!r} needs outputs [n, C]: use method='iteration' for sequences.")
    if method == Method.JACOBIAN:
        return Method.JACOBIAN, ""
    reason = grams.uncovered(network)
    if reason is None:
        _, gram = grams.grams_by_rules(network, x[:1])
        off = grams.disagreement(network, x[:1], gram[0])
        if off <= 1e3 * torch.finfo(gram.dtype).eps:
            return Method.GRAM, ""
        reason = f"a parameter is used outside its own layer (the layers' share is off by {off:.1%})"
    if method is not None:
        raise InputError(f"method='gram': {reason}; use method='jacobian', or leave it out.")
    return Method.JACOBIAN, reason


def per_sample(
    network: nn.Module, x: Inputs, y: Tensor | None, loss: Loss, method: Method, memory: int, tolerance: float
) -> PerSample:
    """Compute the quantities of every sample.

    Args:
        network: The network.
        x: Inputs.
        y: Targets, or None.
        loss: The loss.
        method: As `choose` says.
        memory: Bytes that the intermediate values of a chunk may take.
        tolerance: Relative residual of each operator norm by iteration.
    """
    compute = _by_iteration if method is Method.ITERATION else _by_grams
    parts = []
    chunk = chunk_size(network, x, method, memory)
    for first in range(0, len(x), chunk):
        here = slice(first, first + chunk)
        parts.append(compute(network, x[here], None if y is None else y[here], loss, method, tolerance))
    return PerSample(
        *(torch.cat([part[k] for part in parts]).double() for k in range(3)), sum(part[3] for part in parts)
    )


def chunk_size(network: nn.Module, x: Inputs, method: Method, memory: int) -> int:
    """How many samples at a time keep within the memory."""
    if method is not Method.ITERATION:
        return _within(memory, grams.bytes_per_sample(network, x, rules=method is Method.GRAM), len(x))
    # Weight gradient and direction of a sample, both formed, and values at every layer, forward and tangent.
    trained = [p for p in network.parameters() if p.requires_grad]
    numbers = 3 * sum(p.numel() for p in trained) + 4 * grams.activations(network, x)
    return _within(memory, numbers * trained[0].element_size(), len(x))


def _within(memory: int, each: int, n: int) -> int:
    return max(1, min(n, memory // max(1, each)))


def _by_grams(
    network: nn.Module, x: Inputs, y: Tensor | None, loss: Loss, method: Method, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, float]:
    make = grams.grams_by_rules if method is Method.GRAM else grams.grams_by_jacobians
    outputs, gram = make(network, x)
    squares, total = torch.full([len(x)], math.nan), math.nan
    if y is not None:
        residual = loss.residual(outputs, y)[:, :, None]
        squares = (residual.mT @ gram @ residual).flatten()
        total = loss.total(outputs.double(), y).item()
    spread, of = (  # each sample's outputs and target beside each row of its Gram
        None if tensor is None else tensor.repeat_interleave(outputs.shape[1], 0) for tensor in (outputs, y)
    )
    times_s = lambda rows: loss.factor_transposed(spread, of, rows.flatten(0, 1)).view_as(rows)  # noqa: E731
    weighed = times_s(times_s(gram).mT)  # S^T G S, G and the result being symmetric
    return torch.linalg.eigvalsh(weighed)[:, -1], weighed.diagonal(dim1=1, dim2=2).sum(1), squares, total


def _by_iteration(
    network: nn.Module, x: Inputs, y: Tensor | None, loss: Loss, method: Method, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, float]:
    with torch.no_grad():
        outputs = network(x)
    start = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).to(outputs)
    found = largest_eigenpairs(lambda u: per_sample_products(network, x, y, loss, u), start, tolerance=tolerance)
    nothing = torch.full([len(x)], math.nan)
    if y is None:
        return found.values, nothing, nothing, math.nan
    return found.values, nothing, gradient_squares(network, x, loss, y), loss.total(outputs.double(), y).item()
