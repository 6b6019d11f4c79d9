"""The order in which a sweep's cells are run, and more of them as findings come in.

Those that take longest go first, so that all processes end together. Under a time budget the cheapest go first: small
batch sizes then have all their seeds and stepsizes when the time is up, and b_N is known as far as they reach.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from raysat.driver.adaptive import Finding, Findings, Group
from raysat.spec.cells import Cell
from raysat.spec.sweep import Sweep


def groups(sweep: Sweep, cells: Sequence[Cell], weight: Callable[[Cell], float]) -> list[Group]:
    """The groups of a sweep's cells.

    Args:
        sweep: The sweep.
        cells: Its cells.
        weight: The cost of a cell, in any unit.
    """
    auto = any(stepsize.policy == "grid_auto" for stepsize in sweep.stepsizes)
    target = min((level for level in sweep.targets if level >= (sweep.target_loss or 0)), default=sweep.target_loss)
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
        )
        for (init, label, training), by_size in members.items()
    ]


class Agenda:
    """Hands out the cells that are wanted, those that take longest first, as findings come in.

    Args:
        groups: What proposes.
        weight: The cost of a cell.
        findings: What earlier runs have found.
        cheapest_first: Whether the order is reversed.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        weight: Callable[[Cell], float],
        findings: Findings,
        *,
        cheapest_first: bool = False,
    ) -> None:
        self.groups, self.weight, self.sign = groups, weight, -1 if cheapest_first else 1
        self.findings = dict(findings)
        self.weights: dict[str, float] = {}
        """The cost of every cell that was wanted since, by cell_id."""
        self.wanted: list[Cell] = []
        """All cells that are wanted, given what was found, finished or not."""
        self.running: set[str] = set()
        self.done: tuple[str, ...] = ()
        self._queue: list[Cell] = []
        self._propose()

    def _propose(self) -> None:
        proposals = [group.propose(self.findings) for group in self.groups]
        self.done = tuple(reason for proposal in proposals for reason in proposal.done)
        self.wanted = [cell for proposal in proposals for cell in proposal.cells]
        new = [cell for cell in self.wanted if self._is_new(cell)]
        new.sort(key=self._rank)
        self.weights |= {cell.cell_id: self.weight(cell) for cell in new}
        self._queue = new
        self._stale = False

    def _rank(self, cell: Cell) -> float:
        """What the queue is sorted by; the last is run first."""
        return self.sign * self.weight(cell)

    def _is_new(self, cell: Cell) -> bool:
        return cell.cell_id not in self.findings and cell.cell_id not in self.weights

    def next(self, ready: Callable[[Cell], bool] = lambda cell: True) -> Cell | None:
        """A cell to run, of those that are ready; None where there is none, or none before something has ended."""
        if not self._queue and self._stale:
            self._propose()
        for k in reversed(range(len(self._queue))):
            if ready(self._queue[k]):
                cell = self._queue.pop(k)
                self.running.add(cell.cell_id)
                return cell
        return None

    @property
    def waiting(self) -> int:
        """How many cells wait, as far as is known."""
        return len(self._queue)

    def seeds_of(self, cell: Cell, most: int, ready: Callable[[Cell], bool] = lambda cell: True) -> list[Cell]:
        """To run with a cell: up to so many of those that wait, are ready, and differ from it in their seed alone."""
        same, rank = _without_seed(cell), self._rank(cell)
        alike = range(bisect_left(self._queue, rank, key=self._rank), bisect_right(self._queue, rank, key=self._rank))
        found = [k for k in reversed(alike) if _without_seed(self._queue[k]) == same and ready(self._queue[k])][:most]
        taken = [self._queue.pop(k) for k in found]
        self.running |= {other.cell_id for other in taken}
        return taken

    def ended(self, cell_id: str, finding: Finding) -> None:
        """Take in what was found."""
        self.running.discard(cell_id)
        self.findings[cell_id] = finding
        self._stale = True

    def forget(self, cell_ids: Iterable[str]) -> None:
        """Take back what was found of some cells: they are to run again, where they are wanted still."""
        for cell_id in cell_ids:
            if self.findings.pop(cell_id, None) is not None:  # else it waits already
                self.weights.pop(cell_id, None)
        self._stale = True


def _without_seed(cell: Cell) -> Cell:
    return replace(cell, init=replace(cell.init, seed=0))
