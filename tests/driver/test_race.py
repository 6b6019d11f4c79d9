"""Whole races against made-up trials, whose N is known: who wins, what it takes, and what a restart changes."""

import math
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from driver.test_adaptive import DIVERGED, TARGET, WEIGHT, make
from hypothesis import given, settings
from hypothesis import strategies as st

from raysat import grid, theory
from raysat.driver.queue import CellQueue, groups
from raysat.driver.stepsizes import TrialResult
from raysat.saturation.targets import steps_to_target
from raysat.sgd.schedule import evaluation_iterations
from raysat.spec.race import UNLIMITED
from raysat.sweep import main


class World:
    """Trials whose N has its least at one stepsize for each seed and batch size, some way above the stable ones.

    Args:
        best: The exponent of the best stepsize of each seed at b = 1.
        drift: By how many exponents it falls from b = 1 to 256.
        edge: The exponents from here on are not stable, and from `edge + 6` on they diverge.
        worse: By which factor N rises from one exponent to the next, either way.
    """

    def __init__(self, best=(7, 7, 6), drift=2, edge=5, worse=1.4):
        self.best, self.drift, self.edge, self.worse = best, drift, edge, worse

    def __call__(self, cell, limits=UNLIMITED):
        k = 2 * math.log2(cell.stepsize.value)
        shift = self.drift * math.log(cell.batch_size) / math.log(256)
        eta_over_limit = 2 ** ((k - self.edge + shift) / 2)
        if k >= self.edge + 6 - shift:
            return TrialResult("diverged", (0, 1), (1.0, math.inf), eta_over_limit)
        off = abs(k - self.best[cell.init.seed % 3] + shift)
        steps = 40 * (1 + 10 / cell.batch_size) * self.worse**off * (1 + 0.03 * cell.init.seed)
        seen, limit = [], limits.of(eta_over_limit)
        status = "completed"
        for t in evaluation_iterations(cell.iterations, cell.evaluations):
            if t > limit:
                status = "beaten"
                break
            seen.append(t)
            if t >= steps:
                status = "target_reached"
                break
        return TrialResult(status, seen, [TARGET ** (t / steps) for t in seen], eta_over_limit)


def run(sweep, world, at_once=1, found=(), random=None, most=math.inf):
    """Run a sweep, so many cells at a time, which end in any order. Returns the queue, and who was started."""
    queue = CellQueue(groups(sweep, sweep.cells(2048, 0), WEIGHT), WEIGHT, dict(found))
    running, started = [], []
    while True:
        while len(running) < at_once and (cell := queue.next()) is not None:
            running.append((cell, queue.limits(cell)))
            started.append(cell)
        if not running or len(queue.results) >= most:
            return queue, started
        cell, limits = running.pop(random.randrange(len(running)) if random else 0)
        queue.add_result(cell.cell_id, world(cell, limits))


def winners(queue):
    """N of the best of each race in each reading, and its stepsize."""
    found = {}
    for cell in queue.requested:
        one = queue.results[cell.cell_id]
        for limit in (math.inf, 1.0):
            if one.usable and one.below(limit) and not math.isnan(steps := one.steps(TARGET)):
                key = cell.stepsize.label, cell.batch_size, cell.init.seed, limit
                found[key] = min(found.get(key, (math.inf, 0.0)), (steps, cell.stepsize.value))
    return found


def iterations(queue):
    return sum(one.iterations[-1] for one in queue.results.values())


LIST = {
    "adaptive": False,
    "batch_sizes": [1, 8, 64],
    "stepsizes": [grid([2 ** (k / 2) for k in range(12)], relative=True)],
}
AUTO = {"adaptive": False, "batch_sizes": [1, 4, 16, 64, 256], "stepsizes": [grid(auto=True)]}


@given(st.tuples(*[st.integers(3, 9)] * 3), st.integers(1, 30), st.randoms(use_true_random=False))
@settings(max_examples=10)
def test_of_a_list_the_winners_are_the_same_in_whatever_order_trials_end(best, at_once, random):
    world = World(best)
    alone, _ = run(make(**LIST), world)
    raced, started = run(make(race=True, **LIST), world, at_once, random=random)
    assert winners(raced) == winners(alone)
    assert len(started) == len({cell.cell_id for cell in started}) == len(alone.results)


def test_one_at_a_time_a_race_takes_a_fraction_of_the_iterations():
    alone, _ = run(make(**LIST), World())
    raced, started = run(make(race=True, **LIST), World())
    assert iterations(raced) < 0.6 * iterations(alone)
    assert {one.status for one in raced.results.values()} == {"beaten", "target_reached", "diverged"}
    first, second = started[0], next(cell for cell in started[1:] if cell.batch_size != started[0].batch_size)
    assert first.stepsize.value == 2 ** (6 / 2) or first.stepsize.value == 2 ** (5 / 2), "the middle one"
    known = {value for key, (_, value) in winners(raced).items() if key[1] == first.batch_size and key[3] == math.inf}
    assert second.stepsize.value in known, "the best one of the nearest batch size"


@pytest.mark.parametrize("at_once", [1, 2, 7])
def test_an_automatic_range_has_the_same_winners_from_fewer_cells(at_once):
    world = World()
    alone, _ = run(make(**AUTO), world)
    raced, _ = run(make(race=True, **AUTO), world, at_once)
    assert winners(raced) == winners(alone)
    assert len(raced.results) < 0.8 * len(alone.results)
    assert iterations(raced) < 0.6 * iterations(alone)


@given(
    st.tuples(*[st.integers(-2, 9)] * 3),
    st.integers(-2, 8),
    st.floats(1.05, 2.0),
    st.integers(1, 30),
    st.randoms(use_true_random=False),
)
@settings(max_examples=12)
def test_the_best_of_an_automatic_range_lies_between_worse_ones_whatever_the_order(best, edge, worse, at_once, random):
    world = World(best, edge=max(edge, 0), worse=worse)
    alone, _ = run(make(**AUTO), world)
    raced, _ = run(make(race=True, **AUTO), world, at_once, random=random)
    assert winners(raced) == winners(alone)


@given(st.integers(0, 60), st.integers(1, 6), st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=10)
def test_after_a_restart_the_winners_are_the_same_and_nothing_runs_twice(known, at_once, random, adaptive):
    sweep, world = make(race=True, **{**AUTO, "adaptive": adaptive}), World()
    whole, _ = run(sweep, world)
    begun, _ = run(sweep, world, at_once, random=random, most=known)
    again, started = run(sweep, world, at_once, begun.results, random)
    assert winners(again) == winners(whole)
    assert not {cell.cell_id for cell in started} & set(begun.results)
    _, nothing = run(sweep, world, at_once, again.results)
    assert nothing == []


def test_no_process_is_left_idle_for_a_race():
    """With more processes than races, trials of one race run beside each other, and batch sizes do not wait."""
    queue = CellQueue(groups(sweep := make(race=True, **LIST), sweep.cells(2048, 0), WEIGHT), WEIGHT, {})
    races = [(cell.batch_size, cell.init.seed) for cell in iter(queue.next, None)]
    assert len(races) == 3 * 3 * 12
    assert len(set(races[:9])) == 9, "one of each race first"
    queue = CellQueue(groups(sweep := make(race=True, **AUTO), sweep.cells(2048, 0), WEIGHT), WEIGHT, {})
    sizes = [cell.batch_size for cell in iter(queue.next, None)]
    assert sizes[:3] == [1, 1, 1]
    assert set(sizes) == {1, 4, 16, 64, 256}


def test_what_is_not_tuned_does_not_race():
    sweep = make(race=True, adaptive=False, stepsizes=[theory(), theory(0.01)], batch_sizes=[1, 8])
    queue, _ = run(sweep, World())
    assert {one.status for one in queue.results.values()} <= {"target_reached", "completed"}
    assert make(target_loss=None, race=True).races is False
    assert all(group.goal is None for group in groups(sweep, sweep.cells(2048, 0), WEIGHT))


def test_a_trial_of_a_seed_is_limited_by_its_own_race_alone():
    sweep = make(race=True, **LIST)
    queue = CellQueue(groups(sweep, sweep.cells(2048, 0), WEIGHT), WEIGHT, {})
    first = queue.next()
    queue.add_result(first.cell_id, World()(first))
    same = [
        cell for cell in queue.requested if (cell.batch_size, cell.init.seed) == (first.batch_size, first.init.seed)
    ]
    other = next(cell for cell in queue.requested if cell.init.seed != first.init.seed)
    assert all(queue.limits(cell).free < 10_000 for cell in same)
    assert queue.limits(other) == UNLIMITED


def test_one_that_diverges_limits_nobody():
    sweep = make(race=True, **LIST)
    queue = CellQueue(groups(sweep, sweep.cells(2048, 0), WEIGHT), WEIGHT, {})
    first = queue.next()
    queue.add_result(first.cell_id, DIVERGED)
    assert np.isinf(queue.limits(queue.next()).free)


SMALL = """
from raysat import Sweep, grid, mlp
sweep = Sweep(name="small", dataset="digits", n_train=64, n_test=0, models=[mlp(1, "relu", 2**0.5)], widths=[16],
              batch_sizes=[1, 8, 64], stepsizes=[grid(auto=True)], iterations=400, seeds=2, target_loss=2.0,
              targets=[2.0], evaluation_budget=100, checkpoint_seconds=0.001)
"""


def swept(results):
    """The tables of a sweep, and its winners: cells, by reading, batch size and seed."""
    trials, curves = (pd.read_parquet(results / "small" / name) for name in ("trials", "curves"))
    assert trials["cell_id"].is_unique
    curves = curves.sort_values(["cell_id", "iteration"]).set_index("cell_id")[["iteration", "train_loss"]]
    paths = {
        cell_id: (path["iteration"].to_numpy(), path["train_loss"].to_numpy())
        for cell_id, path in curves.groupby("cell_id")
    }
    best = {}
    for row in trials[trials["status"] == "target_reached"].to_dict("records"):
        for reading in ("free", "stable"):
            if reading == "free" or row["eta"] < row["eta_limit"]:
                key, steps = (reading, row["batch_size"], row["seed"]), steps_to_target(*paths[row["cell_id"]], 2.0)
                best[key] = min(best.get(key, (math.inf, "")), (steps, row["cell_id"]))
    return trials, paths, best


def assert_they_agree(paths, others):
    """Every curve at shared iterations, to the bit."""
    for cell_id in paths.keys() & others.keys():
        shared = min(len(paths[cell_id][0]), len(others[cell_id][0]))
        for one, other in zip(paths[cell_id], others[cell_id], strict=True):
            assert one[:shared].tolist() == other[:shared].tolist()


def test_kill_9_in_mid_race_and_a_race_that_is_called_off(tmp_path, capsys):
    (tmp_path / "small.py").write_text(SMALL)
    arguments = [str(tmp_path / "small.py"), "--inline", "--results"]
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    trials, paths, best = swept(tmp_path / "whole")
    assert (trials["status"] == "beaten").any()
    assert set(best) == {(reading, b, seed) for reading in ("free", "stable") for b in (1, 8, 64) for seed in (0, 1)}

    command = [sys.executable, "-u", "-m", "raysat.sweep", *arguments, str(tmp_path / "killed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if re.match(r"\s*9/", line):
                process.kill()
    assert 9 <= len(pd.read_parquet(tmp_path / "killed" / "small" / "trials")) < len(trials)
    assert main([*arguments, str(tmp_path / "killed")]) == 0
    again, resumed, same = swept(tmp_path / "killed")
    assert same == best
    assert_they_agree(paths, resumed)
    capsys.readouterr()
    assert main([*arguments, str(tmp_path / "killed")]) == 0
    assert f"all {len(again)} cells are finished" in " ".join(capsys.readouterr().out.split())

    assert main([*arguments, str(tmp_path / "killed"), "--set", "race=False"]) == 0
    alone, unraced, slower = swept(tmp_path / "killed")
    assert "beaten" not in set(alone["status"])
    assert slower == best
    assert set(alone["cell_id"]) >= set(again["cell_id"])
    assert_they_agree(paths, unraced)


def test_one_whose_better_is_lost_runs_again(tmp_path):
    """And is beaten again, at the same iteration where one trial runs at a time, by the same one."""
    (tmp_path / "small.py").write_text(SMALL)
    command = [str(tmp_path / "small.py"), "--inline", "--results", str(tmp_path / "results")]
    assert main(command) == 0
    trials, paths, best = swept(tmp_path / "results")
    for steps, cell_id in best.values():
        assert steps > 0
        for table in ("trials", "curves"):
            (tmp_path / "results" / "small" / table / f"{cell_id}.parquet").unlink(missing_ok=True)
    assert main(command) == 0
    again, anew, same = swept(tmp_path / "results")
    assert same == best
    assert_they_agree(paths, anew)
    assert set(again["cell_id"]) == set(trials["cell_id"])


def test_on_ray_the_winners_are_those_of_one_process(tmp_path):
    (tmp_path / "small.py").write_text(SMALL)
    command = [sys.executable, "-m", "raysat.sweep", str(tmp_path / "small.py"), "--results", str(tmp_path / "ray")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert main([*command[3:4], "--results", str(tmp_path / "here"), "--inline"]) == 0
    trials, paths, best = swept(tmp_path / "ray")
    _, others, same = swept(tmp_path / "here")
    assert best == same
    assert_they_agree(paths, others)
    assert set(trials["status"]) <= {"beaten", "target_reached", "completed", "diverged"}
