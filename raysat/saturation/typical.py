"""N(b) of a typical run of SGD on the linearized network: runs drawn in the recursion's coordinates.

**Why the mean is not enough.** N(b; eps) is measured as the geometric mean over runs of the first iteration at which
the loss is at most eps. `raysat.saturation.recursion` follows the mean loss, which reaches eps later, for two reasons:
the few runs that meet bad batches raise the mean, and a run whose loss fluctuates is below eps for the first time
before it stays there. On least squares the second reason matters more: at b = 1 and their best stepsizes the mean loss
takes 205 iterations, the mean of its logarithm 203, and the runs 182 (`benchmarks/forecast.py linear`).

**The runs.** The recursion treats the entries of K's eigenvectors as independent normal numbers, drawn again for each
batch. That defines a stochastic process whose mean is exactly the recursion. Let the residual have the component `c_k`
in node k of the spectrum, which stands for m_k directions of one eigenvalue, and `R = sum_k c_k^2`. The residuals of b
samples with C outputs are normal, and the mean of their squares is

    y = R g,  g ~ chi^2(C b) / (C b).

Given these, one step adds to c_k noise that is normal again. Along the residual's own direction in the node,

    c_k <- c_k (1 - s_k g) - s_k sqrt(y/(C b)) (e_k - c_k (e . c)/R),  e ~ N(0, 1),  s_k = eta lambda_k,

because a batch's gradient is larger where its residuals are; in the m_k - 1 directions orthogonal to it the step adds
`s_k^2 y/(C b) chi^2(m_k - 1)`, of which only the length matters, so that it is added to c_k^2. The dimension of the
process is the number of nodes for any n and b: a run costs some microseconds an iteration. For batches of distinct
samples `1/phi` replaces b, which gives the noise their mean and variance; at b = n there is no noise.

Nodes are those of the residual's measure. The density's eigenvalues are distributed over the nodes on either side of
them such that `sum m lambda` and `sum m lambda^2`, which determine the amount of noise, are preserved; converged
eigenvalues, which are in both measures, count once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from raysat.saturation.recursion import Spectrum
from raysat.saturation.targets import steps_to_target

RUNS = 128
"""Runs that are drawn, at most. Default: 128; N scatters between runs by 5 to 20 %, so that its geometric mean is good
to 0.5 to 2 %; the comparison of two stepsizes or batch sizes, which use the same draws, is better than that."""

LEAST_RUNS = 16
"""Runs that are drawn at least."""

WORK = 3e8
"""Largest number of random numbers, runs times nodes times iterations, for one table of N(b); runs are reduced to stay
below it. Default: 3e8, some five seconds on a core."""

ENDLESS, TINY = 1e20, 1e-30
"""Bounds at which the loss of a run that diverges or vanishes is held, in units of the initial one: single precision
can represent both."""


@dataclass(frozen=True)
class Nodes:
    """A spectrum reduced to few directions, those that stand for several eigenvalues first.

    Attributes:
        values: Eigenvalues.
        mass: Mass of the residual at each, per sample: its sum is `2 L(w_0)`.
        count: Number of eigenvalues for which each stands; a fraction below 1 is a direction with less noise.
    """

    values: Float[np.ndarray, " q"]
    mass: Float[np.ndarray, " q"]
    count: Float[np.ndarray, " q"]

    @classmethod
    def of(cls, spectrum: Spectrum) -> Nodes:
        """Merge both measures of a spectrum into one set of nodes."""
        held = spectrum.residual > 0
        own, mass = spectrum.nodes[held], spectrum.residual[held]
        given = (spectrum.density > 0) & (spectrum.nodes > 0)
        others, count = spectrum.nodes[given], spectrum.outputs * spectrum.samples * spectrum.density[given]
        first, last = (own.min(), own.max()) if len(own) else (np.inf, -np.inf)
        beyond = (others < first) | (others > last)  # outside the residual's nodes: nodes without residual
        values, index = np.unique(np.concatenate([own, others[beyond]]), return_inverse=True)
        masses, counts = np.zeros(len(values)), np.zeros(len(values))
        np.add.at(masses, index[: len(own)], mass)
        above = np.searchsorted(values, others)
        below = np.maximum(above - 1, 0)
        low, high = values[below], values[above]
        apart = np.where(high > low, high - low, 1)
        # weights w_low, w_high with w_low low + w_high high = lambda and w_low low^2 + w_high high^2 = lambda^2
        share = np.where(high > low, others * (others - low) / (high * apart), 1)
        np.add.at(counts, above, count * share)
        rest = count * others * (high - others) / (np.where(low > 0, low, 1) * apart)
        np.add.at(counts, below, np.where((low > 0) & (high > low), rest, 0))
        order = np.argsort(counts <= 1, kind="stable")
        return cls(values[order], masses[order], counts[order])


@dataclass(frozen=True)
class Typical:
    """Geometric means over runs, L(w_0) to L(w_T); nan after the iteration at which the runs end.

    Attributes:
        losses: Of the loss, from which h at T is computed; nan at the iterations at which it is not evaluated.
        lowest: Of the lowest loss so far: it crosses eps at nearly the geometric mean of N(eps).
    """

    losses: Float[np.ndarray, "k t"]
    lowest: Float[np.ndarray, "k t"]


def typical_runs(
    spectrum: Spectrum,
    eta: Float[np.ndarray, " k"],
    phi: Float[np.ndarray, " k"],
    iterations: int,
    *,
    until: float | Float[np.ndarray, " k"] = 0.0,
    seen: Bool[np.ndarray, "k t"] | None = None,
    runs: int = RUNS,
    seed: int = 0,
) -> Typical:
    """Draw typical runs of SGD on the linearized network, for several stepsizes and noise factors side by side.

    Args:
        spectrum: The spectrum.
        eta: Stepsizes.
        phi: Noise factors, from `raysat.saturation.recursion.noise_factor`.
        iterations: T.
        until: A loss; the runs of a stepsize end once `lowest` has reached it.
        seen: The iterations at which the loss is evaluated; only these count for `lowest`. Default: all.
        runs: Number of runs.
        seed: Seed of the draws, which all stepsizes share.
    """
    nodes, outputs = Nodes.of(spectrum), spectrum.outputs
    draw = np.random.default_rng(seed)
    whole = nodes.mass.sum() or 1.0  # the unit of all losses here, so that no scale of the targets overflows
    until = np.broadcast_to(until / whole, eta.shape)
    losses, lowest = (np.full((len(eta), iterations + 1), np.nan) for _ in range(2))
    seen = np.ones(lowest.shape, bool) if seen is None else seen
    evaluated = np.any(seen, axis=0)
    left = np.arange(len(eta))  # the stepsizes that still run
    c = np.tile(np.sqrt(nodes.mass / whole).astype(np.float32), (len(eta), runs, 1))
    least, low = np.full((len(eta), runs), np.inf), np.full(len(eta), np.inf)
    along, across = np.sqrt(np.minimum(nodes.count, 1)).astype(np.float32), np.maximum(nodes.count - 1, 0)
    several = int((across > 0).sum())  # nodes of several eigenvalues, which come first
    chi_square = _chi_square(across[:several])
    freedom = (outputs / np.maximum(phi, 1e-12) / 2)[:, None]  # C b / 2: chi^2(2 a) is 2 Gamma(a)
    noise, pace = phi[:, None], (eta[:, None] * nodes.values).astype(np.float32)[:, None]
    for t in range(iterations + 1):
        total = np.einsum("krq,krq->kr", c, c)
        if evaluated[t]:
            counted = seen[left, t]
            losses[left[counted], t] = _geometric(total[counted] / 2)
            least[counted] = np.minimum(least[counted], total[counted] / 2)
            low = _geometric(least)
        lowest[left, t] = low
        going = low > until[left]
        if t == iterations or not going.any():
            break
        if not going.all():
            left, c, least, low, total = left[going], c[going], least[going], low[going], total[going]
            freedom, noise, pace = freedom[going], noise[going], pace[going]
        if (total > ENDLESS).any():  # scale runs that diverge back to the bound
            c *= np.sqrt(np.minimum(1, ENDLESS / np.maximum(total, ENDLESS)))[..., None]
            total = np.minimum(total, ENDLESS)
        e = along * draw.standard_normal((runs, len(along)), dtype=np.float32)
        spread = chi_square(draw.standard_normal((runs, several), dtype=np.float32))
        g = draw.standard_gamma(freedom, (len(left), runs)) / freedom
        deviation = np.sqrt(total * g * noise / outputs)
        # the step along c: g, minus the part of e along c, which the noise does not have
        pull = g - deviation * np.einsum("krq,rq->kr", c, e) / np.maximum(total, TINY)
        put = pace * deviation.astype(np.float32)[..., None]
        c *= 1 - pace * pull.astype(np.float32)[..., None]
        c -= put * e
        some = c[..., :several]  # a view: only the length of c_k matters, so that its sign may go
        some[:] = np.sqrt(some**2 + put[..., :several] ** 2 * spread)
    return Typical(whole * losses, whole * lowest)


def typical_steps(
    spectrum: Spectrum,
    eta: Float[np.ndarray, " k"],
    phi: Float[np.ndarray, " k"],
    eps: float,
    iterations: int,
    expected: Float[np.ndarray, " k"],
) -> Float[np.ndarray, " k"]:
    """N(eps) of the typical run, for several stepsizes and noise factors; nan if it is above T.

    Args:
        spectrum: The spectrum.
        eta: Stepsizes.
        phi: Noise factors.
        eps: The target loss.
        iterations: T.
        expected: An estimate of N, such as that of the mean loss; it determines how many runs are drawn.
    """
    runs = affordable(spectrum, float(np.minimum(expected, iterations).sum()))
    found = typical_runs(spectrum, eta, phi, iterations, until=eps, runs=runs)
    t = np.arange(found.lowest.shape[1])
    return np.array([steps_to_target(t, curve, eps) for curve in found.lowest])


def affordable(spectrum: Spectrum, iterations: float) -> int:
    """Return the number of runs to draw, given the iterations of one run, summed over stepsizes."""
    return int(np.clip(WORK / max(1.0, iterations * len(spectrum.nodes)), LEAST_RUNS, RUNS))


def _chi_square(freedom: Float[np.ndarray, " q"]) -> Callable[[Float[np.ndarray, "r q"]], Float[np.ndarray, "r q"]]:
    """Return a function from normal to chi-square numbers, by the cube of Wilson and Hilferty (1931)."""
    ninth = (2 / 9 / freedom).astype(np.float32)
    times, mean, deviation = freedom.astype(np.float32), 1 - ninth, np.sqrt(ninth)
    return lambda z: times * np.maximum(mean + deviation * z, 0) ** 3


def _geometric(values: Float[np.ndarray, "k r"]) -> Float[np.ndarray, " k"]:
    return np.exp(np.log(np.maximum(values, TINY)).mean(1))
