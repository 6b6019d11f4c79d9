"""The critical batch along training, from the branches of a run (`raysat.spec.branches`).

Let L_k be the training loss at the end of the window, when a branch with batches of k b has taken as many samples from
iteration t on as one with batches of b. The *excess* of k is the mean over draws of log L_k - log L_1, both of the same
draw of the samples. With tolerance e,

    b_crit(t) = the largest k b such that k and all smaller factors have an excess of at most log(1 + e),

after the local critical batch of Merrill et al. (2025, arXiv 2505.23971). Logarithms, because the scatter of losses is
multiplicative. The interval of an excess is Student's over the draws. The ends of b_crit's interval are the same
search with the upper and with the lower end of each excess: 95 % at each k, not for all at once. It has no width where
all excesses are told apart from the tolerance, because b_crit is one of the batches that were run.

The *warm-up* of the batch size that follows it takes at each t the smallest b_crit(t) of all seeds, and never less than
before (`warm_up`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from raysat.analysis.words import bounds, number
from raysat.saturation.intervals import logarithms, student_t
from raysat.spec.phases import Schedule, as_schedule, branch_in, without_phases
from raysat.storage.schema import DIVERGED, FAILED

RUN = ("init_id", "model", "width", "seed", "batch_size", "stepsize", "eta", "sampling", "precision", "rule")
"""The columns that identify a run with a rule by which settings follow the batch: `rule` is its branches' training."""

ALIKE = tuple(name for name in RUN if name not in ("init_id", "seed", "eta"))
"""The columns that runs share which differ in their seed."""

EXCESSES = (*RUN, "iteration", "window", "factor", "excess", "low", "high", "draws")
BRANCHES = (*RUN, "iteration", "window", "b_crit", "low", "high", "draws", "noise_scale", "b_star", "reason")


def excesses(trials: pd.DataFrame) -> pd.DataFrame:
    """The excess of each factor: rows of `EXCESSES`, with its 95 % interval; infinite if a draw diverged.

    Args:
        trials: The `trials` table.
    """
    phases = (
        trials["training"].fillna("sgd").map(branch_in)
    )  # an earlier raysat did not store the training of plain SGD
    found = [(cell, phase) for cell, phase in enumerate(phases) if phase]
    own = trials.iloc[[cell for cell, _ in found]]
    own = own.assign(**{name: [getattr(phase, name) for _, phase in found] for name in ("factor", "draw")})
    own = own.assign(iteration=[phase.start for _, phase in found], rule=own["training"].map(without_phases))
    own = own.assign(window=(own["iterations"] - own["iteration"]) * own["factor"] * own["batch_size"])
    own = own[own["status"] != FAILED]
    losses = own["loss_final"].astype(float).mask(own["status"] == DIVERGED, math.inf)
    own = own.assign(log=np.where(np.isinf(losses), losses, logarithms(losses.to_numpy())))
    rows = []
    for key, group in own.groupby([*RUN, "iteration", "window"], dropna=False):
        logs = group.pivot(index="draw", columns="factor", values="log")
        if 1 not in logs:
            continue
        for k in map(int, logs.columns):
            difference = (logs[k] - logs[1] if k > 1 else 0 * logs[1]).dropna().to_numpy()
            rows.append((*key, k, *_mean(difference), len(difference)))
    return pd.DataFrame(rows, columns=list(EXCESSES))


def _mean(values: np.ndarray) -> tuple[float, float, float]:
    """The mean with the ends of its 95 % interval, which are nan for one value."""
    if np.isinf(values).any():
        return math.inf, math.inf, math.inf
    count, mean = len(values), float(values.mean()) if len(values) else math.nan
    half = student_t(count - 1) * float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return mean, mean - half, mean + half


def branches(trials: pd.DataFrame, tolerance: float, ntk: pd.DataFrame | None = None) -> pd.DataFrame:
    """The critical batch of each run at each iteration at which it branches: rows of `BRANCHES`.

    `b_crit`, `low` and `high` are in samples; `high` is infinite if the largest factor run may be within the tolerance.
    `window` is the samples that branches take, `noise_scale` and `b_star` are those of `ntk` at the same iteration,
    which for t > 0 `ntk_at` must name, and `reason` is a reservation in words.

    Args:
        trials: The `trials` table.
        tolerance: The fraction of the loss that a batch may lose (`raysat.spec.branches.Branches.tolerance`).
        ntk: The `ntk` table. Default: without statistics.
    """
    rows = []
    for key, group in excesses(trials).groupby([*RUN, "iteration", "window"], dropna=False):
        group, about = group.sort_values("factor"), dict(zip((*RUN, "iteration", "window"), key, strict=True))
        sizes, limit = group["factor"].to_numpy() * about["batch_size"], math.log1p(tolerance)
        value, low, high = (_last_within(sizes, group[end].to_numpy(), limit) for end in ("excess", "high", "low"))
        several, reason = (group["draws"] > 1).all(), ""
        if value == sizes[-1]:
            reason = f"no batch run, up to {sizes[-1]}, loses more than the tolerance"
        ends = {"low": low, "high": math.inf if high == sizes[-1] else high} if several else {}
        row = {"b_crit": value, "low": math.nan, "high": math.nan} | ends
        rows.append(about | row | {"draws": group["draws"].min(), "reason": reason} | _statistics(about, trials, ntk))
    return pd.DataFrame(rows, columns=list(BRANCHES))


def _last_within(sizes: np.ndarray, excess: np.ndarray, limit: float) -> float:
    """The largest size up to which no excess is above the limit; the first is that of k = 1, which has none."""
    beyond = excess > limit
    return float(sizes[beyond.argmax() - 1] if beyond.any() else sizes[-1])


def _statistics(about: dict, trials: pd.DataFrame, ntk: pd.DataFrame | None) -> dict[str, float]:
    """The noise scale and b_star of a run at an iteration, nan if they were not computed there."""
    if ntk is None:
        return {}
    same = ntk[(ntk["init_id"] == about["init_id"]) & (ntk["iteration"] == about["iteration"])]
    if about["iteration"] > 0:
        alike = [name for name in RUN if name != "rule"]
        own = trials[(trials[alike] == pd.Series({name: about[name] for name in alike})).all(axis=1)]
        own = own[own["training"].fillna("sgd").isin(set(_runs(about["rule"])))]
        same = same[same["cell_id"].isin(own["cell_id"])]
    return {name: float(same[name].iloc[0]) for name in ("noise_scale", "b_star") if len(same) and name in same}


def _runs(rule: str) -> Iterator[str]:
    """The labels of the trainings whose branches have a rule: with it, or with none of their own."""
    yield rule
    yield ", ".join(part for part in rule.split(", ") if " scaling from " not in part) or "sgd"


def warm_up(own: pd.DataFrame) -> Schedule:
    """Return the batch schedule that follows the critical batch of runs that differ in their seed.

    Args:
        own: Rows of `branches` with the same `ALIKE` and window.
    """
    smallest = own.groupby("iteration")["b_crit"].min().cummax()
    factors = (smallest / own["batch_size"].iloc[0]).astype(int)
    return as_schedule(list(zip(map(int, factors.index), factors.tolist(), strict=True)))


def warm_ups(table: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, Schedule]]:
    """Yield the rows of `branches` that differ in their seed and t alone, and the warm-up of these runs."""
    for _, own in table.groupby([*ALIKE, "window"], dropna=False, sort=False):
        yield own, warm_up(own)


def sentences(table: pd.DataFrame) -> list[str]:
    """Say how the critical batch changes along training, and which batch schedule follows it.

    Args:
        table: Rows of `branches`.
    """
    said = []
    for own, schedule in warm_ups(table):
        run, count = own.iloc[0], own["seed"].nunique()
        smallest = own.groupby("iteration")[["b_crit", "low", "high"]].min()
        each = (
            " ".join(filter(None, [number(b_crit), bounds(low, high), f"at t = {t}"]))
            for t, b_crit, low, high in smallest.itertuples(name=None)
        )
        width = f" at width {run['width']}" if run["width"] else ""
        follows = f"batch_schedule={tuple((phase.start, phase.factor) for phase in schedule)!r} follows it."
        said.append(
            f"Along training from b = {run['batch_size']} ({run['model']}{width}, {run['stepsize']}, {run['rule']}, "
            f"windows of {number(run['window'])} samples) the critical batch is {', '.join(each)}"
            f"{f', the smallest of {count} seeds' if count > 1 else ''}. "
            f"{follows if schedule else 'No larger batch is worth its samples.'}"
        )
    return said
