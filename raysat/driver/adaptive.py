"""The cells to run next, from the results of the finished ones. Pure: it runs nothing and does not depend on Ray.

A *group* is the set of cells from which one b_N is measured: they differ only in batch size, seed and, under a grid,
stepsize. Three rules decide which of its cells run. All are functions of the results, independent of when and in which
run they were found, so that a sweep that is run again continues where it was.

**All of it.** Batch sizes and stepsizes as listed in the sweep file.

**The stepsize** (`grid(auto=True)`). Stepsizes are powers of sqrt 2 times 1/beta(b). At each batch size the range grows
until, for every seed, the best one has a worse one below it, and two worse ones or a diverged one above it: N(eta) may
have a plateau where the linearized dynamics become unstable, and fall beyond it. That must hold both among all
stepsizes and among those below `eta_limit`, up to that limit; for a network without statistics, which has no such
limit, among all. The best has the fewest iterations to the target, or without a target the smallest final loss; if the
loss vanishes, the fewest iterations until it does. Without statistics `base_stepsize` replaces 1/beta(b), and the range
grows from there as far as necessary.

If trials race (`raysat.spec.race`), each seed has its own range, and batch sizes are taken in rising order, each from
the best stepsize of the one before it; the first from 2/beta(b), up to which linearized SGD is stable. From there the
range goes to the largest stable stepsize and on in factors of 2, and a stepsize beyond the limit of its race ends it
like a diverged one (`raysat.driver.stepsizes`).

**The batch size** (`Sweep(adaptive=True)`). b_N has an interval from the scatter of N_i(b) about the law
(`raysat.saturation.intervals`), whose width is that of `1 / sum (s - mean s)^2`, s(b) being the slope of log N by
log b_N. Batch sizes are run in rising order, by factors of four, until the interval lies below the largest of them:
until N is seen to be within twice its limit. Then, one at a time, the batch size that narrows the interval most for its
floating-point operations (the D-optimal one, for a line in s), until the interval is as narrow as requested. If the
batch sizes end within the interval, those between are run in the same way; if it lies beyond them all, there is no b_N
to find.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Real

from raysat.driver.stepsizes import TrialResult, TrialResults, missing_neighbours, next_in_race
from raysat.saturation.fits import LEAST_BATCH_SIZES, fit_law, log_law, slopes
from raysat.saturation.intervals import geometric_mean, of_critical_batch
from raysat.saturation.targets import choose_targets
from raysat.spec.cells import Cell
from raysat.spec.goals import METRICS, TRAIN_LOSS
from raysat.spec.stepsizes import AUTO_START, half_octave
from raysat.text import number

STRIDE = 4
"""Factor between batch sizes while they rise. Default: 4; the three that a fit needs then span a factor of 16, over
which N(b) falls to a third or less unless b_N lies outside."""


@dataclass(frozen=True)
class Proposal:
    """The cells that a group requests, given the results.

    Attributes:
        cells: All requested cells, finished or not.
        stop_reasons: For each adaptive group that is complete, the reason.
    """

    cells: list[Cell] = field(default_factory=list)
    stop_reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """b_N, its 95 % interval (`raysat.saturation.intervals`), and how sharply N bends there."""

    value: float
    low: float
    high: float
    q: float = 1.0


def estimate(b: Real[np.ndarray, " b"], steps: Float[np.ndarray, "seeds b"]) -> Estimate:
    """Estimate b_N from N(b) of several seeds.

    Args:
        b: At least three batch sizes.
        steps: N(b) of each seed, all positive.

    Returns:
        The estimate; 0 if N does not fall with b, inf if it falls like 1/b or faster.
    """
    return _estimate(tuple(b), tuple(map(tuple, steps)))


@lru_cache(maxsize=256)  # computed after each trial of a sweep, in some 30 ms
def _estimate(b: tuple[float, ...], steps: tuple[tuple[float, ...], ...]) -> Estimate:
    sizes, table = np.array(b), np.array(steps)
    fit, bent = fit_law(sizes, geometric_mean(table))
    if fit.edge:
        return Estimate(*[0.0 if fit.edge < 0 else math.inf] * 3)
    b_N, factor = float(fit.b_c), of_critical_batch(sizes, table, fit, bent)
    return Estimate(b_N, b_N / factor, b_N * factor, float(fit.q))


def _sum_of_squares(values: Float[np.ndarray, " k"]) -> float:
    return float(((values - values.mean()) ** 2).sum())


@dataclass(frozen=True)
class Group:
    """The cells from which one b_N is measured.

    Attributes:
        name: The name in messages to users.
        cells: Its cells by batch size, ascending; each list has all seeds and the stepsizes given in advance.
        tuned: Whether the best of several stepsizes counts.
        auto: Whether stepsizes are added until the best lies inside the range.
        adaptive: Whether the batch sizes are candidates.
        target: The value of the falling metric (`raysat.spec.goals`) to which N counts; None for the lowest training
            loss that all trials reach.
        ratio: Upper over lower end of the interval at which an adaptive group is complete.
        weight: The cost of a cell.
        goal: The value to which the trials of a seed and batch size race; None without a race.
        metric: The metric to which target and goal belong.
        made: Its cells by batch size, seed and exponent, each made once because its id is a hash.
        ranges: In a race, by batch size and seed: the start of the range, the results near it, and its cells.
    """

    name: str
    cells: Mapping[int, list[Cell]]
    tuned: bool
    auto: bool
    adaptive: bool
    target: float | None
    ratio: float
    weight: Callable[[Cell], float]
    goal: float | None = None
    metric: str = TRAIN_LOSS
    made: dict[tuple[int, int, int], Cell] = field(default_factory=dict)
    ranges: dict[tuple[int, int], tuple] = field(default_factory=dict)

    @property
    def races(self) -> bool:
        """Whether the trials of a seed and batch size race."""
        return self.goal is not None

    def propose(self, results: TrialResults, *, ahead: bool = False) -> Proposal:
        """Return the cells that this group requests.

        Args:
            results: The results so far.
            ahead: Whether a batch size need not wait for the best stepsize of another.
        """
        requested: dict[int, list[Cell]] = {}
        if not self.adaptive:
            for b in self.cells:
                requested[b] = self._tune(b, requested if self.races else {}, results)
                if self.auto and self.races and not ahead and not _ended(requested[b], results):
                    break
            return Proposal([cell for cells in requested.values() for cell in cells])
        b, why = min(self.cells), ""
        while b is not None:
            requested[b] = self._tune(b, requested, results)
            if not _ended(requested[b], results):
                break
            b, why = self._next_size(requested, results)
        reasons = (f"{self.name}: {why}; run at b = {', '.join(map(str, sorted(requested)))}",) if b is None else ()
        return Proposal([cell for cells in requested.values() for cell in cells], reasons)

    @property
    def _limits(self) -> tuple[float, ...]:
        """The readings: each a multiple of `eta_limit` below which a stepsize counts."""
        return (math.inf, 1.0) if self.tuned else (math.inf,)

    # Stepsizes ------------------------------------------------------------------------------------------------------

    def _tune(self, b: int, requested: Mapping[int, list[Cell]], results: TrialResults) -> list[Cell]:
        """Return the cells of a batch size: those given in advance, or those of growing ranges.

        Args:
            b: The batch size.
            requested: The cells of other batch sizes; ranges start at their best stepsizes.
            results: The results so far.
        """
        if not self.auto:
            return self.cells[b]
        firsts = [*{cell.init.seed: cell for cell in self.cells[b]}.values()]
        best, usual = self._best_near(b, requested, results), AUTO_START[-1:] if self.races else AUTO_START
        if self.races:
            starts = [(best[cell.init.seed],) if cell.init.seed in best else usual for cell in firsts]
            ranges = [self._own_range(*one, results) for one in zip(firsts, starts, strict=True)]
            return [cell for cells in ranges for cell in cells]
        return self._range(firsts, tuple(set(best.values())) or usual, results)

    def _own_range(self, first: Cell, start: Sequence[int], results: TrialResults) -> list[Cell]:
        """Return the cells of a racing seed; they are recomputed only if there are new results near them."""
        key = first.batch_size, first.init.seed
        before, found, cells = self.ranges.get(key, ((), {}, []))
        if before != start or any(results.get(cell_id) is not one for cell_id, one in found.items()):
            cells = self._range([first], start, results)
            tried = [round(2 * math.log2(cell.stepsize.value)) for cell in cells]
            near = {self._at(first, k).cell_id for k in (*range(min(tried) - 2, max(tried) + 3), *AUTO_START)}
            self.ranges[key] = start, {cell_id: results.get(cell_id) for cell_id in near}, cells
        return cells

    def _range(self, firsts: Sequence[Cell], start: Sequence[int], results: TrialResults) -> list[Cell]:
        """Return the cells of seeds that share one range, which grows from `start`."""
        tried, missing = set[int](), list(start)
        while True:
            ended = {k for k in missing if _ended([self._at(cell, k) for cell in firsts], results)}
            if self.races and tried | ended:  # include stepsizes tried from another start
                near = range(min(tried | ended) - 2, max(tried | ended) + 3)
                ended |= {k for k in (*near, *AUTO_START) if self._at(firsts[0], k).cell_id in results} - tried
            if not ended or (len(ended) < len(missing) and not self.races):  # a race may do without the others
                return [self._at(cell, k) for k in (*sorted(tried), *missing) for cell in firsts]
            tried |= ended
            found = [{k: results[self._at(cell, k).cell_id] for k in sorted(tried)} for cell in firsts]
            if self.goal is not None:
                missing = next_in_race(found[0], self.target, self.goal)
            else:
                missing = [*{k for one in found for k in missing_neighbours(one, self.target)} - tried]

    def _at(self, cell: Cell, k: int) -> Cell:
        """Return the cell with the stepsize `2^(k/2) / beta(b)`."""
        key = cell.batch_size, cell.init.seed, k
        if key not in self.made:
            self.made[key] = replace(cell, stepsize=half_octave(k))
        return self.made[key]

    def _best_near(self, b: int, requested: Mapping[int, list[Cell]], results: TrialResults) -> dict[int, int]:
        """Return the exponent of each seed's best stepsize at the nearest batch size that was run, by seed."""
        near = sorted(requested, key=lambda size: abs(math.log(size / b)))
        nearest = next((size for size in near if _ended(requested[size], results)), None)
        best = self._best(requested[nearest], results) if nearest else []
        return {cell.init.seed: round(2 * math.log2(cell.stepsize.value)) for _, cell in best}

    def _best(
        self, cells: Sequence[Cell], results: TrialResults, limit: float = math.inf
    ) -> list[tuple[TrialResult, Cell]]:
        """Return each seed's best usable trial of a batch size, if any, among those below a multiple of `eta_limit`."""
        best: dict[int, tuple[TrialResult, Cell]] = {}
        for cell in cells:
            found = results[cell.cell_id]
            if not (found.usable and found.below(limit)):
                continue
            seed = cell.init.seed
            if seed not in best or found.score(self.target) < best[seed][0].score(self.target):
                best[seed] = found, cell
        return list(best.values())

    # Batch sizes ----------------------------------------------------------------------------------------------------

    def _next_size(self, requested: Mapping[int, list[Cell]], results: TrialResults) -> tuple[int | None, str]:
        """Return the batch size to run next, or None and the reason why the group is complete."""
        ended = [results[cell.cell_id] for cells in requested.values() for cell in cells]
        if any(one.begins_below(self.target) for one in ended):
            if self.metric == TRAIN_LOSS:
                return None, "target_loss is not below the loss at initialization: lower it"
            return None, f"the target holds at initialization: ask more of the {METRICS[self.metric]}"
        ends = []
        known = any(one.eta_over_limit < math.inf for one in ended)
        for limit in self._limits if known else (math.inf,):
            b, why = self._next_of_reading(requested, results, limit)
            if b is not None:
                return b, ""
            ends.append(("" if limit == math.inf else "among stable stepsizes ") + why)
        return None, ", ".join(ends)

    def _next_of_reading(
        self, requested: Mapping[int, list[Cell]], results: TrialResults, limit: float
    ) -> tuple[int | None, str]:
        run = sorted(requested)
        left = [b for b in self.cells if b not in requested]
        above = [b for b in left if b > run[-1]]
        higher = next((b for b in above if b >= STRIDE * run[-1]), above[-1] if above else None)
        steps = self._steps(run, requested, results, limit)
        if lost := [b for b, column in zip(run, steps.T, strict=True) if not (column > 0).all()]:
            return None, f"b_N is not known, for the target is not reached at b = {', '.join(map(str, lost))}"
        if len(run) < LEAST_BATCH_SIZES:
            return (higher or left[0], "") if left else (None, "b_N is not known, with so few batch sizes")
        b = np.array(run)
        made = estimate(b, steps)
        if made.high < run[0]:
            return None, f"N(b) does not fall from b = {run[0]} on"
        # Two digits only: the analysis, which corrects N for the distance of evaluations, reports value and interval.
        spans = made.high / made.low if made.low else math.inf
        text = f"b_N is near {number(made.value, 2)}, with an interval that spans a factor of {number(spans, 2)}"
        beyond = made.high > run[-1]
        if beyond and higher:
            return higher, ""
        if not beyond and made.high <= self.ratio * made.low:
            return None, text
        if left and made.low <= run[-1] and math.isfinite(made.value):
            return self._narrowing(b, made, steps, left), ""
        return None, f"{text}, {'not below the largest batch size' if beyond else 'no batch size is left'}"

    def _steps(
        self, run: Sequence[int], requested: Mapping[int, list[Cell]], results: TrialResults, limit: float
    ) -> Float[np.ndarray, "seeds b"]:
        """Return N(b) of each seed with its best stepsize; nan if the target is not reached."""
        seeds = sorted({cell.init.seed for cell in requested[run[0]]})
        best = {(cell.init.seed, b): found for b in run for found, cell in self._best(requested[b], results, limit)}
        target = self.target
        if target is None:
            initial = np.array([found.losses[0] for found in best.values()], dtype=float)
            deepest = np.array([min(found.losses) for found in best.values()], dtype=float)
            target = min(choose_targets(initial, deepest), default=None)
        missing = TrialResult("")
        return np.array([[best.get((seed, b), missing).steps(target) for b in run] for seed in seeds])

    def _narrowing(
        self, b: Real[np.ndarray, " b"], made: Estimate, steps: Float[np.ndarray, "seeds b"], left: Sequence[int]
    ) -> int:
        """Return the batch size, of those left, that narrows the interval most for its cost."""
        log_b_N, q = math.log(made.value), made.q
        share = slopes(b, made.value, q)[0]
        asymptote = float(np.exp((np.log(steps) - log_law(b, log_b_N, q)).mean()))

        def worth(size: int) -> float:
            own = np.array([size])
            gain = math.log(_sum_of_squares(np.append(share, slopes(own, made.value, q)[0])) / _sum_of_squares(share))
            cell = self.cells[size][0]
            if cell.goal is not None:
                foretold = asymptote * math.exp(log_law(own, log_b_N, q)[0])
                cell = replace(cell, iterations=min(cell.iterations, math.ceil(foretold)))
            return gain / self.weight(cell)

        return max(left, key=worth)


def _ended(cells: Sequence[Cell], results: TrialResults) -> bool:
    """Return whether all of some cells have ended."""
    return all(cell.cell_id in results for cell in cells)
