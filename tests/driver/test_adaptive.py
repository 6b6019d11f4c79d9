"""The proposer against made-up laws, whose b_N is known; and once for real, on Ray."""

import math
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysat import Sweep, grid, linear, powers_of_two, theory
from raysat.driver.adaptive import Estimate, estimate
from raysat.driver.queue import CellQueue, groups
from raysat.driver.stepsizes import TrialResult, missing_neighbours
from raysat.saturation.targets import steps_to_target
from raysat.sgd.cost import Flops
from raysat.sweep import main

WEIGHT = Flops(forward=1, step=3).weight
TARGET = 0.1


def make(**changes) -> Sweep:
    fields = {
        "name": "s",
        "dataset": "digits",
        "models": [linear()],
        "batch_sizes": powers_of_two(1024),
        "stepsizes": [theory()],
        "iterations": 10_000,
        "seeds": 3,
        "target_loss": TARGET,
        "adaptive": True,
        "race": False,  # raced: tests/driver/test_race.py
    }
    return Sweep(**fields | changes)


def reaching(steps: float, eta_over_limit: float = 0.25) -> TrialResult:
    """A trial that reaches the target after so many steps."""
    return TrialResult("target_reached", (0, steps, 2 * steps), (1.0, TARGET, TARGET**2), eta_over_limit)


DIVERGED = TrialResult("diverged", (0, 1), (1.0, math.inf), 9.0)


def explore(sweep, truth, at_once=1, found=(), most=10_000):
    """Run a queue to its end, so many cells at a time; `truth` says what a cell finds."""
    queue = CellQueue(groups(sweep, sweep.cells(2048, 0), WEIGHT), WEIGHT, dict(found))
    running = []
    for _ in range(most):
        while len(running) < at_once and (cell := queue.next()) is not None:
            running.append(cell)
        if not running:
            return queue
        cell = running.pop(0)
        queue.add_result(cell.cell_id, truth(cell))
    raise AssertionError("it does not end")


def law(b_N, limit=50.0, noise=0.0, seed=0):
    """N(b) by the law, with multiplicative noise that depends on the cell alone; under a grid k = 3 is best."""

    def truth(cell):
        off = abs(2 * math.log2(cell.stepsize.value) - 3) if cell.stepsize.label == "grid_relative" else 0
        rng = np.random.default_rng([seed, cell.init.seed, cell.batch_size])
        return reaching((1 + off) * limit * (1 + b_N / cell.batch_size) * math.exp(noise * rng.standard_normal()))

    return truth


def sizes(queue):
    return sorted({cell.batch_size for cell in queue.requested})


def test_what_does_not_depend_on_findings_is_wanted_whole_and_longest_first():
    sweep = make(adaptive=False, stepsizes=[theory(), grid([0.1, 0.2])], batch_sizes=[1, 8, 64])
    cells = sweep.cells(2048, 0)
    queue = CellQueue(groups(sweep, cells, WEIGHT), WEIGHT, {cells[0].cell_id: TrialResult("completed")})
    handed = list(iter(queue.next, None))
    assert {cell.cell_id for cell in handed} == {cell.cell_id for cell in cells[1:]}
    assert [WEIGHT(cell) for cell in handed] == sorted(map(WEIGHT, handed), reverse=True)
    assert not queue.stop_reasons


def test_under_a_time_budget_the_cheapest_go_first_and_seeds_are_found_all_the_same():
    sweep = make(adaptive=False, batch_sizes=[1, 8, 64])
    queue = CellQueue(groups(sweep, sweep.cells(2048, 0), WEIGHT), WEIGHT, {}, cheapest_first=True)
    first = queue.next()
    assert first.batch_size == 1
    assert {cell.init.seed for cell in queue.seeds_of(first, 5)} == {0, 1, 2} - {first.init.seed}
    handed = list(iter(queue.next, None))
    assert [WEIGHT(cell) for cell in handed] == sorted(map(WEIGHT, handed))
    assert len(handed) == 6


@pytest.mark.parametrize("b_N", [3.0, 10.0, 60.0])
def test_it_ends_finds_b_N_within_its_interval_and_runs_few_cells(b_N):
    hits, shares = 0, []
    for seed in range(20):
        sweep = make()
        queue = explore(sweep, law(b_N, noise=0.05, seed=seed), at_once=4)
        steps = np.array([[queue.results[cell.cell_id].steps(TARGET) for cell in row] for row in by_seed(queue)])
        made = estimate(np.array(sizes(queue)), steps)
        assert made.high <= 1.44 * made.low
        assert made.high <= sizes(queue)[-1]
        hits += made.low <= b_N <= made.high
        shares.append(sum(map(WEIGHT, queue.requested)) / sum(map(WEIGHT, sweep.cells(2048, 0))))
    assert hits >= 16  # of 20; by a binomial of 0.95 fewer come once in four hundred
    assert np.mean(shares) < 0.25


def by_seed(queue):
    rows = {}
    for cell in sorted(queue.requested, key=lambda cell: cell.batch_size):
        rows.setdefault(cell.init.seed, []).append(cell)
    return [rows[seed] for seed in sorted(rows)]


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    b, b_N = np.array([1, 4, 16, 64]), 12.0
    hits = 0
    for _ in range(200):
        offsets = rng.normal(0, 0.3, (3, 1))  # a seed may be slower at every batch size
        made = estimate(b, np.exp(offsets + rng.normal(0, 0.05, (3, 4))) * 40 * (1 + b_N / b))
        hits += made.low <= b_N <= made.high
    assert 0.90 <= hits / 200 <= 0.99


def test_without_dependence_on_b_it_ends_after_three_sizes():
    queue = explore(make(), law(1e-3, noise=1e-4))
    assert sizes(queue) == [1, 4, 16]
    assert "does not fall" in queue.stop_reasons[0]


def test_without_saturation_it_ends_at_the_largest_and_says_so():
    queue = explore(make(batch_sizes=[1, 2, 4, 8, 16]), law(1e4, noise=0.01))
    assert sizes(queue)[-1] == 16
    assert "not below the largest" in queue.stop_reasons[0]


def test_sizes_between_are_run_where_the_largest_lies_within_the_interval():
    """N is noisy at 1, 4 and 16, the largest: what lies between them narrows the interval while there is any left."""

    def truth(cell):
        off = {1: 0.3, 4: -0.3, 16: 0.3}.get(cell.batch_size, 0.0) * (1 if cell.init.seed else -1)
        return reaching(50 * (1 + 8 / cell.batch_size) * math.exp(off))

    sweep = make(batch_sizes=[1, 2, 3, 4, 6, 8, 12, 16], seeds=2)
    queue = explore(sweep, truth)
    assert sizes(queue) == [1, 2, 3, 4, 6, 8, 12, 16]
    said = re.search(r"b_N is near (\S+), with .* a factor of (\S+), no batch size is left", queue.stop_reasons[0])
    value, spans = map(float, said.groups())
    assert value == pytest.approx(8, rel=5e-2)
    assert spans > 1.44  # wider than was asked


def test_beyond_all_sizes_no_other_is_run():
    """The whole interval lies above the largest batch size: those between cannot change that."""
    queue = explore(make(batch_sizes=[1, 2, 4, 8, 16]), law(200.0, noise=1e-4))
    assert sizes(queue) == [1, 4, 16]
    assert "not below the largest" in queue.stop_reasons[0]


def test_without_a_limit_there_is_no_stable_reading():
    def truth(cell):
        off = abs(math.log2(cell.stepsize.value / 0.2))
        return reaching((1 + off) * 50 * (1 + 8 / cell.batch_size), eta_over_limit=math.nan)

    queue = explore(make(stepsizes=[grid([0.1, 0.2, 0.4])]), truth)
    assert "b_N is near 8," in queue.stop_reasons[0]
    assert "stable" not in queue.stop_reasons[0]


def test_a_target_that_is_not_reached_ends_it():
    queue = explore(make(), lambda cell: TrialResult("completed", (0, 10), (1.0, 0.5), 0.5))
    assert sizes(queue) == [1]
    assert "not reached at b = 1" in queue.stop_reasons[0]


@pytest.mark.parametrize("race", [False, True])
def test_a_target_that_is_no_lower_than_the_initial_loss_ends_it(race):
    """All stepsizes are alike: there is no range to search."""
    at_once = TrialResult("target_reached", (0,), (TARGET / 2,), 0.5)
    queue = explore(make(race=race, stepsizes=[grid(auto=True)]), lambda cell: at_once)
    assert sizes(queue) == [1]
    assert "target_loss is not below the loss at initialization: lower it; run at b = 1" in queue.stop_reasons[0]
    queue = explore(make(race=race, adaptive=False, stepsizes=[grid(auto=True)]), lambda cell: at_once)
    assert len({cell.stepsize.value for cell in queue.requested}) <= 3


def test_failures_end_it():
    assert sizes(explore(make(), lambda cell: TrialResult("failed"))) == [1]
    queue = explore(make(adaptive=False, stepsizes=[grid(auto=True)]), lambda cell: TrialResult("failed"))
    assert len(queue.requested) == 3 * 3 * 11


def test_without_a_target_it_uses_the_deepest_loss_that_all_reach():
    def truth(cell):
        rate = 1 / (1 + 10 / cell.batch_size)
        t = np.linspace(0, 100, 20)
        return TrialResult("completed", t, np.exp(-rate * t / 10), 0.5)

    queue = explore(make(target_loss=None), truth)
    assert "b_N is near 10," in queue.stop_reasons[0]


@given(st.floats(2.0, 40.0), st.lists(st.integers(1, 512), min_size=3, max_size=6, unique=True), st.data())
@settings(max_examples=20)
def test_the_next_size_is_the_one_of_the_smallest_variance(b_N, run, data):
    """With equal costs: the variance of log b_N from the inverse of the 2 x 2 information matrix."""
    left = data.draw(st.lists(st.integers(1, 512).filter(lambda b: b not in run), min_size=2, max_size=5, unique=True))
    sweep = make(batch_sizes=sorted([*run, *left]), seeds=1)
    (group,) = groups(sweep, sweep.cells(2048, 0), lambda cell: 1.0)
    b = np.array(sorted(run))

    def variance(size):
        share = b_N / (b_N + np.append(b, size))
        jacobian = np.stack([np.ones_like(share), share], axis=1)
        return np.linalg.inv(jacobian.T @ jacobian)[1, 1]

    made = Estimate(b_N, b_N, b_N)
    chosen = group._narrowing(b, made, 50 * (1 + b_N / b)[None], left)
    assert variance(chosen) <= min(map(variance, left)) * (1 + 1e-6)


@given(
    st.dictionaries(st.integers(0, 2), st.integers(-8, 9), min_size=3, max_size=3),
    st.integers(1, 6),
    st.integers(1, 5),
)
@settings(max_examples=15)
def test_the_range_grows_until_each_seeds_best_is_inside(best, above, at_once):
    """Iterations rise with the distance from each seed's best stepsize; some way above it the trials diverge."""

    def truth(cell):
        k = round(2 * math.log2(cell.stepsize.value))
        if k >= best[cell.init.seed] + above:
            return replace(DIVERGED, eta_over_limit=2 ** (k / 2) / 8)
        return reaching(10 * (2 + abs(k - best[cell.init.seed])), 2 ** (k / 2) / 8)

    queue = explore(make(adaptive=False, stepsizes=[grid(auto=True)], batch_sizes=[8]), truth, at_once)
    tried = {round(2 * math.log2(cell.stepsize.value)) for cell in queue.requested}
    stable = {min(k, 5) for k in best.values()}  # 2^(k/2) / 8 < 1
    for k in {*best.values(), *stable}:
        assert {k - 1, k, k + 1} <= tried or k == 5
        assert {k - 1, k} <= tried
    assert tried <= set(range(min({0, *best.values()}) - 1, max({0, *best.values()}) + 3))


def test_a_batch_size_starts_at_the_best_stepsize_of_its_neighbour():
    def truth(cell):
        k = round(2 * math.log2(cell.stepsize.value))
        return reaching(50 * (1 + 10 / cell.batch_size) * (1 + abs(k - 7)), 1e-3)

    queue = explore(make(stepsizes=[grid(auto=True)]), truth)
    tried = {}
    for cell in queue.requested:
        tried.setdefault(cell.batch_size, set()).add(round(2 * math.log2(cell.stepsize.value)))
    first, *later = [tried[b] for b in sorted(tried)]
    assert first == set(range(10))
    assert later
    assert all(ks == {6, 7, 8, 9} for ks in later)


def test_a_plateau_does_not_end_the_range():
    steps = [900, 800, 770, 775, 600, 400]  # of k = 0, ..., 5; at 6 it diverges

    def truth(cell):
        k = round(2 * math.log2(cell.stepsize.value))
        return reaching(steps[k], 1e-3) if 0 <= k < 6 else replace(DIVERGED, eta_over_limit=1e-3)

    queue = explore(make(adaptive=False, stepsizes=[grid(auto=True)], batch_sizes=[8]), truth)
    assert {round(2 * math.log2(cell.stepsize.value)) for cell in queue.requested} == set(range(7))


@given(st.integers(1, 7), st.integers(0, 30), st.booleans())
@settings(max_examples=6)
def test_run_again_it_goes_on_where_it_was(at_once, known, tuned):
    """However many cells run at a time, and whatever was known before, the same cells are wanted in the end."""
    truth = law(12.0, noise=0.1)
    sweep = make(stepsizes=[grid(auto=True)] if tuned else [theory()])
    whole = explore(sweep, truth)
    found = list(whole.results.items())[:known]
    again = explore(sweep, truth, at_once, found)
    assert {cell.cell_id for cell in again.requested} == {cell.cell_id for cell in whole.requested}
    assert not set(again.weights) & dict(found).keys()
    assert again.stop_reasons == whole.stop_reasons


def test_all_diverged_goes_down_and_an_unstable_best_asks_for_a_stable_one():
    assert missing_neighbours({0: replace(DIVERGED, eta_over_limit=0.5), 1: DIVERGED}, TARGET) == {-1}
    # Twice the limit at k = 4: the largest exponent below it is 1, for 2 / 2^(2/2) is the limit itself.
    assert missing_neighbours({4: reaching(10, 2.0)}, TARGET) == {1, 3, 5}


SMALL = """
from raysat import Sweep, grid, mlp, theory
sweep = Sweep(name="small", dataset="digits", n_train=64, n_test=0, models=[mlp(1, "relu", 2**0.5)], widths=[32],
              batch_sizes=[1, 4, 8, 16, 64], stepsizes=[grid(auto=True), theory()], iterations=400, seeds=2,
              target_loss=2.0, adaptive=True, race=False)
"""


def test_on_ray_and_in_process_it_runs_the_same_cells(tmp_path, capsys):
    path = tmp_path / "small.py"
    path.write_text(SMALL)
    command = [sys.executable, "-m", "raysat.sweep", str(path), "--results", str(tmp_path / "ray")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "to run to begin with" in done.stdout
    assert "theory(1): b_N is near " in done.stdout
    assert re.search(r"\d+/\d+\+  mlp", done.stdout)  # the total is not known ahead

    inline = [str(path), "--results", str(tmp_path / "inline"), "--inline"]
    assert main(inline) == 0
    on_ray, here = (pd.read_parquet(tmp_path / where / "small" / "trials") for where in ("ray", "inline"))
    assert set(on_ray["cell_id"]) == set(here["cell_id"])

    curves = pd.read_parquet(tmp_path / "inline" / "small" / "curves").sort_values("iteration").groupby("cell_id")
    paths = {cell_id: (path["iteration"].to_numpy(), path["train_loss"].to_numpy()) for cell_id, path in curves}
    for _, trials in here[here["stepsize"] == "grid_relative"].groupby(["batch_size", "seed"]):
        steps = {row.eta_beta: steps_to_target(*paths[row.cell_id], 2.0) for row in trials.itertuples()}
        reached = {eta_beta: N for eta_beta, N in steps.items() if not math.isnan(N)}
        assert min(steps) < min(reached, key=reached.get) < max(steps)
    capsys.readouterr()
    assert main(inline) == 0
    assert f"all {len(here)} cells are finished" in " ".join(capsys.readouterr().out.split())
    table = pd.read_parquet(tmp_path / "inline" / "small" / "analysis.parquet")
    analysis = table[table["predictor"] == "b_star"]  # a row for each predictor of each fit
    measured = analysis[(analysis["quantity"] == "b_N") & analysis["headline"]].set_index(["stepsize", "tuning"])
    assert measured.loc[("theory(1)", ""), "value"] > 0
    assert {("grid_relative", "free"), ("grid_relative", "stable")} < set(measured.index)
