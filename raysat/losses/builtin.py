"""The squared error and the cross-entropy, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

Outputs = Float[Tensor, "n *positions outputs"]


@dataclass(frozen=True)
class SquaredError:
    """`l_i = 1/2 ||f_i - y_i||^2`, y of shape [n, C] (eq. 2.1)."""

    name = "mse"

    def check(self, outputs: Outputs, y: Tensor) -> None:
        """Do nothing: any outputs and targets of the right shape have a loss."""

    def total(self, outputs: Outputs, y: Tensor) -> Tensor:
        """The sum of the samples' losses."""
        return (outputs - y).square().sum() / 2

    def residual(self, outputs: Outputs, y: Tensor) -> Outputs:
        """The gradient of each sample's loss in its outputs, `f_i - y_i`."""
        return outputs - y

    def factor(self, outputs: Outputs, y: Tensor | None, u: Tensor) -> Tensor:
        """`S u`."""
        return u

    def factor_transposed(self, outputs: Outputs, y: Tensor | None, u: Tensor) -> Tensor:
        """`S^T u`."""
        return u


@dataclass(frozen=True)
class CrossEntropy:
    """`l_i = 1/L sum_t -sum_c y_itc log p_itc`, `p = softmax(f)`: the mean over the L positions of a sample.

    The targets are labels, int64 of shape [n] for outputs [n, C] (L = 1) and [n, L] for outputs [n, L, V], where a
    label stands for a row with a 1 at its class; or such rows themselves, of the outputs' shape, whose entries of at
    least 0 need not sum to 1: weights of classes or samples, several classes a sample, or zeros for positions to be
    left out.

    With label smoothing epsilon, a target `y_c` becomes `(1 - epsilon) y_c + epsilon s / C`, `s = sum_c y_c`; positions
    whose weights are zero stay left out.

    With `s = sum_c y_c` the gradient is `s p - y` and the Hessian `s (diag(p) - p p^T)`.

    Attributes:
        smoothing: epsilon. Default: 0.
    """

    smoothing: float = 0.0
    name: ClassVar[str] = "cross_entropy"

    def check(self, outputs: Outputs, y: Tensor) -> None:
        """Do nothing: any outputs and targets of the right shape have a loss."""

    def total(self, outputs: Outputs, y: Tensor) -> Tensor:
        """The sum of the samples' losses."""
        logs = outputs.log_softmax(-1)
        chosen = (logs * y).sum(-1) if y.is_floating_point() else logs.gather(-1, y[..., None]).squeeze(-1)
        if self.smoothing:
            even = logs.mean(-1) * y.sum(-1) if y.is_floating_point() else logs.mean(-1)
            chosen = (1 - self.smoothing) * chosen + self.smoothing * even
        return -chosen.sum() / _positions(outputs)

    def residual(self, outputs: Outputs, y: Tensor) -> Outputs:
        """The gradient of each sample's loss in its outputs, `(s_it p_it - y_it) / L`."""
        p = outputs.softmax(-1)
        if y.is_floating_point():
            weight, given = y.sum(-1, keepdim=True), y
        else:
            weight, given = 1, torch.nn.functional.one_hot(y, outputs.shape[-1]).to(p.dtype)
        if self.smoothing:
            given = (1 - self.smoothing) * given + self.smoothing * weight / outputs.shape[-1]
        return (p * weight - given) / _positions(outputs)

    def factor(self, outputs: Outputs, y: Tensor | None, u: Tensor) -> Tensor:
        """`S u`, `S = sqrt(s / L) (diag(sqrt p) - p sqrt(p)^T)`: then `S S^T = s (diag(p) - p p^T) / L`, the Hessian.

        Without targets s = 1.
        """
        p = outputs.softmax(-1)
        root = p.sqrt()
        return (root * u - p * (root * u).sum(-1, keepdim=True)) * _root_weight(outputs, y)

    def factor_transposed(self, outputs: Outputs, y: Tensor | None, u: Tensor) -> Tensor:
        """`S^T u`."""
        p = outputs.softmax(-1)
        root = p.sqrt()
        return (root * u - root * (p * u).sum(-1, keepdim=True)) * _root_weight(outputs, y)


def _positions(outputs: Outputs) -> int:
    return math.prod(outputs.shape[1:-1])


def _root_weight(outputs: Outputs, y: Tensor | None) -> Tensor | float:
    """`sqrt(s / L)` of each position; labels have s = 1."""
    if y is None or not y.is_floating_point():
        return _positions(outputs) ** -0.5
    return (y.sum(-1, keepdim=True) / _positions(outputs)).sqrt()
