"""Batch normalization over ghost batches (Hoffer, Hubara and Soudry 2017, Algorithm 1)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class GhostBatchNorm(nn.modules.batchnorm._BatchNorm):
    """`weight (x - mu) / sigma + bias`, mu and sigma of each channel over a ghost batch: g consecutive samples.

    With `ghost = 0` the ghost batch is the batch, and the training output is that of `nn.BatchNorm2d`. In evaluation mu
    and sigma are running averages, which each ghost batch updates in turn:

        mu_run <- (1 - momentum) mu_run + momentum mu        sigma_run <- (1 - momentum) sigma_run + momentum sigma

    with `sigma = sqrt(mean((x - mu)^2) + eps)`. After the K ghost batches of a batch this gives

        mu_run <- (1 - momentum)^K mu_run + sum_i (1 - momentum)^(K - i) momentum mu_i

    and the same for sigma. This is Algorithm 1 with two exponents corrected, because as printed the weights do not add
    up to 1: it prints `|B_S|`, the size of a ghost batch, for the number K of ghost batches, and `i` for `K - i`. The
    authors' own code (github.com/eladhoffer/bigBatch, main_gbn.py) passes the ghost batches through PyTorch's layer one
    after the other, which is the same for mu. PyTorch's layers average the variance, with Bessel's correction, instead
    of sigma.

    A sample's output depends on the others of its ghost batch, so that it has no gradient of its own. The NTK
    statistics hold mu and sigma constant at their values over the training set, as for any batch normalization, and say
    so (`raysat.ntk.batchnorm`). The mu and sigma of a ghost batch, of g samples, scatter about those values at any
    batch size, so that the approximation improves with g, not with b.

    Args:
        channels: Channels, the second axis of x.
        ghost: g; 0 for the whole batch. The last ghost batch of a batch is smaller if g does not divide the batch.
        eps: Default: 1e-5, PyTorch's.
        momentum: Default: 0.1, PyTorch's; the paper leaves it open.

    Attributes:
        running_mean: mu_run. Shape: [channels].
        running_var: `sigma_run^2 - eps`, from which evaluation recovers sigma_run. Shape: [channels].

    Example:
        >>> GhostBatchNorm(3, ghost=4)(torch.randn(8, 3, 5, 5)).shape
        torch.Size([8, 3, 5, 5])
    """

    running_mean: Tensor
    running_var: Tensor
    momentum: float

    def __init__(self, channels: int, ghost: int = 0, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(channels, eps, momentum)
        self.ghost = ghost

    def forward(self, x: Float[Tensor, "n channels *positions"]) -> Float[Tensor, "n channels *positions"]:
        """Return the normalized batch."""
        if not self.training:
            return super().forward(x)
        return torch.cat([self._normalized(part) for part in x.split(self.ghost or len(x))])

    def _normalized(self, x: Tensor) -> Tensor:
        """Normalize one ghost batch by its own statistics and add these to the running averages."""
        with torch.no_grad():
            variance, mean = torch.var_mean(x, [axis for axis in range(x.ndim) if axis != 1], correction=0)
            sigma = (self.running_var + self.eps).sqrt().lerp_((variance + self.eps).sqrt(), self.momentum)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.copy_(sigma.square() - self.eps)
        # Not F.batch_norm, which refuses the one number a channel of a single vector; its output here is the bias.
        return torch.batch_norm(x, self.weight, self.bias, None, None, True, 0.0, self.eps, True)

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim < 2:
            raise ValueError(f"GhostBatchNorm takes [n, channels, ...], not {list(x.shape)}.")

    def extra_repr(self) -> str:
        """Return channels and ghost batch, for `repr`."""
        return f"{self.num_features}, ghost={self.ghost or 'batch'}"
