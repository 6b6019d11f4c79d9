"""The trials that are measured together: groups, and the readings of a group.

A critical batch size is measured in a *group*: all trials that differ only in batch size, seed and, under a grid,
stepsize. In a grid the best stepsize of each (seed, batch size) counts, in two *readings*: `free`, among all stepsizes,
and `stable`, among those below `eta_limit`, up to which SGD on the linearized network is stable. The theory makes a
statement about the second only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from raysat.spec.phases import branch_in
from raysat.storage.schema import MEASURED

SETTING = (
    *("dataset", "preprocessing", "n", "model", "model_options", "depth", "activation", "loss", "dtype", "sampling"),
    *("iterations", "iterations_least", "training"),
)
"""The columns of `trials` that all rows of a table or figure share; `comparable` adds `iterations_least`."""

GROUP = (*SETTING, "width", "stepsize")
READING = (*GROUP, "tuning")
"""The columns that identify a fit: those of a group, and how its stepsize was tuned: empty, `free` or `stable`."""

ANSWER = (*SETTING, "metric")
"""The columns that the rows of one answer share: each metric that has targets has its own."""

EVIDENCE = ("grid", "grid_relative", "theory", "fixed_fraction", "fixed")
"""Stepsize policies, the best evidence for a critical batch size first: tuned stepsizes show what each batch size can
do, `theory` makes N(b) follow beta(b), and one stepsize for all b hides saturation."""


Paths = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""A falling metric (`raysat.spec.goals`), such as the loss, along each trial, by cell_id: iterations, ascending from 0,
and its value at each."""


def policy(label: str) -> str:
    """The policy in a stepsize's label: `theory` for `theory(1)`."""
    return label.split("(")[0]


def comparable(trials: pd.DataFrame) -> pd.DataFrame:
    """Give all trials of a setting the same T: under a budget of samples, for which T falls with b, the largest.

    Branches of runs are left out (`raysat.analysis.branches`). The new column `iterations_least` has the smallest.
    Tables without the columns `training` and `budget` are of plain SGD under a budget of iterations.
    """
    # old tables get the columns that they lack, with missing values
    trials = trials.reindex(columns=list(dict.fromkeys([*trials.columns, "training", "budget"])))
    trials = trials.assign(training=trials["training"].fillna("sgd"))
    trials = trials[trials["training"].map(branch_in).isna()]
    by_samples = trials["budget"].fillna("iterations").str.endswith(("samples", "epochs"))
    same = [name for name in SETTING if not name.startswith("iterations")]
    of_setting, own = trials.groupby(same, dropna=False)["iterations"], trials["iterations"]
    ends = {"iterations": of_setting.transform("max"), "iterations_least": of_setting.transform("min")}
    return trials.assign(**{name: own.where(~by_samples, end) for name, end in ends.items()})


def readings(group: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the readings of a group: one, or two for a grid; a new column `tuning` has the name.

    The new column `bounded` (of the stable reading only): a stepsize at or above `eta_limit` was also tried at this
    seed and batch size, so the largest stable one is not an edge of the grid.
    """
    if not policy(group["stepsize"].iloc[0]).startswith("grid"):
        yield group.assign(tuning="", bounded=False)
        return
    yield group.assign(tuning="free", bounded=False)
    beyond = group["eta"] >= group["eta_limit"]  # false for a failed trial, whose eta is not known
    if group["eta_limit"].notna().any() and not beyond.all():
        bounded = beyond.groupby([group["seed"], group["batch_size"]]).transform("any")
        yield group.assign(tuning="stable", bounded=bounded)[~beyond]


def python_strings(table: pd.DataFrame) -> pd.DataFrame:
    """A table with Python strings: each column of Arrow strings is a block, and to select rows takes time for each."""
    return table.astype({name: object for name, kind in table.dtypes.items() if isinstance(kind, pd.StringDtype)})


def best_of(trials: pd.DataFrame, score: str) -> pd.DataFrame:
    """Select the trial with the smallest score for each (seed, batch size): the best of several stepsizes."""
    # only the columns that are needed are sorted: tables of trials are wide
    ranked = trials[[score, "eta"]].reset_index(drop=True).sort_values([score, "eta"], na_position="last").index
    later = trials[["seed", "batch_size"]].iloc[ranked].duplicated().to_numpy()
    return trials.iloc[ranked[~later]]


def by_h(trials: pd.DataFrame) -> pd.Series:
    """A score for `best_of`: the largest h first, and before it trials whose loss vanished, which have no h."""
    return (-trials["h"]).mask(vanished(trials), -math.inf)


def vanished(trials: pd.DataFrame) -> pd.Series:
    """Return which trials ended at a loss of exactly 0, as a hinge loss does on data that are separated."""
    return trials["status"].isin(MEASURED) & (trials["loss_final"] == 0)


def usable(trials: pd.DataFrame) -> pd.DataFrame:
    """Select the trials that can be measured: neither diverged nor failed."""
    return trials[trials["status"].isin(MEASURED)]


def devices(trials: pd.DataFrame) -> pd.Series:
    """Devices of each trial: its GPUs or fraction of one, or its threads if it had none."""
    gpus = trials["gpus"].astype(float)
    return gpus.where(gpus > 0, trials["threads"].astype(float))


def by_evidence(rows: pd.DataFrame) -> pd.DataFrame:
    """Sort rows that identify readings, the best evidence first: by policy, then the largest width, then `free`.

    The largest width comes first because the theory is one of wide networks.
    """
    policies = [policy(label) for label in rows["stepsize"]]
    # 99: any other policy comes last
    rank = [EVIDENCE.index(one) if one in EVIDENCE else 99 for one in policies]
    # "free" sorts before "stable"
    order = pd.DataFrame({"rank": rank, "narrow": -rows["width"], "tuning": rows["tuning"]})
    return rows.loc[order.sort_values(["rank", "narrow", "tuning"], kind="stable").index]
