"""Human-readable text on how the statistics of a network were computed, and to what network they apply."""

from __future__ import annotations

from collections.abc import Mapping

WAYS = {
    "gram": "layer rules",
    "jacobian": "per-sample Jacobians",
    "iteration": "products with each sample's own kernel",
    "plain": "one sample at a time, in reverse mode",
}
"""Text for each value of the column `method` of `ntk`, how per-sample quantities were computed."""


def approximations(row: Mapping) -> list[str]:
    """Return a note on each way in which the statistics, by their columns, are not those of the network as it trains.

    Example:
        >>> approximations({"off": "drop", "frozen_norms": "", "dtype": "float32"})
        ['statistics with random layers turned off: drop']
    """
    norms, off, computed = (_text(row.get(name)) for name in ("frozen_norms", "off", "statistics_dtype"))
    said = []
    if norms:
        said.append(f"statistics with the batch statistics of the training set held constant: {_few(norms)}")
    if off:
        said.append(f"statistics with random layers turned off: {_few(off)}")
    if computed and computed != row.get("dtype"):
        said.append(f"statistics in {computed} of {row.get('dtype')} weights")
    return said


def _text(value: object) -> str:
    # A missing value is None, or NaN in a table read by pandas.
    return value if isinstance(value, str) else ""


def _few(names: str, most: int = 3) -> str:
    """Return the first of many names: `a, b, c and 27 more`."""
    several = [name.strip() for name in names.split(",")]
    more = len(several) - most
    return ", ".join(several[:most]) + (f" and {more} more" if more > 0 else "")
