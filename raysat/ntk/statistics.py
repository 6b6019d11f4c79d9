"""The statistics of a network's NTK at a point: gamma, k_op, the critical batch size they predict, the noise scale.

Inspect, compute, verify: the network is inspected (`raysat.ntk.look`), then each statistic is computed by the first of
an ordered list of implementations (`raysat.ntk.per_sample`, `raysat.ntk.kernel`) that its check
(`raysat.ntk.certificate`) confirms. If the check of the last one fails, an error is raised and no number returned.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raysat.data.fields import Inputs
from raysat.errors import InputError, positive, whole
from raysat.losses import Loss, resolve
from raysat.messages.failures import first_sentence
from raysat.models.unpacked import adapt
from raysat.ntk.certificate import TOLERANCE, check_samples
from raysat.ntk.context import differentiable
from raysat.ntk.dense import checked_kernel
from raysat.ntk.look import Look, looked_at
from raysat.ntk.per_sample import Method, PerSample, Way, per_sample, ways
from raysat.ntk.plain import gradients, trained
from raysat.ntk.refusal import NoStatistics
from raysat.ntk.spectrum import converged, smallest_eigenvalue, spectral_density, spectral_measure, tight_gamma
from raysat.ntk.survey import Survey, survey
from raysat.ntk.top import TopEigenvalue, top_eigenvalue
from raysat.ntk.values import NTKStatistics
from raysat.saturation.formulas import b_star, b_star_thm33

DENSITY_SHARE = 4
"""Ratio of the products with K for the residual's measure to those for a probe of the density. Default: 4. The density
describes how noise spreads, a sum over many eigenvalues: 16 products per probe instead of 64 change no forecast b_N on
MNIST by 0.1 %. The measure of the residual needs its 64 for the last part of a loss curve."""


log = logging.getLogger(__name__)
_warned: set[str] = set()
"""Warnings already logged by this process: each is logged once, not for every network of a sweep."""


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
    progress: Callable[[int], object] | None = None,
) -> NTKStatistics:
    """Compute the NTK statistics of a network at its current parameters, each verified by plain reverse-mode autograd.

    gamma is a maximum and is taken over every sample, streamed in chunks; k_op is an average that converges quickly,
    and may be taken over a fixed random subset. The network is restored, whatever the caller's context.

    Args:
        network: Any module that maps `[n, *input]` to `[n, C]`; under the cross-entropy also to `[n, L, V]`. Parameters
            that do not require a gradient count as constants. Random layers are turned off within the call, and the
            statistics of batch normalization in training mode are frozen at those of x.
        x: Inputs; several tensors as a mapping of keyword arguments or a tuple.
        y: Targets (see `raysat.losses`); without them, loss and noise scale are NaN.
        loss: `mse` (eq. 2.1), `cross_entropy`, or a loss of your own (see `raysat.losses.resolve`).
        k_samples: Samples for k_op and the spectrum; all if there are fewer. Default: 4096. Fewer are used if the
            Jacobian must be formed.
        k_tolerance: Relative residual of k_op. Default: 1e-3.
        spectrum: Products with K for the residual's spectral measure; a quarter as many for each probe of the density,
            which needs fewer. Default: 0, no spectrum.
        probes: Random vectors of the density. Default: 4.
        dense_samples: Samples of the dense kernel, from which lambda_min and gamma_tight follow; squared error only.
            Default: 0, no dense kernel.
        memory: Bytes that the intermediate values of a chunk may take. Default: 1 GiB.
        method: One of `raysat.ntk.per_sample.Method`. Default: the fastest that is right for the network.
        progress: Callback with the number of samples done in the pass over all samples, the longest part.

    Raises:
        NoStatistics: The network has no statistics: its samples have no gradients of their own, or no implementation
            is confirmed.
        InputError: Inputs and targets do not match.

    Example:
        >>> from raysat.models.mlp import MLP
        >>> statistics = ntk_statistics(MLP(64, 8, 2), torch.randn(32, 8))
        >>> statistics.gamma >= statistics.gamma_mean > 0
        True
    """
    function = resolve(loss)
    if method is not None and method not in set(Method):
        raise InputError(f"method={method!r}: use one of {', '.join(Method)}, or leave it out.")
    for name, value, least in (("k_samples", k_samples, 1), ("spectrum", spectrum, 0), ("probes", probes, 1)):
        whole(name, value, least)
    whole("dense_samples", dense_samples, 0)
    positive("k_tolerance", k_tolerance)
    network, x = adapt(network, x)
    with looked_at(network, x, y, function, memory) as look:
        return _compute(
            look,
            function,
            k_samples=k_samples,
            k_tolerance=k_tolerance,
            spectrum=spectrum,
            probes=probes,
            dense_samples=dense_samples,
            memory=memory,
            method=method,
            progress=progress,
        )


def _compute(
    look: Look,
    loss: Loss,
    *,
    k_samples: int,
    k_tolerance: float,
    spectrum: int,
    probes: int,
    dense_samples: int,
    memory: int,
    method: str | None,
    progress: Callable[[int], object] | None,
) -> NTKStatistics:
    """Compute the statistics of an inspected network."""
    surveyed = _surveyed(look, memory)
    samples, way, checks, reasons = _certified(look, surveyed, loss, method, memory, k_tolerance, progress)
    if reasons and reasons not in _warned:
        _warned.add(reasons)
        log.warning("%s: %s; its statistics take a slower way.", type(look.network).__name__, reasons)
    subset = _subset(len(look.x), k_samples).to(look.x.device)
    top = top_eigenvalue(look, loss, subset, k_tolerance, memory)
    noise = _noise(look, look.y, loss, samples, memory) if look.y is not None else None
    spectra: dict[str, Any] = _spectra(look, top, loss, samples, spectrum, probes, k_tolerance)
    dense: dict[str, Any] = _dense(look, loss, dense_samples)
    gamma = samples.operator_norms.max().item()
    if not (gamma > 0 and top.value > 0):
        raise NoStatistics(
            "the kernel is zero, for the outputs do not change with the weights, or the loss has no curvature "
            "there: take another initialization or another loss."
        )
    return NTKStatistics(
        n=len(look.x),
        n_outputs=look.shape[-1],
        parameters=sum(p.numel() for p in trained(look.network).values()),
        loss_init=samples.loss / len(look.x),
        gamma=gamma,
        gamma_mean=samples.operator_norms.mean().item(),
        gamma_frobenius=samples.frobenius.max().item(),
        k_op=top.value,
        k_op_residual=top.residual,
        k_samples=len(top.subset),
        k_iterations=top.products,
        b_star=b_star(gamma, top.value),
        b_star_thm33=b_star_thm33(gamma, top.value),
        noise_scale=noise[0] if noise else math.nan,
        **spectra,
        **dense,
        method=str(way.method),
        method_reason=reasons,
        way=str(top.operator.way),
        gamma_check=checks[0],
        k_op_check=top.check,
        k_op_upper=top.upper,
        noise_check=max(checks[1], noise[1]) if noise else math.nan,
        statistics_dtype=str(look.dtype).removeprefix("torch."),
        frozen_norms=", ".join(look.frozen),
        off=", ".join(look.off),
    )


def _surveyed(look: Look, memory: int) -> Survey:
    """Return which parameters the layer rules cover."""
    # Beyond the three samples inspected, because some samples may use a weight in another way.
    count = max(WATCHED_BY_RULES, len(look.x) // 50)
    more = look.x[_subset(len(look.x), count).to(look.x.device)]
    with differentiable(look.network):
        return survey(look.network, look.few, more, look.chunk(memory))


def reason_against(
    network: nn.Module,
    x: Inputs | Mapping | Sequence,
    y: Tensor | None = None,
    *,
    loss: str | Callable[[Tensor, Tensor], Tensor] = "mse",
) -> str:
    """Return why a network has no statistics on some data, in one sentence with the remedy; empty if it may have them.

    The network is inspected only, at the cost of a few passes: give a few samples.
    """
    try:
        with looked_at(*adapt(network, x), y, resolve(loss)):
            return ""
    except InputError as error:
        return str(error)


WATCHED_BY_RULES = 64
"""Smallest number of samples on which rules are verified by the gradient of a batch; 2 % of all samples if more."""

WATCHED = 2
"""Number of random samples whose quantities are checked, besides the sample with the largest operator norm."""


def _certified(
    look: Look,
    surveyed: Survey,
    loss: Loss,
    method: str | None,
    memory: int,
    tolerance: float,
    progress: Callable[[int], object] | None,
) -> tuple[PerSample, Way, tuple[float, float], str]:
    """Return the quantities of all samples, the first implementation confirmed, its checks, and why others were not."""
    network, n = look.network, len(look.x)
    generator = torch.Generator().manual_seed(3)
    watched = tuple(torch.randint(n, (WATCHED,), generator=generator, device="cpu").tolist())
    few_y = None if look.y is None else look.y[look.chosen]
    wanted = method in (None, Method.GRAM)
    reasons = [surveyed.reason] if surveyed.reason and wanted else []
    for way in ways(look, surveyed, method, memory):
        # PLAIN is the reference itself: what differs is the network's own rounding, e.g. of float32 inside float64.
        allowed = TOLERANCE[torch.float32 if way.method is Method.PLAIN else look.dtype]
        try:
            if way.rehearse:  # on three samples first: a wrong or failing implementation is not run on all
                with differentiable(network):
                    found = per_sample(network, look.few, few_y, loss, way, memory, tolerance, (0, 1, 2))
                look.state.repair()
                checks = check_samples(network, look.few, few_y, loss, found, [0, 1, 2])
                if not _passes(checks, allowed):
                    reasons.append(f"{way.method} is off by {max(checks):.1e} from plain autograd")
                    continue
            with differentiable(network):
                found = per_sample(network, look.x, look.y, loss, way, memory, tolerance, watched, progress)
            look.state.repair()
            largest = int(found.operator_norms.argmax())  # the sample that determines gamma is always checked
            checks = check_samples(network, look.x, look.y, loss, found, [largest, *watched])
        except InputError:
            raise
        except Exception as error:  # the next implementation does not depend on the one that failed
            reasons.append(f"{way.method} fails ({first_sentence(error)})")
            look.state.repair()  # a transform that failed midway may have left its tensors as parameters
            continue
        if _passes(checks, allowed):
            return found, way, checks, "; ".join(dict.fromkeys(reasons))
        reasons.append(f"{way.method} is off by {max(checks):.1e} from plain autograd")
    raise NoStatistics(
        f"no way to the per-sample quantities is confirmed by plain autograd ({'; '.join(reasons)}): "
        + ("leave method out." if method else "see 'My model fails' in the documentation.")
    )


def _passes(checks: tuple[float, float], allowed: float) -> bool:
    return checks[0] <= allowed and (math.isnan(checks[1]) or checks[1] <= allowed)


def _noise(look: Look, y: Tensor, loss: Loss, samples: PerSample, memory: int) -> tuple[float, float]:
    """Return the noise scale, and the check of ||grad L||^2 on some samples.

    ||grad L||^2 is computed from residuals; its check differentiates the loss itself, in other chunks. The difference
    is relative to the mean gradient square.
    """
    mean_square = samples.gradient_squares.mean().item()
    signal = sum(part.square().sum().item() for part in samples.gradient) / len(look.x) ** 2
    some = _subset(len(look.x), 64).to(look.x.device)
    x, y = look.x[some], y[some]
    by_residuals = gradient_square(look.network, x, y, loss, look.chunk(memory))
    weights = list(trained(look.network).values())
    total = [torch.zeros_like(w, dtype=torch.float64) for w in weights]
    for k in range(0, len(x), 3):
        value = loss.total(look.network(x[k : k + 3]), y[k : k + 3]) / len(x)
        for sum_, part in zip(total, gradients(value, weights), strict=True):
            sum_ += part
    exact = sum(part.square().sum().item() for part in total)
    least = torch.finfo(look.dtype).eps * samples.operator_norms.max().item()
    check = abs(by_residuals - exact) / max(mean_square, least, torch.finfo(torch.float64).tiny)
    if not check <= TOLERANCE[look.dtype]:
        raise NoStatistics(
            f"the gradient of the loss is off by {check:.1e} of the mean gradient square from plain autograd: "
            "leave y out, or report the network."
        )
    # tr(Sigma) is the mean of ||grad l_i||^2 minus ||grad L||^2. For one sample or equal ones it is 0, and rounding
    # decides its sign.
    return max(mean_square - signal, 0.0) / signal if signal > 0 else math.inf, check


def _dense(look: Look, loss: Loss, count: int) -> dict[str, float]:
    """Return the statistics of a dense kernel, by their names in `NTKStatistics`."""
    count = min(count, len(look.x)) if loss.name == "mse" else 0
    if not count:
        return {"gamma_tight": math.nan, "lambda_min": math.nan, "dense_samples": 0, "kernel_check": math.nan}
    kernel = checked_kernel(look.network, look.x[_subset(len(look.x), count).to(look.x.device)])
    return {
        "gamma_tight": tight_gamma(kernel.matrix) if look.shape == (1,) else math.nan,
        "lambda_min": smallest_eigenvalue(kernel.matrix),
        "dense_samples": count,
        "kernel_check": kernel.check,
    }


def _spectra(
    look: Look, top: TopEigenvalue, loss: Loss, samples: PerSample, steps: int, probes: int, tolerance: float
) -> dict[str, tuple[float, ...]]:
    """Return the spectral measures, as tuples; empty if none are requested.

    The largest eigenvalues are the converged Ritz values of the Lanczos run from the residual, at no extra cost; those
    whose eigenvectors are orthogonal to it are missed.
    """
    names = ("top", "residual_nodes", "residual_weights", "density_nodes", "density_weights")
    if steps == 0:
        return dict.fromkeys(names, ())
    operator, outputs = top.operator, top.outputs
    y = None if look.y is None else look.y[top.subset]
    # trace(K) = (1/n) sum_i ||J_i||_F^2 over the samples of K.
    trace = samples.frobenius[top.subset.to(samples.frobenius.device)].mean().item()
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(outputs.shape, generator=generator, dtype=torch.float64, device="cpu").to(outputs)
    has_residual = y is not None and loss.name == "mse" and bool((outputs != y).any())
    with differentiable(look.network):
        # Without a residual, the random start still gives the largest eigenvalues and the known part of the density.
        start = start if y is None or not has_residual else loss.residual(outputs, y)
        measure, ritz = spectral_measure(operator, start, steps)
        density = spectral_density(operator, outputs, -(-steps // DENSITY_SHARE), probes, ritz, trace, tolerance)
    found = {"density_nodes": density.nodes, "density_weights": density.weights}
    if has_residual:
        found |= {"residual_nodes": measure.nodes, "residual_weights": measure.weights}
    # Descending, up to the first one that has not converged: below it, eigenvalues may be missing. Values within
    # rounding of 0 are left out.
    known = converged(ritz, tolerance)
    below = int((~known.flip(0)).float().argmax()) if not known.all() else len(known)
    largest = ritz.values[0].flip(0)[:below]
    found["top"] = largest[largest > torch.finfo(look.dtype).eps * len(largest) * largest.max()] if below else largest
    return {name: tuple(found[name].tolist()) if name in found else () for name in names}


def _subset(n: int, count: int) -> Tensor:
    """Return a fixed random subset of 0..n-1, in ascending order."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0), device="cpu")[:count].sort().values


def gradient_square(network: nn.Module, x: Inputs, y: Tensor, loss: Loss, chunk: int) -> float:
    """Return `||grad L(w)||^2` of the mean loss L over all samples, computed in chunks of `chunk` samples."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    for samples, targets in zip(x.split(chunk), y.split(chunk), strict=True):
        outputs = network(samples)
        residual = loss.residual(outputs, targets).detach() / len(x)
        for sum_, gradient in zip(total, gradients(outputs, parameters, residual), strict=True):
            sum_ += gradient
    return sum(gradient.square().sum().item() for gradient in total)
