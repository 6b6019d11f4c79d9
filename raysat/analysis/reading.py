"""What is measured together: groups of trials, and the readings of a group.

A *group* is what a critical batch size is measured in: all trials that differ only in batch size, seed and, under a
grid, stepsize. Of a grid the best stepsize of each (seed, batch size) counts, in two readings: `free`, among all
stepsizes, and `stable`, among those below `eta_limit`, up to which SGD on the
linearized network is stable. The theory speaks of the second only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from raysat.storage.schema import MEASURED

SETTING = (
    *("dataset", "preprocessing", "n", "model", "model_options", "depth", "activation", "loss", "dtype", "sampling"),
    *("iterations", "iterations_least", "training"),
)
"""The columns of `trials` that one table or figure has in common; `iterations_least` is of `comparable`."""

GROUP = (*SETTING, "width", "stepsize")
READING = (*GROUP, "tuning")
"""The columns that name one fit: a group, and how its stepsize was tuned: empty, `free` or `stable`."""

EVIDENCE = ("grid", "grid_relative", "theory", "fixed_fraction", "fixed")
"""Stepsize policies, the best evidence for a critical batch size first: tuned stepsizes show what each batch size can
do, `theory` makes N(b) follow beta(b), and one stepsize for all b hides saturation."""


Paths = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""The loss along each trial, by cell_id: iterations, ascending from 0, and the loss at each."""


def policy(label: str) -> str:
    """The policy of a stepsize's label: `theory` of `theory(1)`."""
    return label.split("(")[0]


def comparable(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials under one T a setting: of a budget of samples, whose T falls with b, the largest stands for all.

    The new column `iterations_least` has the smallest. Tables from before there were trainings and budgets are of plain
    SGD under a budget of iterations.
    """
    trials = trials.reindex(columns=list(dict.fromkeys([*trials.columns, "training", "budget"])))
    trials = trials.assign(training=trials["training"].fillna("sgd"))
    by_samples = trials["budget"].fillna("iterations").str.endswith(("samples", "epochs"))
    same = [name for name in SETTING if not name.startswith("iterations")]
    of_setting, own = trials.groupby(same, dropna=False)["iterations"], trials["iterations"]
    ends = {"iterations": of_setting.transform("max"), "iterations_least": of_setting.transform("min")}
    return trials.assign(**{name: own.where(~by_samples, end) for name, end in ends.items()})


def readings(group: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The trials of a group as they are read: once, or of a grid twice; named in a new column `tuning`.

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


def best_of(trials: pd.DataFrame, score: str) -> pd.DataFrame:
    """Of each (seed, batch size) the trial of the smallest score: where stepsizes were tuned, the best one."""
    return trials.sort_values([score, "eta"], na_position="last").drop_duplicates(["seed", "batch_size"])


def by_h(trials: pd.DataFrame) -> pd.Series:
    """A score for `best_of`: the largest h first, and before it trials whose loss vanished, of which h has no value."""
    return (-trials["h"]).mask(vanished(trials), -math.inf)


def vanished(trials: pd.DataFrame) -> pd.Series:
    """Return whether a trial ended at a loss of exactly 0, as a hinge does on data that it separates."""
    return trials["status"].isin(MEASURED) & (trials["loss_final"] == 0)


def usable(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials that are measured: neither diverged nor failed."""
    return trials[trials["status"].isin(MEASURED)]


def devices(trials: pd.DataFrame) -> pd.Series:
    """Devices of each trial: its GPUs, or its share of one, or its threads where it had none."""
    gpus = trials["gpus"].astype(float)
    return gpus.where(gpus > 0, trials["threads"].astype(float))


def by_evidence(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows that name readings, the best evidence first: by policy, of several widths the largest, `free` first.

    The largest width, for the theory is one of wide networks.
    """
    policies = [policy(label) for label in rows["stepsize"]]
    rank = [EVIDENCE.index(one) if one in EVIDENCE else 99 for one in policies]
    order = pd.DataFrame({"rank": rank, "narrow": -rows["width"], "tuning": rows["tuning"]})
    return rows.loc[order.sort_values(["rank", "narrow", "tuning"], kind="stable").index]
