"""Statistics of earlier runs without a certificate: they are computed again, and trials made from wrong ones run again.

If gamma and k_op were wrong, a cell whose stepsize was computed from them is another trial: its rows are set aside, and
it runs again. All other cells stay, such as those with `fixed` and `grid` stepsizes; the statistics in their rows are
updated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from raysat.ntk import NTKStatistics
from raysat.saturation.formulas import beta
from raysat.saturation.recursion import stable_below
from raysat.spec.cells import Cell
from raysat.spec.labels import beyond_theory
from raysat.spec.stepsizes import OF_STATISTICS
from raysat.spec.training import PLAIN
from raysat.storage.initial import INHERITED
from raysat.storage.rows import Row, none_if_nan, statistics_columns
from raysat.storage.schema import FAILED, FINISHED, REFUSED
from raysat.text import number

AGREEMENT = 5.0
"""The largest difference of old and new gamma or k_op that counts as agreement, in units of the relative residual at
which k_op stopped. Default: 5; the error of an eigenvalue is of the order of the residual's square, and rarely as large
as the residual."""

CERTIFICATES = tuple({"gamma_check", "k_op_check"} & set(NTKStatistics.__dataclass_fields__))
"""The columns that certified statistics have."""

_VALUES = ("gamma", "k_op", "base_stepsize")


def is_certified(row: Mapping[str, Any]) -> bool:
    """Return whether a row of `ntk` identifies its w_0 and, if it has statistics, has certificates."""
    names = ("w0_digest",) if row["method"] in (REFUSED, FAILED) else ("w0_digest", *CERTIFICATES)
    return not any(_missing(row.get(name)) for name in names)


def to_compute(known: Mapping[str, Row], cells: Iterable[Cell], finished: Iterable[str]) -> dict[str, Row]:
    """Return the rows of `ntk` that are to be computed again, by init_id.

    These are rows without certificates, and rows that an error ended if unfinished cells can use them.

    Args:
        known: The stored rows, by init_id.
        cells: The requested cells.
        finished: The finished ones, by cell_id.
    """
    wanted = {cell.init.init_id for cell in cells}
    waiting = {cell.init.init_id for cell in cells if cell.cell_id not in set(finished)}
    return {
        key: row
        for key, row in known.items()
        if key in wanted and (not is_certified(row) or (row["method"] == FAILED and key in waiting))
    }


@dataclass(frozen=True)
class Consequences:
    """The consequences of new statistics for the trials of their initialization.

    Attributes:
        again: The cells that run again, by cell_id.
        rows: The new statistics columns of the other cells' rows, by cell_id.
        line: The message about it; empty if old and new agree.
    """

    again: frozenset[str]
    rows: dict[str, Row]
    line: str = ""

    @classmethod
    def of(cls, before: Row, now: Row, trials: pd.DataFrame, k_tolerance: float) -> Consequences:
        """Compare the stored row of `ntk` with the new one.

        Args:
            before: The stored row.
            now: The new row.
            trials: The rows of `trials` of this initialization.
            k_tolerance: The requested relative residual of k_op.
        """
        residuals: list[Any] = [row.get("k_op_residual") for row in (before, now)]
        tolerance = AGREEMENT * max([k_tolerance, *(float(one) for one in residuals if not _missing(one))])
        agree = all(_agree(before.get(name), now.get(name), tolerance) for name in _VALUES)
        made = trials["stepsize"].str.startswith(OF_STATISTICS) & trials["status"].isin(FINISHED)
        again = frozenset() if agree else frozenset(trials.loc[made, "cell_id"])
        stay = trials[~trials["cell_id"].isin(again)].to_dict("records")
        return cls(again, {row["cell_id"]: _brought_up(row, now) for row in stay}, "" if agree else _line(before, now))


def _line(before: Row, now: Row) -> str:
    """Return the differences, in words."""
    (gamma, k_op), (new_gamma, new_k_op) = (
        ["none" if _missing(row.get(name)) else number(float(row[name])) for name in ("gamma", "k_op")]
        for row in (before, now)
    )
    name = f"{now['dataset']}, {now['model']}, width {now['width']}, seed {now['seed']}"
    return f"{name}: an earlier run stored gamma {gamma} and k_op {k_op}; they are {new_gamma} and {new_k_op}"


def _agree(before: Any, now: Any, tolerance: float) -> bool:
    if _missing(before) or _missing(now):
        return _missing(before) and _missing(now)
    return abs(float(before) - float(now)) <= tolerance * abs(float(now))


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _brought_up(trial: Mapping, statistics: Row) -> Row:
    """Return the new statistics columns of a trial's row; its loss at w_0 stays."""
    row = {name: None for name in INHERITED} | statistics_columns(statistics)
    del row["loss_init"]
    made = dict.fromkeys(("beta", "eta_beta", "eta_limit"))
    if not _missing(statistics.get("gamma")):
        b, n, eta = int(trial["batch_size"]), int(trial["n"]), trial["eta"]
        replacement = trial["sampling"] == "with_replacement"
        made["beta"] = beta(b, n, statistics["gamma"], statistics["k_op"], replacement=replacement)
        if not _missing(eta):
            made["eta_beta"] = float(eta) * made["beta"]
        if not beyond_theory(trial["training"] or PLAIN.label):
            made["eta_limit"] = none_if_nan(stable_below(statistics, b, trial["sampling"]))
    return row | made
