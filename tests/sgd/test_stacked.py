"""The stacked engine against autograd and against itself alone; trials and sweeps whose steps it takes."""

import copy
import io
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sgd.test_engines import OUTPUTS, N, problem
from torch import nn

from raysat import Sweep, Training, fixed, linear, mlp, models, resnet, theory
from raysat.driver.loop import run
from raysat.driver.plan import plan
from raysat.driver.queue import CellQueue, groups
from raysat.errors import InputError
from raysat.executor import Outcome
from raysat.executor.jobs import attempt
from raysat.losses import LOSSES
from raysat.models.mlp import ACTIVATIONS
from raysat.sgd import stacked
from raysat.sgd.engine import AutogradEngine, StackedEngine
from raysat.sgd.problem import Problem
from raysat.sgd.sampler import batches
from raysat.sgd.stacked import LARGEST_BATCH, MOST, stackable
from raysat.spec.race import UNLIMITED, Limits
from raysat.storage.checkpoint import Checkpoint
from raysat.storage.store import Store
from raysat.sweep import main
from raysat.trial import train as trial_module
from raysat.trial.initial import compute_statistics
from raysat.trial.job import Job
from raysat.trial.train import run_trial, run_trials


def networks_of(seeds, depth=2, activation="relu", width=24, dtype=torch.float64):
    return [models.build(mlp(depth, activation), width, (3, 4), OUTPUTS, seed=k).to(dtype) for k in range(seeds)]


def weights(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def stack(networks, x, y, loss, etas, b, steps=50, **options):
    engine = StackedEngine([Problem(network, x, y, loss) for network in networks], etas, **options)
    engine.run(*(batches(seed, 0, steps, b, N) for seed in range(len(networks))))
    return engine


@pytest.mark.parametrize("b", [1, 3, N])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_each_of_the_stacked_networks_is_autograds_in_double_precision(depth, activation, b):
    networks, etas = networks_of(3, depth, activation), (0.1, 0.2, 0.05)
    references = copy.deepcopy(networks)
    stack(networks, *problem(), etas, b)
    for seed, (network, reference, eta) in enumerate(zip(networks, references, etas, strict=True)):
        start = weights(reference)
        AutogradEngine(Problem(reference, *problem()), eta).run(batches(seed, 0, 50, b, N))
        assert (weights(network) - weights(reference)).abs().max() < 1e-12
        assert (weights(network) - start).abs().max() > 1e-3


@pytest.mark.parametrize("targets", ["one_hot", "classes"])
def test_stacked_is_autograd_for_the_cross_entropy(targets):
    networks = networks_of(2)
    references = copy.deepcopy(networks)
    stack(networks, *problem("cross_entropy", targets), (0.1, 0.3), b=3)
    for seed, (network, reference, eta) in enumerate(zip(networks, references, (0.1, 0.3), strict=True)):
        AutogradEngine(Problem(reference, *problem("cross_entropy", targets)), eta).run(batches(seed, 0, 50, 3, N))
        assert (weights(network) - weights(reference)).abs().max() < 1e-12


@given(
    others=st.integers(1, MOST - 1),
    at=st.integers(0, MOST - 1),
    width=st.sampled_from([1, 5, 16, 32, 64, 100, 128, 250]),
    b=st.integers(1, LARGEST_BATCH),
    inputs=st.sampled_from([1, 3, 64, 200]),
    outputs=st.sampled_from([1, 2, 10]),
)
def test_a_network_ends_in_the_same_bits_whoever_is_beside_it(others, at, width, b, inputs, outputs):
    """The promise of PyTorch's batched products on which `raysat.sgd.stacked` rests, on one thread."""
    x, y = torch.randn(50, inputs), torch.randn(50, outputs)
    networks = [models.build(mlp(2), width, (inputs,), outputs, seed=seed) for seed in range(1 + others)]
    etas, drawn = [0.3] * (1 + others), [batches(seed, 0, 20, b, 50) for seed in range(1 + others)]
    at, alone = at % (1 + others), copy.deepcopy(networks[at % (1 + others)])
    etas[at] = 0.1
    StackedEngine([Problem(alone, x, y, LOSSES["mse"])], [0.1]).run(drawn[at])
    StackedEngine([Problem(network, x, y, LOSSES["mse"]) for network in networks], etas).run(*drawn)
    assert torch.equal(weights(networks[at]), weights(alone))


def refuse(*_):
    raise torch.OutOfMemoryError


@pytest.mark.parametrize(("micro_batch", "parts"), [(None, 5), (14, 5), (4, 4)])
def test_where_memory_is_short_the_networks_are_taken_one_by_one(monkeypatch, micro_batch, parts):
    if micro_batch is None:
        monkeypatch.setattr(stacked, "_Block", refuse)
    networks = networks_of(3)
    references = copy.deepcopy(networks)
    engine = stack(networks, *problem(), (0.1, 0.2, 0.3), b=5, micro_batch=micro_batch)
    assert engine.name == ("autograd" if micro_batch == 4 else "fused")
    assert min(5, engine.micro_batch) == parts
    stack(references, *problem(), (0.1, 0.2, 0.3), b=5)
    for network, reference in zip(networks, references, strict=True):
        assert (weights(network) - weights(reference)).abs().max() < 1e-12


def test_what_else_goes_wrong_is_not_taken_for_lack_of_memory(monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes")

    monkeypatch.setattr(stacked, "_Block", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        stack(networks_of(2), *problem(), (0.1, 0.2), b=5)


def test_a_network_of_other_layers_is_refused():
    other = nn.Sequential(nn.Flatten(), nn.Linear(12, OUTPUTS)).double()
    with pytest.raises(InputError, match=r"engine='stacked' knows fully-connected networks .* not this Sequential"):
        StackedEngine([Problem(other, *problem())], [0.1])


def test_small_networks_are_those_that_gain():
    def built(width, inputs=64):
        return models.build(mlp(3), width, (inputs,), 10, seed=0)

    assert [stackable(built(width)) for width in (8, 128, 255, 256)] == [True, True, True, False]
    assert [stackable(built(width, inputs=784)) for width in (64, 128)] == [True, False]
    assert not stackable(models.build(resnet(10), 4, (3, 32, 32), 10, seed=0))


# Trials


def job_of(cell, **changes):
    job = Job(sweep="s", init=cell.init, cell=cell, engine="stacked", **changes)
    return replace(job, statistics=compute_statistics(job))


def coupled_group_size(make_cell, seeds=3, changes=None, **cell):
    """A job of several seeds; `changes` of the job."""
    first, *stacked_with = (job_of(make_cell(seed=seed, **cell), **(changes or {})) for seed in range(seeds))
    return replace(first, stacked_with=tuple(stacked_with))


def without_times(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def assert_the_same(results, others):
    for (row, curve, ntk), (other, other_curve, other_ntk) in zip(results, others, strict=True):
        assert without_times(curve) == without_times(other_curve)
        assert {point["cell_id"] for point in curve} == {row["cell_id"]}
        timed = {"seconds", "steps_per_second", "finished_at", "attempts"}
        assert {name: row[name] for name in row.keys() - timed} == {name: other[name] for name in other.keys() - timed}
        assert [point["kernel_drift"] for point in ntk] == [point["kernel_drift"] for point in other_ntk]


def one_by_one(job):
    return [run_trial(replace(one, stacked_with=())) for one in job.members]


def test_seeds_trained_together_have_the_rows_that_each_has_alone(make_cell):
    job = coupled_group_size(make_cell, dtype="float32", ntk_at=(0, 20), gradient_norm=True)
    results = run_trials(job)
    assert [row["seed"] for row, *_ in results] == [0, 1, 2]
    assert {row["engine"] for row, *_ in results} == {"stacked"}
    assert len({row["eta"] for row, *_ in results}) == 3, "each has its own stepsize"
    assert_the_same(results, one_by_one(job))


def test_they_agree_with_the_fused_engine(make_cell):
    job = coupled_group_size(make_cell)
    for (row, *_), one in zip(run_trials(job), job.members, strict=True):
        fused, *_ = run_trial(replace(one, stacked_with=(), engine="fused"))
        assert fused["engine"] == "fused"
        assert row["h"] == pytest.approx(fused["h"], rel=1e-10)


def test_a_seed_that_ends_early_leaves_the_others_as_they_are(make_cell):
    whole = one_by_one(coupled_group_size(make_cell))
    losses = [[point["train_loss"] for point in curve] for _, curve, _ in whole]
    target = sorted(min(curve) for curve in losses)[0]  # one seed reaches it, at its end at the latest
    job = coupled_group_size(make_cell, target_loss=1.5 * target)
    results = run_trials(job)
    assert len({row["iterations_done"] for row, *_ in results}) > 1
    assert_the_same(results, one_by_one(job))


def test_a_seed_that_is_beaten_leaves_the_others_as_they_are(make_cell):
    job = coupled_group_size(make_cell, changes={"limits": Limits(20.0, 20.0)})
    first, last = replace(job, stacked_with=(), limits=Limits(7.0, 7.0)), replace(job.stacked_with[1], limits=UNLIMITED)
    job = replace(first, stacked_with=(job.stacked_with[0], last))
    results = run_trials(job)
    assert [row["status"] for row, *_ in results] == ["beaten", "beaten", "completed"]
    assert 1 < results[0][0]["iterations_done"] < results[1][0]["iterations_done"] < 50
    assert_the_same(results, one_by_one(job))


def test_a_seed_that_diverges_leaves_the_others_as_they_are(make_cell):
    job = coupled_group_size(make_cell, stepsize=fixed(0.01))
    unstable = replace(job.stacked_with[0], statistics={}, cell=replace(job.stacked_with[0].cell, stepsize=fixed(1e3)))
    job = replace(job, stacked_with=(unstable, job.stacked_with[1]))
    results = run_trials(job)
    assert [row["status"] for row, *_ in results] == ["completed", "diverged", "completed"]
    assert_the_same(results, one_by_one(job))


def test_times_are_shares(make_cell, monkeypatch):
    """The clock goes on by a second at each look; what the job took is what its trials took, no second twice."""
    looks = iter(range(100_000))
    monkeypatch.setattr(trial_module.time, "perf_counter", lambda: float(next(looks)))
    results = run_trials(coupled_group_size(make_cell, changes={"checkpoint_seconds": 1e9}))
    total = next(looks) - 1  # whatever the statistics looked at
    begun = total - sum(row["seconds"] for row, *_ in results)
    assert 0 <= begun < total
    seconds = [row["seconds"] for row, *_ in results]
    assert max(seconds) - min(seconds) < 0.1 * max(seconds)
    for row, curve, _ in results:
        assert curve[-1]["seconds"] < row["seconds"]
        assert row["steps_per_second"] == row["iterations_done"] / curve[-1]["seconds"]


@pytest.mark.parametrize("lost", [(), (1,), (0, 2)])
def test_seeds_that_were_killed_together_end_in_the_same_bits(make_cell, tmp_path, monkeypatch, lost):
    """Also where the checkpoints of some are missing, so that they no longer are equally far."""
    whole = run_trials(coupled_group_size(make_cell, dtype="float32"))
    monkeypatch.setattr(trial_module, "STEPS_AT_ONCE", 1)
    monkeypatch.setattr(trial_module, "CHECKPOINT_SHARE", math.inf)
    job = coupled_group_size(make_cell, dtype="float32", changes={"checkpoints": tmp_path, "checkpoint_seconds": 1e-9})
    calls = iter(range(100))

    def killed(engine, *drawn, run=StackedEngine.run):
        if next(calls) == 7:
            raise KeyboardInterrupt
        run(engine, *drawn)

    with monkeypatch.context() as patch:
        patch.setattr(StackedEngine, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            run_trials(job)
    files = [tmp_path / f"{one.key}.pt" for one in job.members]
    stored = [Checkpoint(file).load() for file in files]
    assert len({progress.iteration for progress in stored}) == 1
    assert stored[0].iteration > 0
    for progress in stored:
        for value in progress.weights.values():
            assert value.untyped_storage().nbytes() == value.nbytes, (
                "a checkpoint has the weights of its own cell alone"
            )
    for k in lost:
        files[k].unlink()
    results = run_trials(job)
    assert_the_same(results, whole)
    assert [row["attempts"] for row, *_ in results] == [1 if k in lost else 2 for k in range(3)]


def test_who_is_told_hears_of_every_seed(make_cell, monkeypatch):
    monkeypatch.setattr(trial_module, "PROGRESS_INTERVAL", 0.0)
    monkeypatch.setattr(trial_module, "STEPS_AT_ONCE", 1)
    job, told = coupled_group_size(make_cell), []
    results = run_trials(replace(job, on_progress=lambda iteration, losses: told.append((iteration, losses))))
    assert len({iteration for iteration, _ in told}) > 10
    curves = {row["cell_id"]: {point["iteration"]: point["train_loss"] for point in curve} for row, curve, _ in results}
    for iteration, losses in told:
        last = max(t for t in curves[job.key] if t <= iteration)
        assert losses == {key: curve[last] for key, curve in curves.items()}


# Sweeps


def sweep_of(**changes):
    fields = {
        "name": "small", "dataset": "digits", "models": [mlp(2)], "widths": [8, 300], "batch_sizes": [1, 64],
        "stepsizes": [theory()], "iterations": 2, "n_train": 64, "n_test": 0, "seeds": 3,
    }  # fmt: skip
    return Sweep(**fields | changes)


@pytest.mark.parametrize(
    ("changes", "gpus", "expected"),
    [
        ({}, 0.0, {(8, 1)}),
        ({}, None, set() if torch.cuda.is_available() else {(8, 1)}),
        ({}, 1.0, set()),
        ({"seeds": 1}, 0.0, set()),
        ({"seeds": [5]}, 0.0, set()),
        ({"cpus_per_trial": 2}, 0.0, set()),
        ({"ranks_per_trial": 2}, 0.0, set()),
        ({"precision": "bfloat16"}, 0.0, set()),
        ({"engine": "fused"}, 0.0, set()),
        ({"engine": "stacked"}, 1.0, set()),
        ({"engine": "stacked"}, 0.0, {(8, 1), (8, 64), (300, 1), (300, 64)}),
        ({"trainings": [Training("momentum")]}, 0.0, set()),
        ({"models": [linear()]}, 0.0, {(0, 1)}),
    ],
)
def test_the_cells_that_are_stacked_are_those_that_were_measured_to_gain(tmp_path, changes, gpus, expected):
    laid_out = plan(sweep_of(**changes), tmp_path)
    chosen = {(cell.init.width, cell.batch_size) for cell in laid_out.cells if laid_out.stacks(cell, gpus)}
    assert chosen == expected


def test_an_engine_for_other_networks_is_refused_before_any_work(tmp_path):
    (tmp_path / "my_model.py").write_text(
        "from torch import nn\ndef build(width, input_shape, outputs):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))\n"
    )
    for engine in ("stacked", "fused"):
        wrong = sweep_of(engine=engine, models=["my_model:build"])
        with pytest.raises(InputError, match=f"engine='{engine}' knows fully-connected networks"):
            plan(wrong, tmp_path)


class Scripted:
    """An executor of so many slots that does one job after the other, and keeps them."""

    gpus, size, hosts_without = 0.0, staticmethod(lambda: ""), staticmethod(lambda path: [])

    def __init__(self, slots, fail=()):
        self.count, self.jobs, self.fail = slots, [], fail

    def slots(self):
        return self.count

    def run(self, source, function, callbacks):
        for job in iter(source.next, None):
            if job.cell:
                self.jobs.append(job)
            callbacks.on_start(job)
            fails = job.cell and job.cell.batch_size in self.fail
            callbacks.on_end(Outcome(job, error="ValueError: no") if fails else Outcome(job, *attempt(function, job)))


def drive(tmp_path, sweep, executor):
    laid_out = plan(sweep, tmp_path)
    queue = CellQueue(groups(sweep, laid_out.cells, laid_out.weight), laid_out.weight, {})
    store = Store(tmp_path / "small")
    store.open(sweep, {}, laid_out.data)
    failed = run(laid_out, queue, store, executor, Console(file=io.StringIO(), width=200))
    return failed, store.read("trials")


@pytest.mark.parametrize(
    ("slots", "sizes"),
    [(1, [3, 3]), (2, [3, 1, 1, 1]), (3, [2, 1, 1, 1, 1]), (6, [1] * 6)],
)
def test_seeds_share_a_job_as_far_as_every_process_has_one(tmp_path, slots, sizes):
    executor = Scripted(slots)
    failed, trials = drive(tmp_path, sweep_of(batch_sizes=[1, 2], widths=[8]), executor)
    assert failed == []
    assert [len(job.members) for job in executor.jobs] == sizes
    for job in executor.jobs:
        assert len({(one.cell.batch_size, one.statistics["init_id"] == one.init.init_id) for one in job.members}) == 1
    assert len(trials) == trials["cell_id"].nunique() == 6
    assert set(trials["engine"]) == {"stacked"}
    assert set(trials["attempts"]) == {1}


def test_no_more_seeds_than_are_worth_it_share_a_job(tmp_path):
    executor = Scripted(1)
    drive(tmp_path, sweep_of(batch_sizes=[1], widths=[8], seeds=20), executor)
    assert [len(job.members) for job in executor.jobs] == [8, 8, 4]


def test_different_stepsizes_and_batch_sizes_stay_apart(tmp_path):
    executor = Scripted(1)
    drive(
        tmp_path, sweep_of(batch_sizes=[1, 2, 64], stepsizes=[theory(), theory(0.5), fixed(1e-3)], widths=[8]), executor
    )
    kinds = [{(one.cell.batch_size, one.cell.stepsize.label) for one in job.members} for job in executor.jobs]
    assert all(len(kind) == 1 for kind in kinds)
    large = [job for job in executor.jobs if job.cell.batch_size == 64]
    assert [(len(job.members), job.engine) for job in large] == [(1, "auto")] * 9
    assert sorted(len(job.members) for job in executor.jobs if job.cell.batch_size < 64) == [3] * 6


def test_where_a_job_fails_each_of_its_cells_has_failed_and_is_tried_again(tmp_path):
    sweep = sweep_of(batch_sizes=[1, 2], widths=[8])
    failed, trials = drive(tmp_path, sweep, Scripted(1, fail={2}))
    assert len(failed) == 3
    assert trials.groupby("batch_size")["status"].agg(set).to_dict() == {1: {"completed"}, 2: {"failed"}}
    assert set(trials.loc[trials["batch_size"] == 2, "error"]) == {"ValueError: no"}
    failed, trials = drive(tmp_path, sweep, Scripted(1))
    assert failed == []
    assert set(trials["status"]) == {"completed"}


FILE = """
from raysat import Sweep, mlp, theory
sweep = Sweep(name="small", dataset="digits", models=[mlp(1)], widths=[8], batch_sizes=[1, 2, 4, 64], iterations=30,
              stepsizes=[theory()], n_train=64, seeds=3)
"""


def test_on_ray_and_in_one_process_the_rows_are_the_same_to_the_bit(tmp_path):
    file = tmp_path / "small.py"
    file.write_text(FILE)
    found = []
    for where, options in (("ray", []), ("inline", ["--inline"])):
        assert main([str(file), "--results", str(tmp_path / where), *options]) == 0
        found.append(pd.read_parquet(tmp_path / where / "small" / "trials").set_index("cell_id").sort_index())
    names = ["seed", "batch_size", "engine", "eta", "h", "loss_final", "test_loss", "distance_from_init", "status"]
    pd.testing.assert_frame_equal(found[0][names], found[1][names], check_exact=True)
    assert found[0].groupby("batch_size")["engine"].agg(set).to_dict() == {
        1: {"stacked"}, 2: {"stacked"}, 4: {"stacked"}, 64: {"fused"},
    }  # fmt: skip
    assert len(found[0]) == 12
