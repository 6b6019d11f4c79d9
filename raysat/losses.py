"""The losses of a sample, and what the statistics need of each: its gradient and a factor of its Hessian.

A loss is a function of the network's output for one sample. `mse` is the paper's (eq. 2.1). `cross_entropy` goes beyond
its theorem: the curvature that takes the kernel's place is the generalized Gauss-Newton matrix `(1/n) J^T H J`, H the
loss's Hessian in the outputs at w_0, whose nonzero eigenvalues are those of the kernel `(1/n) S^T J J^T S` with
`H = S S^T`. For `mse`, H = S = I.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Outputs = Float[Tensor, "n *positions outputs"]


@dataclass(frozen=True)
class SquaredError:
    """`l_i = 1/2 ||f_i - y_i||^2`, y of shape [n, C] (eq. 2.1)."""

    name = "mse"

    def total(self, outputs: Outputs, y: Tensor) -> Tensor:
        """The sum of the samples' losses."""
        return (outputs - y).square().sum() / 2

    def residual(self, outputs: Outputs, y: Tensor) -> Outputs:
        """The gradient of each sample's loss in its outputs, `f_i - y_i`."""
        return outputs - y

    def factor(self, outputs: Outputs, y: Tensor | None, u: Outputs) -> Outputs:
        """`S u`."""
        return u

    def factor_transposed(self, outputs: Outputs, y: Tensor | None, u: Outputs) -> Outputs:
        """`S^T u`."""
        return u

    def hits(self, outputs: Outputs, y: Tensor) -> Tensor:
        """How many samples are classified rightly, for one-hot targets."""
        return (outputs.argmax(-1) == y.argmax(-1)).double().sum()


@dataclass(frozen=True)
class CrossEntropy:
    """`l_i = 1/L sum_t -log softmax(f_it)[y_it]`: the mean over the L positions of a sample (L = 1 for a plain class).

    The targets are int64 of shape [n, L] for outputs [n, L, V], or one-hot [n, C] for outputs [n, C].
    """

    name = "cross_entropy"

    def _positions(self, outputs: Outputs) -> int:
        return math.prod(outputs.shape[1:-1])

    def _one_hot(self, outputs: Outputs, y: Tensor) -> Tensor:
        return y if y.is_floating_point() else torch.nn.functional.one_hot(y, outputs.shape[-1]).to(outputs.dtype)

    def total(self, outputs: Outputs, y: Tensor) -> Tensor:
        """The sum of the samples' losses."""
        logs = outputs.log_softmax(-1)
        chosen = (logs * y).sum(-1) if y.is_floating_point() else logs.gather(-1, y[..., None]).squeeze(-1)
        return -chosen.sum() / self._positions(outputs)

    def residual(self, outputs: Outputs, y: Tensor) -> Outputs:
        """The gradient of each sample's loss in its outputs, `(softmax(f_it) - e_{y_it}) / L`."""
        return (outputs.softmax(-1) - self._one_hot(outputs, y)) / self._positions(outputs)

    def factor(self, outputs: Outputs, y: Tensor | None, u: Outputs) -> Outputs:
        """`S u`, `S = (diag(sqrt p) - p sqrt(p)^T) / sqrt L`: then `S S^T = (diag(p) - p p^T) / L`, the Hessian."""
        p = outputs.softmax(-1)
        root = p.sqrt()
        return (root * u - p * (root * u).sum(-1, keepdim=True)) / self._positions(outputs) ** 0.5

    def factor_transposed(self, outputs: Outputs, y: Tensor | None, u: Outputs) -> Outputs:
        """`S^T u`."""
        p = outputs.softmax(-1)
        root = p.sqrt()
        return (root * u - root * (p * u).sum(-1, keepdim=True)) / self._positions(outputs) ** 0.5

    def hits(self, outputs: Outputs, y: Tensor) -> Tensor:
        """The share of each sample's positions that is classified rightly, summed."""
        labels = y.argmax(-1) if y.is_floating_point() else y
        return (outputs.argmax(-1) == labels).double().view(len(labels), -1).mean(1).sum()


Loss = SquaredError | CrossEntropy
LOSSES: dict[str, Loss] = {loss.name: loss for loss in (SquaredError(), CrossEntropy())}
"""The losses by name."""
