"""The expected loss of SGD on the linearized network: a recursion in a few dozen numbers, and its limit of stability.

A stepsize is *stable* if the expected loss under it does not grow without bound.

**Derivation.** Linearize the network at w_0. With `P_S` the projection on the outputs of a batch S of b of n samples,
one step takes the residual to `r - eta (n/b) K P_S r`. In K's eigenbasis (`lambda_j`, `u_j`) let `v_j = E (u_j^T r)^2`,
so that `L = 1/(2n) sum_j v_j`. The mean over S of the new coefficient is `(1 - eta lambda_j) u_j^T r`, and its variance
is that of a sum of b of the n numbers `z_i = u_ji^T r_i`, scaled by `eta lambda_j n/b`:

    v_j <- (1 - eta lambda_j)^2 v_j + eta^2 phi lambda_j^2 (n sum_i z_i^2 - (u_j^T r)^2),

`phi = (n-b)/(b(n-1))` for b distinct samples, `1/b` for independent draws. This is exact. The approximation is

    n sum_i z_i^2  ~  (1/C) sum_k v_k + (1 + 1/C) v_j,

**delocalization**: the entries of the eigenvectors are treated as independent normal numbers of variance 1/(nC). Then
in the sum over k, l of `E (u_k^T r)(u_l^T r) n sum_i (u_ji^T u_ki)(u_ji^T u_li)` only the terms k = l remain
(Isserlis), with weight 1/C for k != j and `1 + 2/C` for k = j: a residual along u_j is large at just those samples at
which u_j is large, so that its noise acts on u_j itself. Without that last term N of least squares comes out 10 to 30 %
too small at small b. For an eigenvector whose entries have equal size over the samples, as is often true of the first
one of a network with one output, the weight is 1 instead of 3: then N of the mean loss comes out up to 5 % too large.

The two approximations, linearization and delocalization, fail if the kernel moves (narrow networks, stepsizes near or
beyond 2/k_op, long runs) and if samples differ: eigenvectors are larger at samples with larger gradients, and single
samples may have eigenvectors of their own (then small batches are noisier than forecast). At b = n, phi = 0, and the
recursion is gradient descent on the linearized network exactly. It describes the mean loss; for the typical run, which
is faster, see `raysat.saturation.typical`.

**Matrix-free.** The noise added to direction j is a function of lambda_j alone. So the sum over j splits into the
initial residual, `sum_j v_j(0) f(lambda_j)^t` with `f(lambda) = (1 - eta lambda)^2 + eta^2 phi lambda^2/C`, an integral
over the spectral measure of K and r, and an integral over the density of eigenvalues: a few dozen nodes each
(`raysat.ntk.spectrum`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from raysat.errors import InputError

MEASURES = ("residual_nodes", "residual_weights", "density_nodes", "density_weights")
"""The columns of `ntk` with the spectral measures."""


@dataclass(frozen=True)
class Spectrum:
    """The spectral measures at initialization, which determine training of the linearized network.

    Attributes:
        n: Training samples.
        samples: Samples over which K was taken.
        nodes: Eigenvalues: those of the residual's measure, then those of the density. Shape: [q].
        residual: Mass of the residual at each node, per sample: its sum is `2 L(w_0)`; 0 at the density's nodes.
        density: Fraction of K's eigenvalues at each node, of sum 1; 0 at the residual's nodes.
        outputs: C.
    """

    n: int
    samples: int
    nodes: Float[np.ndarray, " q"]
    residual: Float[np.ndarray, " q"]
    density: Float[np.ndarray, " q"]
    outputs: int

    @classmethod
    def of(cls, row: Mapping) -> Spectrum:
        """Read the spectral measures from a row of `ntk` or the fields of `NTKStatistics`.

        Raises:
            InputError: It has none.
        """
        if row.get("residual_nodes") is None or len(row["residual_nodes"]) == 0:
            raise InputError("the statistics have no spectral measures: set spectrum=64 (and loss='mse').")
        own, all_ = (np.asarray(row[f"{name}_nodes"], float) for name in ("residual", "density"))
        masses = np.asarray(row["residual_weights"], float) / int(row["k_samples"])
        shares = np.asarray(row["density_weights"], float)
        return cls(
            n=int(row["n"]),
            samples=int(row["k_samples"]),
            nodes=np.concatenate([own, all_]).clip(0),  # Lanczos rounds eigenvalues 0 to slightly negative ones
            residual=np.concatenate([masses, np.zeros(len(all_))]),
            density=np.concatenate([np.zeros(len(own)), shares]),
            outputs=int(row["n_outputs"]),
        )


def noise_factor(b: int, n: int, *, replacement: bool = False) -> float:
    """phi: the variance of a batch's mean, as a fraction of the variance of one sample among the n."""
    if replacement:
        return 1 / b
    return (n - b) / (b * (n - 1)) if n > 1 else 0.0


def loss_curves(
    spectrum: Spectrum, eta: Float[np.ndarray, " k"], phi: Float[np.ndarray, " k"], iterations: int
) -> Float[np.ndarray, "k t"]:
    """The expected losses L(w_0), ..., L(w_T) for several stepsizes and noise factors side by side.

    A curve that diverges is infinite from there on.

    Args:
        spectrum: The spectrum.
        eta: Stepsizes.
        phi: Noise factors, from `noise_factor`.
        iterations: T.
    """
    step = eta[:, None] * spectrum.nodes  # (k, q)
    noise = phi[:, None] * step**2
    keep = (1 - step) ** 2 + noise / spectrum.outputs  # f(lambda)
    put = noise * spectrum.density * spectrum.samples  # the density's nC eigenvalues, each 1/C of the noise
    mass = np.tile(spectrum.residual, (len(eta), 1))
    losses = np.empty((len(eta), iterations + 1))
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(iterations + 1):
            total = mass.sum(1)
            losses[:, t] = total / 2  # the mass is per sample: L = 1/(2n) ||r||^2
            mass = keep * mass + put * total[:, None]
    return np.where(np.isfinite(losses) & (losses >= 0), losses, math.inf)


def largest_stable(spectrum: Spectrum, phi: float, own: float | None = None) -> float:
    """The largest eta at which the expected loss does not grow without bound.

    With `1 - f = eta lambda (2 - eta lambda (1 + phi/C))` for each eigenvalue, the noise added and the decay balance
    where `(1/C) sum_j eta phi lambda_j / (2 - eta lambda_j (1 + phi/C)) = 1`; the left side rises with eta. The mean of
    SGD is gradient descent, so that the limit is never above 2/k_op.

    Args:
        spectrum: The spectrum.
        phi: Noise factor, from `noise_factor`.
        own: The additional weight of v_j itself, besides that of the sum, in the noise of direction j. Default: 1/C, as
            above.
    """
    largest = float(spectrum.nodes.max(initial=0.0))
    if not largest > 0:
        return math.inf
    own = 1 / spectrum.outputs if own is None else own
    # at most 2/k_op, and below the pole of the left side, where a denominator is 0
    limit = 2 / (largest * max(1.0, 1 + phi * own))
    shares = spectrum.samples * spectrum.density

    def gain(eta: float) -> float:
        return float((shares * eta * phi * spectrum.nodes / (2 - eta * spectrum.nodes * (1 + phi * own))).sum())

    if gain(limit * (1 - 1e-12)) < 1:  # at the limit itself a denominator may vanish
        return limit
    low, high = 0.0, limit
    for _ in range(60):  # bisection to the precision of float64
        middle = (low + high) / 2
        low, high = (middle, high) if gain(middle) < 1 else (low, middle)
    return low


def stable_below(row: Mapping[str, Any], b: int, sampling: str) -> float:
    """An upper bound of the stepsizes at which SGD on the linearized network is stable: the column `eta_limit`.

    It is `largest_stable` with own = -1, no noise of a direction on itself, and holds for any eigenvectors: if they are
    large at few samples, SGD becomes unstable at smaller stepsizes, though never below 2/beta(b), up to which Lemma 3.1
    guarantees stability.

    Args:
        row: A row of `ntk`. Without spectral measures the limit is 2/k_op, which is necessary at every b, and exact at
            b = n; likewise for `epochs`, whose batches are not independent.
        b: Batch size.
        sampling: How batches are drawn.

    Returns:
        The limit; nan if k_op is not positive, so that nothing can be unstable.
    """
    if not float(row["k_op"]) > 0:
        return math.nan
    try:
        spectrum = Spectrum.of(row)
    except InputError:
        spectrum = None
    if spectrum is None or sampling == "epochs":  # the mean of SGD is gradient descent, which is unstable above 2/k_op
        return 2 / float(row["k_op"])
    phi = noise_factor(b, spectrum.n, replacement=sampling == "with_replacement")
    return largest_stable(spectrum, phi, own=-1.0)
