"""The results of earlier runs of a sweep, and those that are outdated by changes since."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from rich.console import Console

from raysat.driver.plan import Plan
from raysat.driver.stepsizes import TrialResult
from raysat.spec.goals import along
from raysat.spec.race import is_beaten
from raysat.spec.sweep import Sweep
from raysat.storage.schema import BEATEN, FINISHED
from raysat.storage.store import Store

RACE = ["init_id", "batch_size", "stepsize", "training"]
"""The columns of `trials` that identify a race: `stepsize` has one name for a whole grid."""


def earlier_results(store: Store, sweep: Sweep) -> dict[str, TrialResult]:
    """Return the results of earlier runs; for a sweep that does not grow with results, only which cells have ended."""
    trials = store.read("trials")
    trials = trials[trials["cell_id"].isin(store.finished())]
    if not (sweep.grows or sweep.races):
        return {
            cell_id: TrialResult(status) for cell_id, status in zip(trials["cell_id"], trials["status"], strict=True)
        }
    curves = dict(iter(store.read("curves").sort_values("iteration").groupby("cell_id")))
    found = {}
    for row in trials.to_dict("records"):
        curve = curves[row["cell_id"]]
        losses = along(sweep.metric, curve[sweep.metric])
        found[row["cell_id"]] = TrialResult.of(row, curve["iteration"].tolist(), losses)
    return found


def no_longer_beaten(store: Store, laid_out: Plan, found: Mapping[str, TrialResult]) -> set[str]:
    """Return the cells that were cut and are no longer known to be worse, by cell_id: they run again, from the start.

    That is so if the sweep does not race now, or if the row of the better cell is missing.

    Args:
        store: The results folder.
        laid_out: The sweep. Cells of other initializations are left unchanged.
        found: The results of earlier runs that count.
    """
    if not any(one.status == BEATEN for one in found.values()):
        return set()
    trials, inits = store.read("trials", ["cell_id", *RACE]), {cell.init for cell in laid_out.cells}
    trials = trials[trials["cell_id"].isin(found) & trials["init_id"].isin([init.init_id for init in inits])]
    cut = {cell_id for cell_id in trials["cell_id"] if found[cell_id].status == BEATEN}
    goal, still = laid_out.sweep.goal, set()
    if not laid_out.sweep.race or goal is None:
        return cut
    for _, race in trials.groupby(RACE):
        own = {cell_id: found[cell_id] for cell_id in race["cell_id"]}
        arrivals = [arrival for one in own.values() for arrival in one.arrivals(goal.eps)]
        still |= {
            cell_id
            for cell_id in cut & set(own)
            if is_beaten(own[cell_id].iterations[-1], own[cell_id].eta_over_limit, arrivals)
        }
    return cut - still


def set_aside_changed(store: Store, laid_out: Plan, console: Console, *, really: bool) -> set[str]:
    """Find the rows that were made with a file of the user's that has changed since, and report them.

    Args:
        store: The results folder.
        laid_out: The sweep.
        console: Where they are reported.
        really: Whether they are set aside, with the checkpoints of unfinished cells.

    Returns:
        The cells that run again, by cell_id.
    """
    if not laid_out.sources or not store.root.exists():
        return set()
    trials, ntk = store.read("trials"), store.read("ntk")
    initial = ntk[ntk["cell_id"].isna()].to_dict("records")
    changed = {row["init_id"]: files for row in initial if (files := laid_out.present.changed(row))}
    cells: dict[str, list[str]] = {}
    for row in trials[trials["status"].isin(FINISHED)].to_dict("records"):
        if files := laid_out.present.changed(row) or changed.get(row["init_id"]):
            cells[row["cell_id"]] = files
    for files, count in Counter(map(tuple, cells.values())).items():
        console.print(
            f"{', '.join(files)} changed since {count} cells had ended: they run again, and their rows are set aside.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if really and (cells or changed):
        store.set_aside(cells, changed)
    return set(cells)
