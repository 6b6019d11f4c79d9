"""Linear least squares with everything in closed form: the setting of Theorem 3.2."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from raysat.errors import InputError


@dataclass(frozen=True, eq=False)
class LinearProblem:
    """`f_i(w) = x_i^T w` with targets that w_bar interpolates, and the constants of Theorem 3.2.

    Attributes:
        x: Features, [n, d]: `x = sqrt(n) Q diag(sqrt(spectrum))` with orthonormal columns of Q.
        y: Targets `x w_bar`, [n].
        w_bar: The solution of least squares, [d].
        spectrum: Eigenvalues of `(1/n) x^T x`, [d], the largest first: `spectrum[j-1] = j^-power`.
        gamma: `max_i ||x_i||^2`, with which eq. 3.1 holds.
        k_op: `(1/n) ||x||_op^2 = spectrum[0] = 1`.
    """

    x: Float64[np.ndarray, "n d"]
    y: Float64[np.ndarray, " n"]
    w_bar: Float64[np.ndarray, " d"]
    spectrum: Float64[np.ndarray, " d"]
    gamma: float
    k_op: float


def linear_problem(n: int = 256, d: int = 64, power: float = 1.0, seed: int = 0) -> LinearProblem:
    """A linear problem whose empirical covariance has an exact power-law spectrum.

    Args:
        n: Samples, at least d. Default: 256, small enough for dense float64 linear algebra.
        d: Features. Default: 64, so that w_bar is the only solution of four times as many equations.
        power: Decay of the spectrum, at least 0. Default: 1, between a flat one (gamma/k_op near d) and a steep one
            (gamma/k_op near 1).
        seed: Draws Q (the QR factor of a Gaussian matrix) and `w_bar ~ N(0, I)`.

    Raises:
        InputError: `n >= d >= 1`, `power >= 0` or `seed >= 0` does not hold.

    Example:
        >>> problem = linear_problem(n=64, d=16)
        >>> problem.x.shape, problem.y.shape, problem.k_op
        ((64, 16), (64,), 1.0)
    """
    if not n >= d >= 1:
        raise InputError(f"linear has n={n} and d={d}: give at least one feature, and no more features than samples.")
    if not 0 <= power < math.inf:
        raise InputError(f"linear has power={power}: give a finite number of at least 0.")
    if seed < 0:
        raise InputError(f"linear has seed={seed}: give a whole number of at least 0.")
    draw = np.random.Generator(np.random.Philox(key=seed)).standard_normal
    orthonormal = np.linalg.qr(draw((n, d))).Q
    spectrum = np.arange(1, d + 1, dtype=np.float64) ** -power
    x = math.sqrt(n) * orthonormal * np.sqrt(spectrum)
    w_bar = draw(d)
    gamma = float((x**2).sum(1).max())
    return LinearProblem(x=x, y=x @ w_bar, w_bar=w_bar, spectrum=spectrum, gamma=gamma, k_op=float(spectrum[0]))
