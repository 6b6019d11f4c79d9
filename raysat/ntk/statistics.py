"""The statistics of a network's NTK at a point: gamma, k_op, the critical batch size they predict, the noise scale."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raysat.ntk import grams
from raysat.ntk.kernel import KernelOperator
from raysat.ntk.lanczos import largest_eigenpair
from raysat.spec import InputError
from raysat.theory import b_star, b_star_thm33

log = logging.getLogger(__name__)
_told: set[str] = set()


@dataclass(frozen=True)
class NTKStatistics:
    """The statistics, under the names of their columns (see `docs/columns.md`).

    Attributes:
        n: Samples over which gamma, loss and noise scale were taken.
        n_outputs: C.
        parameters: Trainable parameters p.
        loss_init: `1/(2n) sum_i ||r_i||^2` (eq. 2.1); NaN without targets.
        gamma: `max_i lambda_max(J_i J_i^T)`: the sharp constant in `||J_i^T r||^2 <= gamma ||r||^2` (Lemma 3.1).
        gamma_mean: The mean of the same over the samples.
        gamma_frobenius: `max_i ||J_i||_F^2`.
        k_op: `lambda_max(K)`, `K = (1/n) J J^T` over `k_samples` samples.
        k_op_residual: `||K v - k_op v|| / k_op`.
        k_samples: Samples over which K was taken.
        k_iterations: Products with K that were used.
        b_star: `gamma / k_op` (Theorems 1.1, 4.2).
        b_star_thm33: `4 gamma / k_op` (Theorem 3.3).
        noise_scale: `tr(Sigma) / ||grad L||^2` (McCandlish et al. 2018, B_simple); NaN without targets.
        method: How the Grams were made: `gram` by layer rules, `jacobian` by per-sample Jacobians.
        method_reason: Why layer rules could not serve; empty where they did.
    """

    n: int
    n_outputs: int
    parameters: int
    loss_init: float
    gamma: float
    gamma_mean: float
    gamma_frobenius: float
    k_op: float
    k_op_residual: float
    k_samples: int
    k_iterations: int
    b_star: float
    b_star_thm33: float
    noise_scale: float
    method: str
    method_reason: str = ""


def ntk_statistics(
    network: nn.Module,
    x: Float[Tensor, "n *input"],
    y: Float[Tensor, "n outputs"] | None = None,
    *,
    k_samples: int = 4096,
    k_tolerance: float = 1e-3,
    memory: int = 1 << 30,
) -> NTKStatistics:
    """The NTK statistics of a network at its present parameters, for the squared loss (eq. 2.1).

    gamma is a maximum and is taken over every sample, streamed in chunks; k_op is an average that settles quickly, and
    may be taken over a fixed random subset.

    Args:
        network: Maps `[n, *input]` to `[n, C]`. Parameters that do not require a gradient count as constants.
        x: Inputs.
        y: Targets; without them, loss and noise scale are NaN.
        k_samples: Samples for k_op; all where there are fewer. Default: 4096.
        k_tolerance: Relative residual of k_op. Default: 1e-3.
        memory: Bytes that the intermediate values of a chunk may take. Default: 1 GiB.

    Raises:
        InputError: There are no samples, a weight is not finite, the output is not [n, C], nothing is trainable, or a
            layer mixes samples, so that a sample has no Jacobian of its own.

    Example:
        >>> from raysat.models.mlp import MLP
        >>> statistics = ntk_statistics(MLP(64, 8, 2), torch.randn(32, 8))
        >>> statistics.gamma >= statistics.gamma_mean > 0
        True
    """
    _check(network, x, y)
    reason = _reason_against_rules(network, x)
    by_sample, method = (grams.grams_by_jacobians, "jacobian") if reason else (grams.grams_by_rules, "gram")
    chunk = max(1, min(len(x), memory // max(1, grams.bytes_per_sample(network, x, rules=method == "gram"))))

    operator_norms, frobenius, gradient_squares, squares = [], 0.0, 0.0, 0.0
    for first in range(0, len(x), chunk):
        outputs, gram = by_sample(network, x[first : first + chunk])
        operator_norms.append(torch.linalg.eigvalsh(gram)[:, -1])
        frobenius = max(frobenius, gram.diagonal(dim1=1, dim2=2).sum(1).max().item())
        if y is not None:
            residual = (outputs - y[first : first + chunk])[:, :, None]
            squares += residual.square().sum(dtype=torch.float64).item()
            gradient_squares += (residual.mT @ gram @ residual).sum(dtype=torch.float64).item()
    norms = torch.cat(operator_norms).double()
    gamma = norms.max().item()

    subset = _subset(len(x), k_samples).to(x.device)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(subset), outputs.shape[1], generator=generator, dtype=torch.float64).to(outputs)
    top = largest_eigenpair(KernelOperator(network, x[subset], chunk), start, tolerance=k_tolerance)

    loss, noise_scale = math.nan, math.nan
    if y is not None:
        loss = squares / (2 * len(x))
        signal = _gradient_square(network, x, y, chunk)
        noise_scale = (gradient_squares / len(x) - signal) / signal if signal > 0 else math.inf
    return NTKStatistics(
        n=len(x),
        n_outputs=outputs.shape[1],
        parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
        loss_init=loss,
        gamma=gamma,
        gamma_mean=norms.mean().item(),
        gamma_frobenius=frobenius,
        k_op=top.value,
        k_op_residual=top.residual,
        k_samples=len(subset),
        k_iterations=top.products,
        b_star=b_star(gamma, top.value),
        b_star_thm33=b_star_thm33(gamma, top.value),
        noise_scale=noise_scale,
        method=method,
        method_reason=reason,
    )


def _check(network: nn.Module, x: Tensor, y: Tensor | None) -> None:
    if len(x) == 0:
        raise InputError("the statistics need at least one sample: x is empty.")
    weights = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    if not weights:
        raise InputError("the network has no trainable parameter: give one whose parameters require a gradient.")
    for name, weight in weights:
        if not weight.isfinite().all():
            raise InputError(f"parameter {name} is not finite: take the statistics before training diverges.")
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or not module.track_running_stats):
            raise InputError(
                f"{name} ({type(module).__name__}) mixes the samples of a batch, so that a sample has no gradient of "
                "its own: call network.eval(), or use GroupNorm."
            )
    with torch.no_grad():
        outputs = network(x[:2])
    if outputs.ndim != 2 or len(outputs) != len(x[:2]):
        raise InputError(f"the network's output has shape {list(outputs.shape)} for two samples: return [n, C].")
    if y is not None and y.shape != (len(x), outputs.shape[1]):
        raise InputError(f"y has shape {list(y.shape)}, outputs are {[len(x), outputs.shape[1]]}: make them agree.")


def _reason_against_rules(network: nn.Module, x: Tensor) -> str:
    """Why layer rules cannot serve a network; empty where they can. It is logged once."""
    reason = grams.uncovered(network)
    if reason is None:
        _, gram = grams.grams_by_rules(network, x[:1])
        off = grams.disagreement(network, x[:1], gram[0])
        if off <= 1e3 * torch.finfo(gram.dtype).eps:
            return ""
        reason = f"a parameter is used outside its own layer (the layers' share is off by {off:.1%})"
    if reason not in _told:
        _told.add(reason)
        log.warning("%s: %s; using per-sample Jacobians, which is slower.", type(network).__name__, reason)
    return reason


def _subset(n: int, count: int) -> Tensor:
    """A fixed random subset of 0..n-1, in rising order."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:count].sort().values


def _gradient_square(network: nn.Module, x: Tensor, y: Tensor, chunk: int) -> float:
    """`||grad L(w)||^2`, L the loss over all samples."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    for samples, targets in zip(x.split(chunk), y.split(chunk), strict=True):
        outputs = network(samples)
        residual = (outputs - targets).detach() / len(x)
        gradients = torch.autograd.grad(outputs, parameters, residual, allow_unused=True, materialize_grads=True)
        for sum_, gradient in zip(total, gradients, strict=True):
            sum_ += gradient
    return sum(gradient.square().sum().item() for gradient in total)
