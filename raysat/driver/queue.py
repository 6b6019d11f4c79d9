"""The order in which a sweep's cells run, and further cells as results arrive.

Those that take longest go first, so that all processes end together. Under a time budget the cheapest go first: when
the time is up, small batch sizes then have all their seeds and stepsizes, and determine b_N as far as they reach.

Of trials that race (`raysat.spec.race`) one runs at a time, as long as there are others for every process: its
iterations limit the next one. The first is the most promising one: the stepsize nearest to the best known one of the
nearest batch size, of the same seed or another; the middle one if none is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from raysat.driver.adaptive import Group
from raysat.driver.stepsizes import TrialResult, TrialResults
from raysat.spec.cells import Cell
from raysat.spec.race import Arrival, Limits
from raysat.spec.sweep import Sweep

Race = tuple[int, int, int]
"""The index of a group, a batch size and a seed: the cells of a race differ in stepsize alone."""


def groups(sweep: Sweep, cells: Sequence[Cell], weight: Callable[[Cell], float]) -> list[Group]:
    """Return the groups of a sweep's cells.

    Args:
        sweep: The sweep.
        cells: Its cells.
        weight: The cost of a cell, in any unit.
    """
    auto = any(stepsize.policy == "grid_auto" for stepsize in sweep.stepsizes)
    goal = None if sweep.goal is None else sweep.goal.eps
    levels = [one.eps for one in sweep.measured if one.metric == sweep.metric]
    target = min((level for level in levels if level >= (goal or 0)), default=goal)
    members: dict[tuple, dict[int, list[Cell]]] = {}
    for cell in sorted(cells, key=lambda cell: cell.batch_size):
        key = _without_seed(cell).init, cell.stepsize.label, cell.training
        members.setdefault(key, {}).setdefault(cell.batch_size, []).append(cell)
    return [
        Group(
            name=f"{init.model.label} width {init.width}, {label}{training.suffix}",
            cells=by_size,
            tuned=label.startswith("grid"),
            auto=auto and label == "grid_relative",
            adaptive=sweep.adaptive,
            target=target,
            ratio=sweep.interval_ratio,
            weight=weight,
            goal=goal if sweep.races and label.startswith("grid") else None,
            metric=sweep.metric,
        )
        for (init, label, training), by_size in members.items()
    ]


class CellQueue:
    """Hands out the requested cells, those that take longest first, and asks for more as results arrive.

    Args:
        groups: The groups that propose cells.
        weight: The cost of a cell.
        results: The results of earlier runs.
        cheapest_first: Whether the order is reversed.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        weight: Callable[[Cell], float],
        results: TrialResults,
        *,
        cheapest_first: bool = False,
    ) -> None:
        self.groups, self.weight, self.sign = groups, weight, -1 if cheapest_first else 1
        self.results = dict(results)
        self.weights: dict[str, float] = {}
        """The cost of every cell requested in this run, by cell_id."""
        self.requested: list[Cell] = []
        """All cells that are requested given the results, finished or not."""
        self.running: set[str] = set()
        self.stop_reasons: tuple[str, ...] = ()
        self._queue: dict[str, Cell] = {}  # by cell_id; the last is run first
        self._race: dict[str, Race] = {}  # the race of each cell, by cell_id
        self._cells: dict[Race, list[Cell]] = {}
        self._growing = any(group.auto and group.races for group in groups)
        self._looked_ahead = False
        self._propose()

    def _propose(self, *, ahead: bool = False) -> None:
        """Ask the groups for their cells, and rebuild the queue."""
        proposals = [group.propose(self.results, ahead=ahead) for group in self.groups]
        self.stop_reasons = tuple(reason for proposal in proposals for reason in proposal.stop_reasons)
        self.requested = [cell for proposal in proposals for cell in proposal.cells]
        for cell_id in self._queue:
            del self.weights[cell_id]
        new = [cell for cell in self.requested if self._is_new(cell)]
        new.sort(key=lambda cell: self.sign * self.weight(cell))
        self.weights |= {cell.cell_id: self.weight(cell) for cell in new}
        self._queue = {cell.cell_id: cell for cell in new}
        self._cells = {}
        for place, proposal in enumerate(proposals):
            for cell in proposal.cells:
                self._race[cell.cell_id] = race = place, cell.batch_size, cell.init.seed
                self._cells.setdefault(race, []).append(cell)
        self._stale = False

    def _is_new(self, cell: Cell) -> bool:
        return cell.cell_id not in self.results and cell.cell_id not in self.weights

    def next(self, ready: Callable[[Cell], bool] = lambda cell: True) -> Cell | None:
        """Return a cell to run, among those that are ready; None if there is none now."""
        if self._stale and (self._growing or not self._queue):
            self._propose()
        if not self._queue and self._growing and not self._looked_ahead:
            self._propose(ahead=True)
            self._looked_ahead = True
        busy, chosen = {self._race[cell_id] for cell_id in self.running}, None
        for cell in filter(ready, reversed(self._queue.values())):
            if not (self._races(cell) and self._race[cell.cell_id] in busy):
                chosen = cell
                break
            chosen = chosen or cell
        return self._take(self._hoped_for(chosen, ready)) if chosen else None

    def _races(self, cell: Cell) -> bool:
        return self.groups[self._race[cell.cell_id][0]].races

    def _take(self, cell: Cell) -> Cell:
        del self._queue[cell.cell_id]
        self.running.add(cell.cell_id)
        return cell

    def _hoped_for(self, cell: Cell, ready: Callable[[Cell], bool]) -> Cell:
        """Return the cell of a cell's race to run next; the cell itself if it does not race."""
        if not self._races(cell):
            return cell
        race = self._race[cell.cell_id]
        waiting = [one for one in self._cells[race] if one.cell_id in self._queue and ready(one)]
        if self.groups[race[0]].auto:  # `next_in_race` lists the most promising one first
            return waiting[0]
        waiting.sort(key=lambda one: one.stepsize.value, reverse=True)  # on a tie, the larger one
        hoped = next(self._best_near(race), waiting[len(waiting) // 2].stepsize.value)
        return min(waiting, key=lambda one: abs(math.log(one.stepsize.value / hoped)))

    def _best_near(self, race: Race) -> Iterator[float]:
        """Yield the known best stepsizes of a group, those of the nearest batch sizes first."""
        group, b, seed = race
        same = [other for other in self._cells if other[0] == group]
        for other in sorted(same, key=lambda other: (abs(math.log(other[1] / b)), other[2] != seed)):
            if arrived := self._arrived(other):
                yield min(arrived, key=lambda one: one[0].steps)[1].stepsize.value

    def limits(self, cell: Cell) -> Limits:
        """Return the iterations within which a cell can be the best of its race, given the ended ones."""
        return Limits.after(arrival for arrival, _ in self._arrived(self._race[cell.cell_id]))

    def _arrived(self, race: Race) -> list[tuple[Arrival, Cell]]:
        """Return the arrivals of a race, with their cells."""
        if (goal := self.groups[race[0]].goal) is None:
            return []
        ended = [(self.results[cell.cell_id], cell) for cell in self._cells[race] if cell.cell_id in self.results]
        return [(arrival, cell) for found, cell in ended for arrival in found.arrivals(goal)]

    @property
    def waiting(self) -> int:
        """The number of waiting cells, as far as is known."""
        return len(self._queue)

    def seeds_of(self, cell: Cell, most: int, ready: Callable[[Cell], bool] = lambda cell: True) -> list[Cell]:
        """Return up to `most` waiting and ready cells that differ from a cell in their seed alone."""
        same, (group, b, _) = _without_seed(cell), self._race[cell.cell_id]
        alike = [one for race, cells in self._cells.items() if race[:2] == (group, b) for one in cells]
        found = [one for one in alike if one.cell_id in self._queue and _without_seed(one) == same and ready(one)]
        return [self._take(one) for one in found[:most]]

    def add_result(self, cell_id: str, result: TrialResult) -> None:
        """Add the result of a cell."""
        self.running.discard(cell_id)
        self.results[cell_id] = result
        self._stale, self._looked_ahead = True, False

    def forget(self, cell_ids: Iterable[str]) -> None:
        """Remove the results of some cells: they run again if they are still requested."""
        for cell_id in cell_ids:
            if self.results.pop(cell_id, None) is not None:  # else it is waiting already
                self.weights.pop(cell_id, None)
        self._stale = True


def _without_seed(cell: Cell) -> Cell:
    return replace(cell, init=replace(cell.init, seed=0))
