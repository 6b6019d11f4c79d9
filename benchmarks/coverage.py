"""How often intervals of 95 % for the critical batch size hold what infinitely many seeds would give.

    python benchmarks/coverage.py                  least squares, three spectra, exact SGD
    python benchmarks/coverage.py --draws 500      a quick look

SGD on least squares: n = 256 samples of d = 64 features whose covariance has eigenvalues 1/k, 1/k^2, or 1; targets of
a random linear function, so that the loss goes to 0; w_0 and batches drawn by each of the seeds. N(b) counts to a tenth
of the initial loss, read from evaluations as a sweep spaces them. Two policies: `theory`, eta = 1/beta(b), and `tuned`,
the best of powers of sqrt 2 for each seed. An interval is made from k seeds drawn from the pool, and the value that it
is to hold is that of the whole pool under the law that the draw has chosen, with an evaluation at each iteration and
twice as many stepsizes.

Beside each coverage stand the median width (upper over lower end), that of an oracle which knows the covariance of log
N over seeds, and the coverage of resampled seeds, the percentile interval of a cluster bootstrap.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from jaxtyping import Float

from raysat.analysis.measure import UNSURE
from raysat.saturation.critical import critical_batch
from raysat.saturation.fits import fit_bend, fit_law, fit_saturation, slopes
from raysat.saturation.formulas import beta
from raysat.saturation.intervals import geometric_mean
from raysat.saturation.targets import below_parabola, earliest, in_time, lateness, steps_to_target

N, D, TARGET = 256, 64, 0.1
SIZES = np.array([1, 2, 4, 8, 16, 32, 64, 128])
SEEDS = (1, 2, 3, 5, 10)
SPECTRA = {"1/k": lambda k: 1 / k, "1/k^2": lambda k: 1 / k**2, "flat": np.ones_like}
EVALUATIONS = 30


def losses(
    x: Float[np.ndarray, "n d"], b: int, eta: float, at: np.ndarray, pool: int, seed: int
) -> Float[np.ndarray, "pool t"]:
    """The loss of each of many seeds at some iterations; targets are 0, so that w is the distance from the optimum."""
    generator = np.random.default_rng(seed)
    w = generator.standard_normal((pool, D)).astype(np.float32)
    x32, made = x.astype(np.float32), np.empty((pool, len(at)))
    gram = (x.T @ x / (2 * len(x))).astype(np.float32)
    batches = np.random.default_rng((seed, b))  # the same for each stepsize, as in a sweep
    for t in range(int(at[-1]) + 1):
        if t in at:
            made[:, np.searchsorted(at, t)] = np.einsum("sd,de,se->s", w, gram, w)
        chosen = x32[batches.integers(len(x), size=(pool, b))]  # (pool, b, d)
        errors = np.einsum("sbd,sd->sb", chosen, w)
        w -= np.float32(eta / b) * np.einsum("sb,sbd->sd", errors, chosen)
    return made


def spaced(horizon: int) -> np.ndarray:
    """Iterations of evaluations: 0, and by equal ratios to the horizon, each once."""
    return np.unique(np.concatenate([[0], np.geomspace(1, horizon, EVALUATIONS).round()])).astype(int)


def steps(x: Float[np.ndarray, "n d"], policy: str, pool: int) -> tuple[Float[np.ndarray, "pool b"], ...]:
    """N(b) of each seed as a sweep reads it, how late that is, what it cannot be below, the shared error, and as it is.

    The last is of an evaluation at every iteration and, of tuned stepsizes, of twice as many of them.
    """
    gram = x @ x.T / N
    gamma, k_op = float((x**2).sum(1).max()), float(np.linalg.eigvalsh(gram)[-1])
    found, late, least, shared, exact = (np.empty((pool, len(SIZES))) for _ in range(5))
    for j, b in enumerate(SIZES):
        base = 1 / beta(int(b), N, gamma, k_op, replacement=True)
        read, off, ends, whole = [], [], [], []
        for k in [0] if policy == "theory" else range(-2, 11):  # quarters of an octave, of which a sweep tries halves
            eta = base * 2 ** (k / 4)
            at = np.arange(_horizon(x, int(b), eta) + 1)
            curves = losses(x, int(b), eta, at, pool, seed=1)
            with np.errstate(invalid="ignore"):
                curves = np.where(np.isfinite(curves), curves, math.inf)
            targets = TARGET * curves[:, 0]
            whole.append([steps_to_target(at, *one) for one in zip(curves, targets, strict=True)])
            if k % 2 == 0:
                few = spaced(int(at[-1]))
                pairs = list(zip(curves[:, few], targets, strict=True))
                read.append([steps_to_target(few, *one) for one in pairs])
                off.append([lateness(few, *one) for one in pairs])
                ends.append([earliest(few, *one) for one in pairs])
        n, every = (np.where(np.isnan(np.array(one)), math.inf, np.array(one)) for one in (read, whole))
        best = n.argmin(0)
        found[:, j], exact[:, j] = n[best, np.arange(pool)], every.min(0)
        late[:, j] = np.nan_to_num(np.array(off)[best, np.arange(pool)])
        least[:, j] = np.array(ends)[best, np.arange(pool)]
        shared[:, j] = np.hypot(UNSURE * late[:, j], _spacing(np.log(n), best))
    return found, late, least, shared, exact


def _horizon(x: Float[np.ndarray, "n d"], b: int, eta: float) -> int:
    """Iterations in which nearly every seed reaches the target: twice those of a hundred seeds' slowest twentieth."""
    at = np.unique(np.geomspace(1, 20_000, 200).round()).astype(int)
    for end in (300, 3_000, 20_000):
        some = at[at <= end]
        curves = losses(x, b, eta, np.concatenate([[0], some]), 60, seed=2)
        with np.errstate(invalid="ignore"):
            reached = (curves <= TARGET * curves[:, :1]).any(1)
        if reached.mean() >= 0.95 or not np.isfinite(curves).all():
            first = (curves <= TARGET * curves[:, :1]).argmax(1)
            return max(10, int(2 * np.quantile(np.concatenate([[0], some])[first], 0.97)))
    return 20_000


def _spacing(log_n: Float[np.ndarray, "k pool"], best: np.ndarray) -> Float[np.ndarray, " pool"]:
    """As `raysat.analysis.measure.stepsize_resolution`: the depth of the parabola through three stepsizes."""
    made = np.zeros(log_n.shape[1])
    for seed, k in enumerate(best):
        if 0 < k < len(log_n) - 1 and np.isfinite(log_n[k - 1 : k + 2, seed]).all():
            made[seed] = below_parabola(np.arange(3.0), log_n[k - 1 : k + 2, seed])
    return made


def bootstrap(b: np.ndarray, values: Float[np.ndarray, "seeds b"], generator: np.random.Generator) -> tuple:
    """The percentile interval over 400 resamples of seeds, under q = 1."""
    drawn = generator.integers(len(values), size=(400, len(values)))
    fits = fit_saturation(b, np.exp(np.log(values)[drawn].mean(1))).b_c
    return tuple(np.quantile(fits, [0.025, 0.975]))


def oracle(b: np.ndarray, pool: Float[np.ndarray, "pool b"], k: int) -> float:
    """Upper over lower end of the interval that knows the covariance of log N over seeds."""
    fit, bent = fit_law(b, geometric_mean(pool))
    design = slopes(b, float(fit.b_c), float(fit.q))[: 2 if bent else 1]
    design = design - design.mean(1, keepdims=True)
    answer = np.linalg.pinv(design @ design.T)[0] @ design
    return math.exp(2 * 1.96 * math.sqrt(answer @ np.cov(np.log(pool).T) @ answer / k))


def measure(
    pool: Float[np.ndarray, "pool b"],
    late: Float[np.ndarray, "pool b"],
    least: Float[np.ndarray, "pool b"],
    shared: Float[np.ndarray, "pool b"],
    exact: Float[np.ndarray, "pool b"],
    draws: int,
) -> list[str]:
    """A row of the table for each number of seeds."""
    everything = geometric_mean(exact)
    plain = float(fit_saturation(SIZES, everything).b_c)
    bent = float(fit_saturation(SIZES, everything, fit_bend(SIZES, everything)).b_c)
    generator, rows = np.random.default_rng(0), []
    for k in SEEDS:
        held, widths, resampled, chosen = [], [], [], []
        for _ in range(draws):
            seeds = generator.choice(len(pool), k, replace=False)
            columns = zip(pool[seeds].T, late[seeds].T, least[seeds].T, strict=True)
            values = np.array([in_time(*one) for one in columns]).T
            found = critical_batch(SIZES, values, "N", shared[seeds].mean(0))
            if math.isnan(found.value):
                continue
            held.append(found.low <= (plain if found.q == 1 else bent) <= found.high)
            widths.append(found.high / found.low if found.low else math.inf)
            chosen.append(found.q != 1)
            if len(resampled) < 300 and k > 1:
                low, high = bootstrap(SIZES, pool[seeds], generator)
                resampled.append(low <= plain <= high)
        said = f"{100 * np.mean(held):.1f} % | {np.median(widths):.3g} | {oracle(SIZES, pool, k):.3g}"
        old = f"{100 * np.mean(resampled):.0f} %" if resampled else "-"
        rows.append(f"{k} | {said} | {old} | {100 * np.mean(chosen):.0f} % | {100 * (1 - len(held) / draws):.1f} %")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--pool", type=int, default=1000, help="seeds from which draws are made [1000]")
    parser.add_argument("--spectra", nargs="+", default=list(SPECTRA), choices=list(SPECTRA))
    parser.add_argument("--policies", nargs="+", default=["theory", "tuned"])
    options = parser.parse_args()
    print(
        "| spectrum | policy | b_c, q of all seeds | seeds | coverage | width | oracle | resampled | bent | refused |"
    )
    print("| --- | --- | " + "---: | " * 8)
    for name in options.spectra:
        generator = np.random.default_rng(0)
        scale = np.sqrt(SPECTRA[name](np.arange(1.0, D + 1)))
        x = generator.standard_normal((N, D)) * scale
        for policy in options.policies:
            made = steps(x, policy, options.pool)
            kept = np.isfinite(made[0]).all(1) & np.isfinite(made[-1]).all(1)
            pool, late, least, shared, exact = (one[kept] for one in made)
            whole, _ = fit_law(SIZES, geometric_mean(exact))
            for row in measure(pool, late, least, shared, exact, options.draws):
                print(f"| {name} | {policy} | {float(whole.b_c):.3g}, {float(whole.q):.3g} | {row} |", flush=True)


if __name__ == "__main__":
    main()
