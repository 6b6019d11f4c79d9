"""The statistics of a network's NTK at a point: gamma, k_op, the critical batch size they predict, the noise scale."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raysat.data.fields import Inputs
from raysat.losses import Loss, as_targets, resolve
from raysat.models.unpacked import adapt
from raysat.ntk.kernel import KernelOperator
from raysat.ntk.lanczos import largest_eigenpairs
from raysat.ntk.per_sample import Method, choose, chunk_size, per_sample
from raysat.ntk.spectrum import converged, dense_kernel, spectral_density, spectral_measure, tight_gamma
from raysat.theory import b_star, b_star_thm33
from raysat.validation import InputError

DENSITY_SHARE = 4
"""A probe of the density takes one in so many of the residual's products with K. Default: 4. The density says how noise
spreads, a sum over many eigenvalues: against 64 products a probe, 16 change no forecast b_N on MNIST by 0.1 %. The
measure of the residual needs its 64 for the last part of a loss curve."""

log = logging.getLogger(__name__)
_told: set[str] = set()


@dataclass(frozen=True)
class NTKStatistics:
    """The statistics, under the names of their columns (see `docs/columns.md`).

    Under the cross-entropy, J_i stands for `S_i^T J_i`, `S_i S_i^T` the Hessian of the sample's loss in its outputs: K
    is the kernel of the generalized Gauss-Newton matrix. That goes beyond the paper's theorem.

    Attributes:
        n: Samples over which gamma, loss and noise scale were taken.
        n_outputs: C.
        parameters: Trainable parameters p.
        loss_init: The mean loss (eq. 2.1 for the squared error); NaN without targets.
        gamma: `max_i lambda_max(J_i J_i^T)`: the sharp constant in `||J_i^T r||^2 <= gamma ||r||^2` (Lemma 3.1).
        gamma_mean: The mean of the same over the samples.
        gamma_frobenius: `max_i ||J_i||_F^2`; NaN by iteration.
        gamma_tight: The smallest gamma of eq. 3.2, for C = 1, over `dense_samples` samples; NaN otherwise.
        k_op: `lambda_max(K)`, `K = (1/n) J J^T` over `k_samples` samples.
        k_op_residual: `||K v - k_op v|| / k_op`.
        k_samples: Samples over which K was taken.
        k_iterations: Products with K that were used for k_op.
        lambda_min: `lambda_min(K)` of `dense_samples` samples; NaN where none were asked for.
        dense_samples: Samples of the dense kernel.
        b_star: `gamma / k_op` (Theorems 1.1, 4.2).
        b_star_thm33: `4 gamma / k_op` (Theorem 3.3).
        noise_scale: `tr(Sigma) / ||grad L||^2` (McCandlish et al. 2018, B_simple); NaN without targets.
        top: Largest eigenvalues of K, descending, as far as they have converged to the tolerance.
        residual_nodes: Nodes of the spectral measure of K and the initial residual.
        residual_weights: Their weights, of sum `||r||^2` over the k_samples samples.
        density_nodes: Nodes of the density of K's eigenvalues.
        density_weights: Their weights, of sum 1.
        method: How the per-sample quantities were computed (`raysat.ntk.per_sample.Method`).
        method_reason: Why layer rules could not serve; empty where they did, or were not asked.
    """

    n: int
    n_outputs: int
    parameters: int
    loss_init: float
    gamma: float
    gamma_mean: float
    gamma_frobenius: float
    gamma_tight: float
    k_op: float
    k_op_residual: float
    k_samples: int
    k_iterations: int
    lambda_min: float
    dense_samples: int
    b_star: float
    b_star_thm33: float
    noise_scale: float
    top: tuple[float, ...]
    residual_nodes: tuple[float, ...]
    residual_weights: tuple[float, ...]
    density_nodes: tuple[float, ...]
    density_weights: tuple[float, ...]
    method: str
    method_reason: str = ""


def ntk_statistics(
    network: nn.Module,
    x: Inputs | Mapping | Sequence,
    y: Tensor | None = None,
    *,
    loss: str | Callable[[Tensor, Tensor], Tensor] = "mse",
    k_samples: int = 4096,
    k_tolerance: float = 1e-3,
    spectrum: int = 0,
    probes: int = 4,
    dense_samples: int = 0,
    memory: int = 1 << 30,
    method: str | None = None,
) -> NTKStatistics:
    """The NTK statistics of a network at its present parameters.

    gamma is a maximum and is taken over every sample, streamed in chunks; k_op is an average that settles quickly, and
    may be taken over a fixed random subset.

    Args:
        network: Maps `[n, *input]` to `[n, C]`; under the cross-entropy also to `[n, L, V]`. Parameters that do not
            require a gradient count as constants.
        x: Inputs.
        y: Targets (see `raysat.losses`); without them, loss and noise scale are NaN.
        loss: `mse` (eq. 2.1), `cross_entropy`, or a loss of one's own (see `raysat.losses.resolve`).
        k_samples: Samples for k_op and the spectrum; all where there are fewer. Default: 4096.
        k_tolerance: Relative residual of k_op. Default: 1e-3.
        spectrum: Products with K for the residual's spectral measure; a quarter of them for each probe of the
            density, which needs fewer. Default: 0, none.
        probes: Random vectors of the density. Default: 4.
        dense_samples: Samples for the dense kernel, of which lambda_min and gamma_tight are; squared error only.
            Default: 0, none.
        memory: Bytes that the intermediate values of a chunk may take. Default: 1 GiB.
        method: One of `raysat.ntk.per_sample.Method`. Default: chosen by the network's layers and outputs.

    Raises:
        InputError: There are no samples, a weight is not finite, the output is not [n, C], nothing is trainable, a
            layer mixes samples, so that a sample has no Jacobian of its own, or `method="gram"` and a parameter has no
            rule.

    Example:
        >>> from raysat.models.mlp import MLP
        >>> statistics = ntk_statistics(MLP(64, 8, 2), torch.randn(32, 8))
        >>> statistics.gamma >= statistics.gamma_mean > 0
        True
    """
    if method is not None and method not in set(Method):
        raise InputError(f"method={method!r}: use one of {', '.join(Method)}, or leave it out.")
    function = resolve(loss)
    network, x = adapt(network, x)
    y = _check(network, x, y, function)
    way, reason = choose(network, x, method)
    if reason and reason not in _told:
        _told.add(reason)
        log.warning("%s: %s; using per-sample Jacobians, which is slower.", type(network).__name__, reason)
    samples = per_sample(network, x, y, function, way, memory, k_tolerance)
    gamma = samples.operator_norms.max().item()

    subset = _subset(len(x), k_samples).to(x.device)
    # A backward or a forward-mode pass holds each layer's values about twice.
    chunk = chunk_size(network, x, way, memory)
    y_subset = None if y is None else y[subset]
    operator = KernelOperator(network, x[subset], chunk, function, memory, y_subset)
    with torch.no_grad():
        outputs = torch.cat([network(part) for part in x[subset].split(chunk)])
    top = largest_eigenpairs(lambda u: operator(u[0])[None], _start(operator, outputs)[None], tolerance=k_tolerance)
    k_op = top.values.item()

    loss_init, noise_scale = math.nan, math.nan
    if y is not None:
        loss_init = samples.loss / len(x)
        signal = gradient_square(network, x, y, function, chunk)
        noise_scale = (samples.gradient_squares.mean().item() - signal) / signal if signal > 0 else math.inf
    trace = samples.frobenius[subset.to(samples.frobenius.device)].mean().item()
    dense = min(dense_samples, len(x)) if function.name == "mse" else 0
    kernel = dense_kernel(network, x[_subset(len(x), dense).to(x.device)]) if dense else None
    return NTKStatistics(
        n=len(x),
        n_outputs=outputs.shape[-1],
        parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
        loss_init=loss_init,
        gamma=gamma,
        gamma_mean=samples.operator_norms.mean().item(),
        gamma_frobenius=samples.frobenius.max().item(),
        gamma_tight=tight_gamma(kernel) if kernel is not None and outputs.shape[1:] == (1,) else math.nan,
        k_op=k_op,
        k_op_residual=top.residuals.item(),
        k_samples=len(subset),
        k_iterations=top.products,
        lambda_min=torch.linalg.eigvalsh(kernel.double())[0].item() if kernel is not None else math.nan,
        dense_samples=dense,
        b_star=b_star(gamma, k_op),
        b_star_thm33=b_star_thm33(gamma, k_op),
        noise_scale=noise_scale,
        **_spectra(operator, outputs, y_subset, function, spectrum, probes, trace, k_tolerance),
        method=str(way),
        method_reason=reason,
    )


def _start(operator: KernelOperator, outputs: Tensor, every: int = 8, least: int = 512) -> Tensor:
    """A vector near the top eigenvector of K, to start from: that of every eighth sample, carried to all of them.

    If v is the top eigenvector of the kernel of some samples, `J_all J_some^T v` is its Nystroem extension. It halves
    the products with the whole K and costs those of an eighth. Below `least` samples it is a random vector.
    """
    generator = torch.Generator().manual_seed(0)
    if len(operator.x) < least:
        return torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
    some = operator.x[::every]
    y = None if operator.y is None else operator.y[::every]
    coarse = KernelOperator(operator.network, some, operator.chunk, operator.loss, operator.memory_left, y)
    start = torch.randn(outputs[::every].shape, generator=generator, dtype=torch.float64).to(outputs)
    found = largest_eigenpairs(lambda u: coarse(u[0])[None], start[None], tolerance=1e-2)
    return operator.pushforward(coarse.pullback(found.vectors[0].to(outputs)))


def _spectra(
    operator: KernelOperator,
    outputs: Tensor,
    y: Tensor | None,
    loss: Loss,
    steps: int,
    probes: int,
    trace: float,
    tolerance: float,
) -> dict[str, tuple[float, ...]]:
    """The spectral measures, as tuples; empty where none were asked for.

    The largest eigenvalues are read from the residual's process, without products of their own: it finds every one
    whose eigenvector the residual touches.
    """
    names = ("top", "residual_nodes", "residual_weights", "density_nodes", "density_weights")
    if steps == 0:
        return dict.fromkeys(names, ())
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
    has_residual = y is not None and loss.name == "mse"
    measure, ritz = spectral_measure(operator, loss.residual(outputs, y) if has_residual else start, steps)
    density = spectral_density(operator, outputs, -(-steps // DENSITY_SHARE), probes, ritz, trace, tolerance)
    found = {"density_nodes": density.nodes, "density_weights": density.weights}
    if has_residual:
        found |= {"residual_nodes": measure.nodes, "residual_weights": measure.weights}
    known = converged(ritz, tolerance)
    below = int((~known.flip(0)).float().argmax()) if not known.all() else len(known)
    found["top"] = ritz.values[0].flip(0)[:below]
    return {name: tuple(found[name].tolist()) if name in found else () for name in names}


def _check(network: nn.Module, x: Inputs, y: Tensor | None, loss: Loss) -> Tensor | None:
    if len(x) == 0:
        raise InputError("the statistics need at least one sample: x is empty.")
    weights = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    if not weights:
        raise InputError("the network has no trainable parameter: give one whose parameters require a gradient.")
    for name, weight in weights:
        if not weight.isfinite().all():
            raise InputError(f"parameter {name} is not finite: take the statistics before training diverges.")
        if weight.is_complex():
            raise InputError(f"parameter {name} is complex: the theory is of real networks; split it into two parts.")
    if coupled := coupling(network):
        raise InputError(f"{coupled}: call network.eval(), or use GroupNorm.")
    with torch.no_grad():
        outputs = network(x[:2])
    wanted = "[n, C]" if loss.name == "mse" else "[n, C] or [n, L, V]"
    if len(outputs) != len(x[:2]) or not (outputs.ndim == 2 or (outputs.ndim > 2 and loss.name != "mse")):
        raise InputError(f"the network's output has shape {list(outputs.shape)} for two samples: return {wanted}.")
    if y is None:
        return None
    y = as_targets(y, (len(x), *outputs.shape[1:]), loss, outputs.dtype)
    loss.check(outputs, y[:2])
    return y


def coupling(network: nn.Module) -> str:
    """Why a sample has no gradient of its own, in words; empty where it has."""
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or not module.track_running_stats):
            kind = type(module).__name__
            return f"{name} ({kind}) mixes the samples of a batch, so that a sample has no gradient of its own"
    return ""


def reason_against(network: nn.Module, x: Inputs, y: Tensor | None = None, *, loss: str = "mse") -> str:
    """Why a network has no statistics on some data, in one sentence with the remedy; empty where it has."""
    try:
        _check(*adapt(network, x), y, resolve(loss))
    except InputError as error:
        return str(error)
    return ""


def _subset(n: int, count: int) -> Tensor:
    """A fixed random subset of 0..n-1, in rising order."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:count].sort().values


def gradient_square(network: nn.Module, x: Inputs, y: Tensor, loss: Loss, chunk: int) -> float:
    """`||grad L(w)||^2`, L the mean loss over all samples, `chunk` of which pass through the network at a time."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    for samples, targets in zip(x.split(chunk), y.split(chunk), strict=True):
        outputs = network(samples)
        residual = loss.residual(outputs, targets).detach() / len(x)
        gradients = torch.autograd.grad(outputs, parameters, residual, allow_unused=True, materialize_grads=True)
        for sum_, gradient in zip(total, gradients, strict=True):
            sum_ += gradient
    return sum(gradient.square().sum().item() for gradient in total)
