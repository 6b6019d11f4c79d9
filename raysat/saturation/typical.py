"""N(b) of a typical run of SGD on the linearized network: runs drawn in the recursion's coordinates.

**Why the mean does not tell.** N(b; eps) is measured as the geometric mean over runs of the first iteration at which
the loss is at most eps. `raysat.saturation.recursion` follows the mean loss, and reaches eps later, for two reasons:
the mean is raised by the few runs that meet bad batches, and a run whose loss goes up and down is below eps for the
first time before it stays there. On least squares the second counts for more: at b = 1 and their best stepsizes the
mean loss takes 205 iterations, the mean of its logarithm 203, and the runs 182 (`benchmarks/forecast.py linear`).

**The runs.** What the recursion takes of the eigenvectors of K is that their entries are as good as independent normal
numbers, drawn anew for each batch. That is a stochastic process of its own, whose mean is the recursion exactly. Let
the residual have the part `c_k` in node k of the spectrum, which stands for m_k directions of one eigenvalue, and
`R = sum_k c_k^2`. Of b samples with C outputs the residuals are normal, and their squares have the mean

    y = R g,  g ~ chi^2(C b) / (C b).

Given these, one step adds to c_k noise that is normal again. Along the residual's own direction in the node,

    c_k <- c_k (1 - s_k g) - s_k sqrt(y/(C b)) (e_k - c_k (e . c)/R),  e ~ N(0, 1),  s_k = eta lambda_k,

for a batch's gradient is larger where its residuals are; and to the m_k - 1 directions across it,
`s_k^2 y/(C b) chi^2(m_k - 1)`, of which only the length counts, so that c_k^2 takes it up. The dimension of the
process is the number of nodes, whatever n and b are: a run costs some microseconds an iteration. Batches of distinct
samples have `1/phi` in the place of b, with which the mean and the variance of the noise are theirs; at b = n there is
none.

Nodes are those of the residual's measure. The density's eigenvalues are given to the nodes on either side of them, such
that `sum m lambda` and `sum m lambda^2`, which say how much noise there is, stay; converged eigenvalues, of which both
measures know, count once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from raysat.saturation.recursion import Spectrum
from raysat.saturation.targets import steps_to_target

RUNS = 128
"""Runs that are drawn. Default: 128; N scatters between runs by 5 to 20 %, so that its geometric mean is good to 0.5 to
2 %, and two stepsizes or batch sizes, which have the same draws, compare better."""

LEAST_RUNS = 16
"""Runs that are drawn at least."""

WORK = 3e8
"""Numbers, of runs times nodes times iterations, that are worth drawing for one table of N(b); there are fewer runs
where it would take more. Default: 3e8, some five seconds on a core."""

ENDLESS, TINY = 1e20, 1e-30
"""Where the loss of a run that diverges is held, and one that has vanished, in units of the initial one: single
precision has numbers for both."""


@dataclass(frozen=True)
class Nodes:
    """A spectrum as few directions, those that stand for several eigenvalues first.

    Attributes:
        values: Eigenvalues.
        mass: Of the residual, by sample: its sum is `2 L(w_0)`.
        count: How many eigenvalues each stands for; a fraction below 1 is a direction with less noise.
    """

    values: Float[np.ndarray, " q"]
    mass: Float[np.ndarray, " q"]
    count: Float[np.ndarray, " q"]

    @classmethod
    def of(cls, spectrum: Spectrum) -> Nodes:
        """One set of nodes for both measures."""
        held = spectrum.residual > 0
        own, mass = spectrum.nodes[held], spectrum.residual[held]
        given = (spectrum.density > 0) & (spectrum.nodes > 0)
        others, count = spectrum.nodes[given], spectrum.outputs * spectrum.samples * spectrum.density[given]
        first, last = (own.min(), own.max()) if len(own) else (np.inf, -np.inf)
        beyond = (others < first) | (others > last)  # without a node on both sides: nodes without residual
        values, index = np.unique(np.concatenate([own, others[beyond]]), return_inverse=True)
        masses, counts = np.zeros(len(values)), np.zeros(len(values))
        np.add.at(masses, index[: len(own)], mass)
        above = np.searchsorted(values, others)
        below = np.maximum(above - 1, 0)
        low, high = values[below], values[above]
        apart = np.where(high > low, high - low, 1)
        share = np.where(high > low, others * (others - low) / (high * apart), 1)
        np.add.at(counts, above, count * share)
        rest = count * others * (high - others) / (np.where(low > 0, low, 1) * apart)
        np.add.at(counts, below, np.where((low > 0) & (high > low), rest, 0))
        order = np.argsort(counts <= 1, kind="stable")
        return cls(values[order], masses[order], counts[order])


@dataclass(frozen=True)
class Typical:
    """Geometric means over runs, L(w_0) to L(w_T); nan after an iteration at which they were not asked for.

    Attributes:
        losses: Of the loss: h at T is made of it.
        lowest: Of the lowest loss so far: where it crosses eps is the geometric mean of N(eps), nearly.
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
    """The typical run of SGD on the linearized network, for several stepsizes and noise factors side by side.

    Args:
        spectrum: The spectrum.
        eta: Stepsizes.
        phi: Noise factors, from `raysat.saturation.recursion.noise_factor`.
        iterations: T.
        until: A loss; of each stepsize the runs end where `lowest` has reached it.
        seen: The iterations at which the loss is evaluated, which alone count for `lowest`. Default: all.
        runs: How many are drawn.
        seed: Of the draws, which all stepsizes have in common.
    """
    nodes, outputs = Nodes.of(spectrum), spectrum.outputs
    draw = np.random.default_rng(seed)
    whole = nodes.mass.sum() or 1.0  # everything is in units of it, so that no scale of the targets is too large
    until = np.broadcast_to(until / whole, eta.shape)
    losses, lowest = (np.full((len(eta), iterations + 1), np.nan) for _ in range(2))
    left = np.arange(len(eta))  # those that run still
    c = np.tile(np.sqrt(nodes.mass / whole).astype(np.float32), (len(eta), runs, 1))
    least = np.full((len(eta), runs), np.inf)
    along, across = np.sqrt(np.minimum(nodes.count, 1)).astype(np.float32), np.maximum(nodes.count - 1, 0)
    several = int((across > 0).sum())  # they come first
    freedom = outputs / np.maximum(phi, 1e-12) / 2
    for t in range(iterations + 1):
        total = np.einsum("krq,krq->kr", c, c)
        losses[left, t] = _geometric(total / 2)
        counted = np.ones(len(left), bool) if seen is None else seen[left, t]
        least[counted] = np.minimum(least[counted], total[counted] / 2)
        lowest[left, t] = _geometric(least)
        going = lowest[left, t] > until[left]
        if t == iterations or not going.any():
            break
        if not going.all():
            left, c, least, total = left[going], c[going], least[going], total[going]
        if (total > ENDLESS).any():
            c *= np.sqrt(np.minimum(1, ENDLESS / np.maximum(total, ENDLESS)))[..., None]
            total = np.minimum(total, ENDLESS)
        e = along * draw.standard_normal((runs, len(along)), dtype=np.float32)
        spread = _chi_square(across[:several], draw.standard_normal((runs, several), dtype=np.float32))
        g = draw.standard_gamma(freedom[left, None], (len(left), runs)) / freedom[left, None]
        deviation = np.sqrt(total * g * phi[left, None] / outputs)
        pull = g - deviation * np.einsum("krq,rq->kr", c, e) / np.maximum(total, TINY)
        step = (eta[left, None] * nodes.values).astype(np.float32)[:, None]
        put = step * deviation.astype(np.float32)[..., None]
        c *= 1 - step * pull.astype(np.float32)[..., None]
        c -= put * e
        some = c[..., :several]
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
    """N(eps) of the typical run, for several stepsizes and noise factors; nan where it is above T.

    Args:
        spectrum: The spectrum.
        eta: Stepsizes.
        phi: Noise factors.
        eps: The target loss.
        iterations: T.
        expected: About what N is, such as that of the mean loss; it decides how many runs are drawn.
    """
    runs = affordable(spectrum, float(np.minimum(expected, iterations).sum()))
    found = typical_runs(spectrum, eta, phi, iterations, until=eps, runs=runs)
    t = np.arange(found.lowest.shape[1])
    return np.array([steps_to_target(t, curve, eps) for curve in found.lowest])


def affordable(spectrum: Spectrum, iterations: float) -> int:
    """Return how many runs to draw, of so many iterations in all."""
    return int(np.clip(WORK / max(1.0, iterations * len(spectrum.nodes)), LEAST_RUNS, RUNS))


def _chi_square(freedom: Float[np.ndarray, " q"], z: Float[np.ndarray, "r q"]) -> Float[np.ndarray, "r q"]:
    """Squares of the lengths of normal vectors, from normal numbers, by Wilson and Hilferty's cube (1931)."""
    ninth = (2 / 9 / freedom).astype(np.float32)
    return freedom.astype(np.float32) * np.maximum(1 - ninth + np.sqrt(ninth) * z, 0) ** 3


def _geometric(values: Float[np.ndarray, "k r"]) -> Float[np.ndarray, " k"]:
    return np.exp(np.log(np.maximum(values, TINY)).mean(1))
