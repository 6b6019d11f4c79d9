"""The limit of wide networks (Theorem 4.2): spread of b_star, drift of the kernel, error of the linearization.

By Theorem 4.2 the Hessian of a wide network is of order 1/sqrt(width), so that K hardly moves and the network trains
like its linearization.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from raysat.text import number, percent

COLUMNS = (
    *("width", "seeds", "b_star", "b_star_min", "b_star_max"),
    *("drift", "drift_min", "drift_max", "drift_iteration", "h_error", "h_error_max"),
)
"""The columns of `by_width`: means over seeds and batch sizes, and the ends of their ranges."""


def by_width(trials: pd.DataFrame, ntk: pd.DataFrame) -> pd.DataFrame:
    """Make one row a width, for the networks of a sweep that differ in width alone; none if there is no comparison.

    `drift` is `||K(w_t) - K(w_0)||_F / ||K(w_0)||_F` at the last of `ntk_at`; `h_error` is `|h / h_lin - 1|`, h_lin the
    exponent of the linearization with the same seed, batch size and stepsize policy.

    Args:
        trials: The `trials` table.
        ntk: The `ntk` table.
    """
    trials = trials.assign(linearized=trials["model_options"].map(_is_linearized).astype(bool))
    networks = trials[~trials["linearized"]]
    drifts = ntk[ntk["kernel_drift"].notna()]
    if networks["width"].nunique() < 2 or not (trials["linearized"].any() or len(drifts)):
        return pd.DataFrame(columns=list(COLUMNS))
    same = ["width", "seed", "batch_size", "stepsize"]
    # seeds agree in weights and batches, so that the pair differs in the linearization alone
    pairs = networks.merge(trials[trials["linearized"]], on=same, suffixes=("", "_lin"))
    pairs["error"] = (pairs["h"] / pairs["h_lin"] - 1).abs()
    rows = []
    for width, group in networks.groupby("width"):
        b_star = group.groupby("seed")["b_star"].first()
        moved = drifts[drifts["width"] == width]
        # the drift grows along training: the last one counts, and the table has its iteration
        last = moved["iteration"].max() if len(moved) else math.nan
        drift = moved.loc[moved["iteration"] == last, "kernel_drift"]
        error = pairs.loc[pairs["width"] == width, "error"].dropna()
        stars, drifted = (_mean_and_range(values) for values in (b_star, drift))
        rows.append((width, len(b_star), *stars, *drifted, last, error.mean(), error.max()))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def sentences(table: pd.DataFrame) -> list[str]:
    """Describe the table: the change of b_star against its spread, and the rate at which the rest falls with width."""
    if table.empty:
        return []
    narrow, wide = (table.iloc[k].to_dict() for k in (0, -1))
    said = [
        f"b_star goes from {number(narrow['b_star'])} at width {narrow['width']:.0f} to {number(wide['b_star'])} at "
        f"width {wide['width']:.0f}; over {wide['seeds']:.0f} seeds it spreads from {_range(narrow)} and from "
        f"{_range(wide)}."
    ] * (_are_known(narrow["b_star"], wide["b_star"]))
    for name, what in (("drift", "The kernel's drift"), ("h_error", "The error of the linearization")):
        if (power := _slope(table["width"], table[name])) is not None:
            first, last = (table[name][_positive(table[name])].iloc[k] for k in (0, -1))
            ends = f"from {percent(first)} to {percent(last)}"
            said.append(f"{what} goes {ends}, like width^{power:.2f} (Theorem 4.2: width^-0.5).")
    return said


def _mean_and_range(values: pd.Series) -> tuple[float, float, float]:
    return values.mean(), values.min(), values.max()


def _range(row: Mapping) -> str:
    return f"{number(row['b_star_min'])} to {number(row['b_star_max'])}"


def _are_known(*values: float) -> bool:
    return all(map(math.isfinite, values))


def _positive(values: pd.Series) -> pd.Series:
    return (values > 0) & np.isfinite(values)


def _slope(width: pd.Series, value: pd.Series) -> float | None:
    """The power of the width that a value follows, by least squares in logarithms; None for fewer than two values."""
    known = _positive(value)
    if known.sum() < 2:
        return None
    # a power law is a line in logarithms, and its exponent the slope
    x, y = np.log(width[known].to_numpy(float)), np.log(value[known].to_numpy(float))
    return float(np.polyfit(x, y, 1)[0])


def _is_linearized(options: str) -> bool:
    try:
        return bool(json.loads(options).get("linearized", False))
    except (TypeError, ValueError, AttributeError):
        return False
