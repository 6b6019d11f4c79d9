"""A loss of the user's own: its gradient and, if it is convex in the outputs, a root of its Hessian, by autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from raysat.errors import InputError, NoStatistics
from raysat.losses.builtin import Outputs

LARGEST = 256
"""Most outputs of a sample for the statistics: a product with S computes the Hessian of each sample again, 256^3
operations or some 10 ms a sample. The built-in losses, in closed form, have no such limit."""

TOLERANCE = 1e-8
"""A Hessian with an eigenvalue below -TOLERANCE times the largest in magnitude counts as indefinite. Default: about the
square root of float64's precision, far above the 1e-15 of the Hessian's size that rounding leaves in an eigenvalue of
0."""

AT_ONCE = 1 << 23
"""Entries of Hessians that are held at a time: 64 MiB."""


@dataclass(frozen=True)
class Custom:
    """A function `(outputs, y) -> losses` that gives each sample's own loss, [n], as PyTorch's `reduction="none"` does.

    `outputs` is what the network returns, [n, ...], `y` the targets of the same samples. The function must consist of
    differentiable operations that preserve the dtype of `outputs`, because the Hessian is computed in float64.

    Attributes:
        name: Its import path, or another name for messages.
        function: The function.
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor]

    def check(self, outputs: Outputs, y: Tensor) -> None:
        """Try the function on some samples.

        Raises:
            InputError: It does not return a loss for each sample that depends on that sample alone.
        """
        losses = self.each(outputs, y)
        for k in range(len(outputs)):
            alone = self.each(outputs[k : k + 1], y[k : k + 1])
            if not torch.allclose(alone, losses[k : k + 1], rtol=1e-3, atol=1e-6, equal_nan=True):
                raise InputError(
                    f"loss={self.name!r} gives a sample another loss alone ({alone.item():.4g}) than among others "
                    f"({losses[k].item():.4g}): let the loss of a sample depend on its own outputs and target only."
                )

    def each(self, outputs: Outputs, y: Tensor) -> Float[Tensor, " n"]:
        """The loss of each sample.

        Raises:
            InputError: The function returned something else.
        """
        losses = self.function(outputs, y)
        if not isinstance(losses, Tensor) or losses.shape != outputs.shape[:1] or not losses.is_floating_point():
            given = f"shape {list(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
            raise InputError(
                f"loss={self.name!r} returns {given} for {len(outputs)} samples: return one loss for each, of shape "
                "[n], such as by reduction='none' and a sum over the other dimensions."
            )
        return losses

    def total(self, outputs: Outputs, y: Tensor) -> Tensor:
        """The sum of the samples' losses."""
        return self.each(outputs, y).sum()

    def residual(self, outputs: Outputs, y: Tensor) -> Outputs:
        """The gradient of each sample's loss in its outputs."""
        with torch.inference_mode(False):
            z, y = _own(outputs), _own(y)
            return torch.func.grad(lambda z: self.total(z, y))(z)

    def factor(self, outputs: Outputs, y: Tensor | None, u: Tensor) -> Tensor:
        """`S u`, `S = V sqrt(max(w, 0))` of the eigenvalues w and eigenvectors V of each sample's Hessian.

        Raises:
            NoStatistics: The loss is not convex in the outputs of some sample, or these are more than `LARGEST`.
        """
        return self._product(outputs, y, u, "nij,...nj->...ni")

    def factor_transposed(self, outputs: Outputs, y: Tensor | None, u: Tensor) -> Tensor:
        """`S^T u`; raises what `factor` does."""
        return self._product(outputs, y, u, "nij,...ni->...nj")

    def _product(self, outputs: Outputs, y: Tensor | None, u: Tensor, how: str) -> Tensor:
        if y is None:
            raise NoStatistics(f"loss={self.name!r} needs the targets for its Hessian: give y.")
        if (size := outputs[0].numel()) > LARGEST:
            raise NoStatistics(
                f"loss={self.name!r} is differentiated twice in each of {size} outputs a sample, and the statistics of "
                f"a loss of one's own take at most {LARGEST}: use loss='cross_entropy' or 'mse', which have no limit."
            )
        count = max(1, AT_ONCE // size**2)
        axis = u.ndim - outputs.ndim  # that of the samples
        parts = zip(outputs.split(count), y.split(count), u.flatten(axis + 1).split(count, axis), strict=True)
        products = [torch.einsum(how, self._root(z, t).to(u.dtype), v) for z, t, v in parts]
        return torch.cat(products, axis).view(u.shape)

    def _root(self, outputs: Outputs, y: Tensor) -> Float[Tensor, "n size size"]:
        """S of each sample, in float64."""
        hessian = self.hessians(outputs, y)
        values, vectors = torch.linalg.eigh((hessian + hessian.mT) / 2)
        size = values.abs().amax(-1)
        convex = values.amin(-1) >= -TOLERANCE * size
        try:
            certain = bool(convex.all())
        except RuntimeError:  # values cannot be read under vmap: a sample that is not convex becomes nan below
            certain = True
        if not certain:
            raise NoStatistics(
                f"loss={self.name!r} is not convex in the outputs (its Hessian has the eigenvalue "
                f"{values.amin().item():.3g} next to {size.amax().item():.3g}), so that it has no Gauss-Newton kernel: "
                "use fixed() or grid(), which need no statistics, or a convex loss."
            )
        return torch.where(convex[:, None, None], vectors * values.clamp_min(0).sqrt()[:, None], torch.nan)

    def hessians(self, outputs: Outputs, y: Tensor) -> Float[Tensor, "n size size"]:
        """The Hessian of each sample's loss in its outputs, flattened, in float64: reverse mode over reverse mode.

        Samples do not mix, so that one backward pass through the sum of the gradients' k-th entries gives the k-th row
        of all samples.
        """
        with torch.inference_mode(False):
            z, y = _own(outputs, torch.float64), _own(y, torch.float64)
            _, pull, *_ = torch.func.vjp(torch.func.grad(lambda z: self.total(z, y)), z)
            size = z[0].numel()
            rows = []
            for k in range(size):
                chosen = torch.zeros(len(z), size, dtype=z.dtype, device=z.device)
                chosen[:, k] = 1
                rows.append(pull(chosen.view(z.shape))[0].flatten(1))
            return torch.stack(rows, 1)


def _own(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Copy a tensor, detached and outside inference mode; a floating one is cast to `dtype` if given."""
    wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(wanted, copy=True)
