"""When the full loss is evaluated."""

from __future__ import annotations


def evaluation_iterations(iterations: int, evaluations: int) -> list[int]:
    """Return about `evaluations` log-spaced iterations in 0..T, with 0 and T; ones equal after rounding count once.

    Args:
        iterations: T.
        evaluations: How many evaluations are wanted after the one at 0; at least 2.

    Example:
        >>> evaluation_iterations(100, 5)
        [0, 1, 3, 10, 32, 100]
    """
    log_spaced = {round(iterations ** (k / (evaluations - 1))) for k in range(evaluations)}
    return sorted({0, iterations} | log_spaced)
