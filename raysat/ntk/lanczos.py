"""The largest eigenvalue of a symmetric operator by Lanczos, to a stated relative residual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor


@dataclass(frozen=True)
class Eigenpair:
    """The largest eigenvalue found.

    Attributes:
        value: The Ritz value; never above the largest eigenvalue but for rounding.
        vector: Its unit Ritz vector, float64. Shape: that of the start vector.
        residual: `||A v - value v|| / value`, computed from the vector, not from the recurrence.
        products: Products with the operator that were used.
    """

    value: float
    vector: Tensor
    residual: float
    products: int


def largest_eigenpair(
    operator: Callable[[Tensor], Tensor], start: Tensor, *, tolerance: float = 1e-3, most: int = 200
) -> Eigenpair:
    """Lanczos with full reorthogonalization (Golub and Van Loan, section 10.3) in float64.

    The recurrence's own estimate of the residual ends the iteration; the residual that is returned is measured with
    one more product.

    Args:
        operator: A symmetric positive semidefinite operator on tensors of the start's shape and dtype.
        start: The start vector; random ones work.
        tolerance: Relative residual to reach. Default: 1e-3; the eigenvalue is then good to about its square over the
            relative gap.
        most: Products after which to stop in any case. The residual says how far it came.
    """

    def apply(vector: Float64[Tensor, " size"]) -> Float64[Tensor, " size"]:
        return operator(vector.view(start.shape).to(start.dtype)).flatten().double()

    size = start.numel()
    q = start.flatten().double()
    basis, diagonal, off = [q / q.norm()], [], []
    for _ in range(min(most, size)):
        w = apply(basis[-1])
        diagonal.append((w @ basis[-1]).item())
        q_matrix = torch.stack(basis)
        for _again in range(2):  # twice is enough (Kahan and Parlett)
            w = w - q_matrix.T @ (q_matrix @ w)
        norm = w.norm().item()
        tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64, device=w.device))
        if off:
            beside = torch.tensor(off, dtype=torch.float64, device=w.device)
            tridiagonal = tridiagonal + torch.diag(beside, 1) + torch.diag(beside, -1)
        values, vectors = torch.linalg.eigh(tridiagonal)
        value, weights = values[-1].item(), vectors[:, -1]
        scale = max(abs(value), torch.finfo(torch.float64).tiny)
        # Half the tolerance: the products' rounding adds to what the recurrence estimates.
        if norm * abs(weights[-1].item()) <= tolerance / 2 * scale or norm <= 1e-14 * scale:
            break
        off.append(norm)
        basis.append(w / norm)
    vector = q_matrix.T @ weights
    vector = vector / vector.norm()
    residual = (apply(vector) - value * vector).norm().item() / scale
    return Eigenpair(value, vector.view(start.shape), residual, len(diagonal) + 1)
