"""The paper's formulas: from the NTK statistics at initialization to stepsizes and the critical batch size.

Notation: `gamma = max_i lambda_max(J_i J_i^T)` bounds the per-sample Jacobians, `k_op = lambda_max(K)` is the operator
norm of the kernel `K = (1/n) J J^T`. Theorem and equation numbers are those of "SGD batch saturation for training wide
neural networks" (anonymous authors, 2023, https://openreview.net/forum?id=EoJqVH7K96).
"""

from __future__ import annotations

import math

from raysat.spec.stepsizes import Stepsize


def beta(b: int, n: int, gamma: float, k_op: float, *, replacement: bool = False) -> float:
    """The second-moment constant of eq. 2.2, `E_S ||g(w, S)||^2 <= 2 beta L(w)`, for batches of exactly b samples.

    It is Lemma 3.1 with the exact inclusion probabilities. For b distinct samples
    `P(i in S) = b/n` and `P(i, j in S) = b(b-1) / (n(n-1))`, which gives

        beta(b) = gamma/b (1 - (b-1)/(n-1)) + (b-1)n / (b(n-1)) k_op,

    and for b independent draws `gamma/b + (b-1)/b k_op`. Both have `beta(1) = gamma`; without replacement
    `beta(n) = k_op`, the constant of full-batch gradient descent.

    Args:
        b: Batch size, 1 <= b <= n (b may exceed n with replacement).
        n: Number of samples.
        gamma: Largest squared operator norm of a per-sample Jacobian.
        k_op: Operator norm of K.
        replacement: Whether a batch is drawn with replacement.

    Example:
        >>> beta(1, 100, gamma=8.0, k_op=2.0), beta(100, 100, gamma=8.0, k_op=2.0)
        (8.0, 2.0)
    """
    if b < 1 or n < 1 or (b > n and not replacement):
        raise ValueError(f"beta(b={b}, n={n}): b must lie between 1 and n.")
    if replacement or n == 1:
        return gamma / b + (b - 1) / b * k_op
    without = (b - 1) / (n - 1)
    return gamma / b * (1 - without) + (b - 1) * n / (b * (n - 1)) * k_op


def beta_thm33(b: int, gamma: float, k_op: float) -> float:
    """Theorem 3.3's constant `16 gamma / b + 4 k_op`, in the limit of infinite width (L = 0)."""
    return 16 * gamma / b + 4 * k_op


def b_star(gamma: float, k_op: float) -> float:
    """The critical batch size `gamma / k_op` of Theorems 1.1 and 4.2: where the two terms of beta are equal."""
    return gamma / k_op if 0 < k_op < math.inf else math.nan


def b_star_thm33(gamma: float, k_op: float) -> float:
    """The critical batch size `4 gamma / k_op` of Theorem 3.3's constants, with L = 0."""
    return 4 * b_star(gamma, k_op)


def stepsize(
    policy: Stepsize,
    b: int,
    n: int,
    gamma: float,
    k_op: float,
    *,
    replacement: bool = False,
    base: float = math.nan,
) -> float:
    """The stepsize (learning rate) eta that a policy gives to a batch size.

    `fixed` and `grid` give eta itself; `fixed_fraction` is c/beta(1) for every b; `theory` and `grid_relative` are
    c/beta(b). For a network without statistics, `grid_relative`, the policy of `grid(auto=True)`, is `c base` at every
    b: a range that grows with the results only needs a place to start.

    Args:
        policy: The policy.
        b: Batch size.
        n: Number of samples.
        gamma: As in `beta`; nan if there are no statistics.
        k_op: As in `beta`.
        replacement: As in `beta`.
        base: Replaces 1/beta(b) if there are no statistics (`raysat.ntk.base_stepsize`).

    Returns:
        eta; nan if it is c/beta(b) and beta(b) is not positive, as for a network whose outputs do not depend on its
        weights.
    """
    if not policy.needs_statistics:  # `fixed` and `grid`
        return policy.value
    if policy.policy == "grid_relative" and math.isnan(gamma):
        return policy.value * base
    at = 1 if policy.policy == "fixed_fraction" else b
    constant = beta(at, n, gamma, k_op, replacement=replacement)
    return policy.value / constant if constant > 0 else math.nan


def exponent(loss_init: float, loss_final: float, iterations: int) -> float:
    """The convergence exponent `h = log(L(w_0) / L(w_T)) / T`, per iteration (section 5).

    It is nan if a loss is zero or not finite, or if there was no iteration.
    """
    if not (0 < loss_init < math.inf and 0 < loss_final < math.inf and iterations > 0):
        return math.nan
    ratio = loss_init / loss_final
    if not 0 < ratio < math.inf:  # the ratio overflows or underflows, its logarithm does not
        return (math.log(loss_init) - math.log(loss_final)) / iterations
    return math.log(ratio) / iterations


def h_interpolated(b: float, h_one: float, h_full: float) -> float:
    """The paper's predicted exponent (section 5): `1/h = (1/b)(1/h(1)) + ((b-1)/b)(1/h(n))`.

    It is nan unless both exponents are positive and finite.
    """
    if not (0 < h_one < math.inf and 0 < h_full < math.inf):
        return math.nan
    return 1 / ((1 / b) / h_one + (b - 1) / b / h_full)
