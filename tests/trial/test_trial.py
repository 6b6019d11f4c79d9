import copy
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import oracles
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from raysat import Training, asynchronous, data, fixed, fixed_fraction, linear, mlp, models, ntk_statistics, theory
from raysat.ntk import NoStatistics
from raysat.saturation.formulas import beta
from raysat.sgd import sampler
from raysat.sgd.engine import AutogradEngine
from raysat.sgd.fused import RANK, FusedEngine
from raysat.spec.cells import Model
from raysat.spec.race import Limits
from raysat.storage.checkpoint import Checkpoint, Progress
from raysat.storage.schema import arrow_schema
from raysat.trial import initial
from raysat.trial import train as trial_module
from raysat.trial.initial import compute_statistics
from raysat.trial.job import Job, load_dataset, prepare
from raysat.trial.train import failed_row, run_trial


def job_of(cell, **changes):
    job = Job(sweep="s", init=cell.init, cell=cell, **changes)
    return replace(job, statistics=compute_statistics(job))


def without_times(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_a_trial_gives_a_row_and_a_curve_under_the_declared_columns(make_cell):
    cell = make_cell()
    row, curve, _ = run_trial(job_of(cell))
    assert set(row) <= set(arrow_schema("trials").names)
    said = {"statistics_dtype", "frozen_norms", "off"}  # where the statistics say so
    assert set(arrow_schema("trials").names) - set(row) - said == {"error"}
    assert all(set(point) == set(arrow_schema("curves").names) for point in curve)
    assert {point["gradient_square"] for point in curve} == {None}
    assert row["status"] == "completed"
    assert row["cell_id"] == cell.cell_id == curve[0]["cell_id"]
    assert [point["iteration"] for point in curve][-1] == row["iterations_done"] == 50
    assert [point["samples"] for point in curve] == [8 * point["iteration"] for point in curve]
    assert row["loss_init"] == curve[0]["train_loss"] == pytest.approx(row["loss_init"])
    assert row["h"] == math.log(row["loss_init"] / row["loss_final"]) / 50
    assert 0 < row["train_accuracy"] <= 1
    assert 0 < row["test_accuracy"] <= 1
    assert row["distance_from_init"] > 0
    assert row["attempts"] == 1


def test_the_statistics_are_a_row_of_ntk(make_cell):
    cell = make_cell()
    row = compute_statistics(Job("s", cell.init))
    certificates = {"gamma_check", "k_op_check", "k_op_upper", "noise_check", "kernel_check"}
    certificates |= {"statistics_dtype", "frozen_norms", "off", "way"}  # where the statistics have them
    only_without = {"error", "base_stepsize"}
    assert set(arrow_schema("ntk").names) - set(row) - certificates == {"cell_id", "kernel_drift", *only_without}
    assert set(row) <= set(arrow_schema("ntk").names)
    assert row["b_star"] == row["gamma"] / row["k_op"]
    assert row["loss_init"] == pytest.approx(run_trial(job_of(cell))[0]["loss_init"], rel=1e-12)


@pytest.mark.parametrize("policy", [fixed(0.01), fixed_fraction(0.5), theory(1)])
@pytest.mark.parametrize("sampling", ["without_replacement", "with_replacement", "epochs"])
def test_the_stepsize_follows_the_policy(make_cell, policy, sampling):
    cell = make_cell(stepsize=policy, sampling=sampling, iterations=2)
    job = job_of(cell)
    row, *_ = run_trial(job)
    gamma, k_op = job.statistics["gamma"], job.statistics["k_op"]
    granted = beta(8, 100, gamma, k_op, replacement=sampling == "with_replacement")
    assert row["beta"] == granted
    expected = {"fixed": 0.01, "fixed_fraction": 0.5 / gamma, "theory": 1 / granted}[policy.policy]
    assert row["eta"] == expected
    assert row["eta_beta"] == expected * granted


def test_the_same_cell_gives_the_same_bits(make_cell):
    job = job_of(make_cell(dtype="float32"))
    (row, curve, _), (again, curve_again, _) = run_trial(job), run_trial(job)
    assert without_times(curve) == without_times(curve_again)
    assert row["distance_from_init"] == again["distance_from_init"]


def test_a_seed_draws_weights_and_batches(make_cell):
    losses = {run_trial(job_of(make_cell(seed=seed)))[0]["loss_final"] for seed in range(3)}
    assert len(losses) == 3


@pytest.mark.parametrize("stop_at", [1, 7, 23])
def test_a_trial_that_was_killed_ends_in_the_same_bits(make_cell, tmp_path, monkeypatch, stop_at):
    cell = make_cell(batch_size=RANK // 2)  # of which a block is two steps
    whole, whole_curve, _ = run_trial(job_of(cell))
    monkeypatch.setattr(trial_module, "STEPS_AT_ONCE", 1)  # a block at a time, so that it can be stopped anywhere
    monkeypatch.setattr(trial_module, "CHECKPOINT_SHARE", math.inf)
    job = job_of(cell, checkpoints=tmp_path, checkpoint_seconds=1e-9)
    steps = iter(range(100))

    def killed(engine, batches, run=FusedEngine.run):
        if next(steps) == stop_at:
            raise KeyboardInterrupt
        run(engine, batches)

    with monkeypatch.context() as patch:
        patch.setattr(FusedEngine, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            run_trial(job)
    assert [path.stem for path in tmp_path.iterdir()] == [job.cell.cell_id]
    stored = Checkpoint(tmp_path / f"{job.cell.cell_id}.pt").load()
    assert 0 < stored.iteration <= 2 * stop_at
    row, curve, _ = run_trial(job)
    assert without_times(curve) == without_times(whole_curve)
    assert row["distance_from_init"] == whole["distance_from_init"]
    assert row["attempts"] == 2


def test_checkpoints_become_rarer_where_storing_one_takes_long(make_cell, tmp_path, monkeypatch):
    now, saved = [0.0], []

    class Slow(Checkpoint):
        def save(self, progress):
            saved.append(progress.iteration)
            now[0] += 0.5
            return True

    def step(engine, batches, run=FusedEngine.run):
        now[0] += 1.0
        run(engine, batches)

    monkeypatch.setattr(trial_module, "STEPS_AT_ONCE", 1)
    monkeypatch.setattr(trial_module, "Checkpoint", Slow)
    monkeypatch.setattr(FusedEngine, "run", step)
    monkeypatch.setattr(trial_module.time, "perf_counter", lambda: now[0])
    cell = make_cell(batch_size=RANK)  # of which a block is one step
    row, *_ = run_trial(job_of(cell, checkpoints=str(tmp_path), checkpoint_seconds=5.0))
    assert saved == [6, 32]  # 0.5 s is 2 % of 25 s
    assert row["iterations_done"] == 50


def test_the_losses_at_initialization_are_those_of_the_statistics(make_cell, monkeypatch):
    job = job_of(make_cell())
    evaluated = []
    monkeypatch.setattr(
        trial_module.Evaluator,
        "__call__",
        lambda self, network, call=trial_module.Evaluator.__call__: (evaluated.append(network), call(self, network))[1],
    )
    _, curve, _ = run_trial(job)
    assert len(evaluated) == len(curve) - 1
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    assert [curve[0][name] for name in names] == [job.statistics[name] for name in names]
    bare = {name: value for name, value in job.statistics.items() if name not in names}
    assert run_trial(replace(job, statistics=bare))[1][0] == curve[0]


def test_the_loss_may_be_evaluated_over_the_first_samples(make_cell):
    cell = make_cell()
    fewer = replace(cell, init=replace(cell.init, evaluation_samples=7))
    row, curve, _ = run_trial(job_of(fewer))
    dataset = load_dataset(cell.init)
    network = models.build(cell.init.model, cell.init.width, dataset.input_shape, dataset.outputs, cell.init.seed)
    expected = (network.to(dataset.x.dtype)(dataset.x[:7]) - dataset.y[:7]).square().sum().item() / 14
    assert curve[0]["train_loss"] == row["loss_init"] == pytest.approx(expected, rel=1e-6)
    assert row["evaluation_samples"] == 7
    whole, *_ = run_trial(job_of(cell))
    assert row["distance_from_init"] == whole["distance_from_init"]  # the same steps


def shaken(x, y, generator):
    return x + torch.randn(x.shape, generator=generator, dtype=x.dtype), y.roll(1, 1)


@pytest.mark.parametrize(
    "training",
    [
        Training("momentum", schedule="cosine", noise=True, base_batch=4),
        Training("adam"),
        Training("adamw", options={"weight_decay": 0.1}, clip=1.0, warmup_samples=16, schedule="linear"),
        Training("muon"),
        Training("adamw", warmup=5, schedule="OneCycleLR", average=0.9),
        Training("momentum", schedule="StepLR", schedule_options={"step_size": 10}, average="uniform"),
        asynchronous(3),
        asynchronous(2, [1, 5, 2]),
        Training(transform="my_transforms:shaken"),
        asynchronous(3, transform="my_transforms:shaken"),
    ],
    ids=lambda training: training.label,
)
def test_other_trainings_too_end_in_the_same_bits(make_cell, tmp_path, monkeypatch, training):
    """What an engine holds beside the weights is in the checkpoint: moments, the step, stale weights."""
    monkeypatch.setitem(sys.modules, "my_transforms", SimpleNamespace(shaken=shaken))
    monkeypatch.setattr(trial_module, "STEPS_AT_ONCE", 1)
    cell = make_cell(training=training, stepsize=fixed(0.01))
    whole, whole_curve, _ = run_trial(job_of(cell))
    job, steps = job_of(cell, checkpoints=str(tmp_path), checkpoint_seconds=1e-9), iter(range(100))

    def killed(inner, *arguments, gradients=AutogradEngine.gradients):
        if next(steps) == 23:
            raise KeyboardInterrupt
        return gradients(inner, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trial_module, "CHECKPOINT_SHARE", 1e9)
        patch.setattr(AutogradEngine, "gradients", killed)
        with pytest.raises(KeyboardInterrupt):
            run_trial(job)
    stored = Checkpoint(tmp_path / f"{cell.cell_id}.pt").load()
    assert stored.iteration == stored.engine["step"] > 0
    row, curve, _ = run_trial(job)
    assert without_times(curve) == without_times(whole_curve)
    assert row["staleness"] == whole["staleness"]
    assert (row["attempts"], row["training"]) == (2, training.label)
    assert (row["staleness"] > 0) == training.is_asynchronous
    assert row["eta_limit"] is None, "the theory is of fixed-stepsize SGD"


def test_all_that_is_measured_is_of_the_average_and_of_the_loss_without_smoothing(make_cell):
    """Against a loop of plain PyTorch; the kernel and the gradient's norm are those of the average too."""
    training = Training("momentum", label_smoothing=0.2, average=0.8)
    changes = {"loss": "cross_entropy", "iterations": 9, "evaluations": 60, "gradient_norm": True, "ntk_at": (9,)}
    cell = make_cell(training=training, stepsize=fixed(0.05), **changes)
    _, curve, ntk = run_trial(job_of(cell))
    dataset, network, _ = prepare(Job("s", cell.init))
    start = torch.nn.utils.parameters_to_vector(network.parameters()).detach().clone()
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    measured = network
    for point, batch in zip(curve, sampler.batches(0, 0, 10, 8, 100), strict=True):
        value = cross_entropy(measured(dataset.x), dataset.y)
        squares = sum(one.square().sum() for one in torch.autograd.grad(value, list(measured.parameters())))
        distance = torch.nn.utils.parameters_to_vector(measured.parameters()) - start
        assert point["train_loss"] == pytest.approx(value.item(), rel=1e-6)
        assert point["test_loss"] == pytest.approx(
            cross_entropy(measured(dataset.x_test), dataset.y_test).item(), rel=1e-6
        )
        assert point["gradient_square"] == pytest.approx(squares.item(), rel=1e-6)
        assert point["distance_from_init"] == pytest.approx(distance.norm().item(), rel=1e-6, abs=1e-12)
        optimizer.zero_grad()
        cross_entropy(network(dataset.x[batch]), dataset.y[batch], label_smoothing=0.2).backward()
        before = copy.deepcopy(measured)
        optimizer.step()
        averaged.update_parameters(network)
        measured = averaged.module
    assert ntk[0]["gamma"] == pytest.approx(ntk_statistics(before, dataset.x, dataset.y, loss="cross_entropy").gamma)


def test_steps_are_of_changed_samples_and_all_that_is_measured_of_the_samples_as_they_are(make_cell, monkeypatch):
    """Against a loop of plain PyTorch; the statistics do not know of the transform."""
    monkeypatch.setitem(sys.modules, "my_transforms", SimpleNamespace(shaken=shaken))
    training = Training(transform="my_transforms:shaken")
    changes = {"iterations": 9, "evaluations": 60, "gradient_norm": True, "ntk_at": (9,), "seed": 1}
    cell = make_cell(training=training, stepsize=fixed(0.05), **changes)
    row, curve, ntk = run_trial(job_of(cell))
    dataset, network, _ = prepare(Job("s", cell.init))
    for point, batch in zip(curve, sampler.batches(1, 0, 10, 8, 100), strict=True):
        x, y = dataset.x, dataset.y
        value = (network(x) - y).square().sum() / 200
        squares = sum(one.square().sum() for one in torch.autograd.grad(value, list(network.parameters())))
        test = (network(dataset.x_test) - dataset.y_test).square().sum() / 100
        assert point["train_loss"] == pytest.approx(value.item(), rel=1e-9)
        assert point["test_loss"] == pytest.approx(test.item(), rel=1e-9)
        assert point["gradient_square"] == pytest.approx(squares.item(), rel=1e-9)
        before = copy.deepcopy(network)
        x, y = shaken(x[batch], y[batch], sampler.generator(1, point["iteration"]))
        network.zero_grad()
        ((network(x) - y).square().sum() / 16).backward()
        with torch.no_grad():
            for weight in network.parameters():
                weight -= 0.05 * weight.grad
    assert ntk[0]["gamma"] == pytest.approx(ntk_statistics(before, dataset.x, dataset.y).gamma)
    statistics = compute_statistics(Job("s", cell.init))
    assert (row["gamma"], row["b_star"]) == (statistics["gamma"], statistics["b_star"])
    assert (row["engine"], row["training"], row["eta_limit"]) == ("optimizer", training.label, None)


def test_the_stepsize_is_scaled_to_the_batch(make_cell):
    cell = make_cell(training=Training(scaling="sqrt", base_batch=2), stepsize=fixed(0.01), iterations=2)
    assert run_trial(job_of(cell))[0]["eta"] == pytest.approx(0.02)


def test_gradient_norm_and_distance_along_a_run(make_cell):
    """Against one gradient of the whole loss by autograd, and the definition of the running mean."""
    cell = make_cell(gradient_norm=True, batch_size=100, stepsize=fixed(0.02), iterations=6, evaluations=60)
    _, curve, _ = run_trial(job_of(cell))
    dataset, network, _ = prepare(Job("s", cell.init))
    start, squares = torch.nn.utils.parameters_to_vector(network.parameters()).detach().clone(), []
    for t, point in enumerate(curve):
        assert point["iteration"] == t
        value = (network(dataset.x) - dataset.y).square().sum() / 200
        gradients = torch.autograd.grad(value, list(network.parameters()))
        squares.append(sum(g.square().sum().item() for g in gradients))
        assert point["gradient_square"] == pytest.approx(squares[-1], rel=1e-9)
        mean = np.mean(squares[:t]) if t else squares[0]
        assert point["gradient_square_mean"] == pytest.approx(mean, rel=1e-9)
        moved = torch.nn.utils.parameters_to_vector(network.parameters()) - start
        assert point["distance_from_init"] == pytest.approx(moved.norm().item(), rel=1e-9, abs=1e-12)
        with torch.no_grad():
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter -= 0.02 * gradient
    assert len(curve) == 7


def test_statistics_of_batch_normalization_say_that_they_are_an_approximation(make_cell):
    job = job_of(make_cell(model=mlp(1, norm="batch"), stepsize=fixed(0.05), iterations=2))
    assert job.statistics["frozen_norms"]
    row, _, _ = run_trial(job)
    assert row["frozen_norms"] == job.statistics["frozen_norms"]
    assert row["gamma"] > row["k_op"] > 0


def test_a_network_without_statistics_is_trained_and_its_columns_are_null(make_cell, monkeypatch):
    def refused(*_, **__):
        raise NoStatistics("it mixes: do not.")

    monkeypatch.setattr(initial, "ntk_statistics", refused)
    cell = make_cell(model=mlp(1, norm="batch", ghost=4), stepsize=fixed(0.05))
    job = job_of(cell)
    assert job.statistics["method"] == "refused"
    assert job.statistics["method_reason"] == "it mixes: do not"
    row, curve, _ = run_trial(job)
    assert row["status"] == "completed"
    assert row["loss_final"] < row["loss_init"]
    assert {row.get(name) for name in ("gamma", "k_op", "b_star", "beta", "eta_beta")} == {None}
    assert (row["eta"], row["n_outputs"], row["parameters"]) == (0.05, 10, 64 * 16 + 2 * 16 + 160)
    dataset, network, _ = prepare(Job("s", cell.init))
    network.eval()  # evaluations are by running averages, which at w_0 are 0 and 1
    value = (network(dataset.x) - dataset.y).square().sum().item() / 200
    assert curve[0]["train_loss"] == pytest.approx(value, rel=1e-9)


def test_a_damaged_checkpoint_costs_a_restart_and_no_more(make_cell, tmp_path):
    job = job_of(make_cell(), checkpoints=tmp_path)
    path = tmp_path / f"{job.cell.cell_id}.pt"
    path.write_bytes(b"half")
    row, *_ = run_trial(job)
    assert row["loss_final"] == run_trial(job_of(make_cell()))[0]["loss_final"]


def test_a_checkpoint_keeps_all_of_the_progress(tmp_path):
    progress = Progress(
        3, {"w": torch.randn(2)}, [{"iteration": 0, "test_loss": None}], [{"top": [1.0]}], 1.5, 2.5, {"steps": 3}, 64
    )
    checkpoint = Checkpoint(tmp_path / "a.pt")
    checkpoint.save(progress)
    loaded = checkpoint.load()
    assert torch.equal(loaded.weights.pop("w"), progress.weights.pop("w"))
    assert vars(loaded) == vars(progress) | {"attempts": 2}


@pytest.mark.parametrize("eta", [10.0, 1e30])
def test_divergence_is_a_row(make_cell, eta):
    model = mlp(1, "identity")  # a ReLU network may die instead, with a finite loss
    row, curve, _ = run_trial(job_of(make_cell(model=model, stepsize=fixed(eta), iterations=1000, dtype="float32")))
    assert row["status"] == "diverged"
    assert row["h"] is None
    assert row["iterations_done"] < 1000
    final = curve[-1]["train_loss"]
    assert not final <= 1e3 * row["loss_init"]


def test_a_trial_stops_at_its_target(make_cell):
    full, curve, _ = run_trial(job_of(make_cell()))
    target = 0.9 * full["loss_init"]
    row, short, _ = run_trial(job_of(make_cell(target_loss=target)))
    assert row["status"] == "target_reached"
    assert row["loss_final"] <= target < short[-2]["train_loss"]
    assert without_times(short)[0]["train_loss"] == curve[0]["train_loss"]
    assert row["iterations_done"] == short[-1]["iteration"] < 50


@pytest.mark.parametrize(("share", "limit"), [(0.99, 20), (1.01, 7)])
def test_a_beaten_trial_ends_within_the_limit_of_its_readings(make_cell, share, limit):
    """With the last evaluation up to there, and until then to the bit as one that goes on."""
    alone = job_of(make_cell(batch_size=100))
    whole, curve, _ = run_trial(alone)
    edge = alone.cell.stepsize.value * share * whole["eta_limit"] / whole["eta"]
    cell = make_cell(batch_size=100, stepsize=theory(edge))
    whole, curve, _ = run_trial(job_of(cell))
    row, short, _ = run_trial(job_of(cell, limits=Limits(free=7.5, stable=20.0)))
    assert (row["eta"] < row["eta_limit"]) == (share < 1)
    assert row["status"] == "beaten"
    assert without_times(short) == without_times(curve)[: len(short)]
    assert short[-1]["iteration"] <= limit + 0.5 < curve[len(short)]["iteration"]
    assert (row["iterations_done"], row["loss_final"]) == (short[-1]["iteration"], short[-1]["train_loss"])
    assert row["h"] == math.log(row["loss_init"] / row["loss_final"]) / row["iterations_done"]


def test_a_limit_cuts_none_that_arrives_or_diverges_within_it(make_cell):
    whole, *_ = run_trial(job_of(make_cell()))
    cell = make_cell(target_loss=0.9 * whole["loss_init"])
    alone, *_ = run_trial(job_of(cell))
    end = alone["iterations_done"]
    row, *_ = run_trial(job_of(cell, limits=Limits(end, end)))
    assert (row["status"], row["iterations_done"]) == ("target_reached", end)
    wild = make_cell(model=mlp(1, "identity"), stepsize=fixed(10.0), dtype="float32", target_loss=0.1)
    alone, *_ = run_trial(job_of(wild))
    row, *_ = run_trial(job_of(wild, limits=Limits(alone["iterations_done"], 0.0)))
    assert (row["status"], row["iterations_done"]) == ("diverged", alone["iterations_done"])
    row, *_ = run_trial(job_of(make_cell(), limits=Limits(50.0, 50.0)))
    assert row["status"] == "completed"


def test_one_that_was_killed_beyond_a_limit_that_it_has_since_ends_where_it_was_last_seen(
    make_cell, tmp_path, monkeypatch
):
    cell = make_cell()
    _, curve, _ = run_trial(job_of(cell))
    monkeypatch.setattr(trial_module, "STEPS_AT_ONCE", 1)
    monkeypatch.setattr(trial_module, "CHECKPOINT_SHARE", math.inf)
    job = job_of(cell, checkpoints=tmp_path, checkpoint_seconds=1e-9)
    monkeypatch.setattr(trial_module._Trial, "measure", _killed_at(16, trial_module._Trial.measure))
    with pytest.raises(KeyboardInterrupt):
        run_trial(job)
    at = Checkpoint(tmp_path / f"{cell.cell_id}.pt").load()
    last = at.curve[-1]["iteration"]
    assert last < at.iteration, "it was between two evaluations"
    row, short, _ = run_trial(replace(job, limits=Limits(1.0, 1.0)))
    assert (row["status"], row["iterations_done"]) == ("beaten", last)
    assert without_times(short) == without_times(curve)[: len(short)]


def _killed_at(iteration, measure):
    def measured(trial, t):
        if t >= iteration:
            raise KeyboardInterrupt
        measure(trial, t)

    return measured


def test_without_test_samples_and_classes_the_columns_are_null(make_cell):
    cell = make_cell(dataset="linear(n=32, d=4)", model=linear(), n=32, n_test=0, preprocessing="none", width=0)
    row, curve, _ = run_trial(job_of(cell))
    assert row["test_loss"] is None
    assert row["test_accuracy"] is None
    assert row["train_accuracy"] is None
    assert {point["test_loss"] for point in curve} == {None}


@pytest.mark.parametrize("checkpoint_seconds", [60.0, 1e-9])
def test_statistics_along_the_run_are_rows_with_the_drift(make_cell, tmp_path, checkpoint_seconds):
    job = job_of(make_cell(ntk_at=(7, 50)), checkpoints=tmp_path, checkpoint_seconds=checkpoint_seconds)
    row, curve, ntk = run_trial(job)
    assert [measured["iteration"] for measured in ntk] == [7, 50]
    assert {7, 50} <= {point["iteration"] for point in curve}
    assert {measured["cell_id"] for measured in ntk} == {row["cell_id"]}
    assert set(ntk[0]) <= set(arrow_schema("ntk").names)
    assert 0 < ntk[0]["kernel_drift"] < ntk[1]["kernel_drift"]
    assert ntk[1]["loss_init"] == pytest.approx(row["loss_final"], rel=1e-12)
    assert ntk[0]["k_op"] != job.statistics["k_op"]


def test_the_drift_is_that_of_the_dense_kernel(make_cell):
    cell = make_cell(ntk_at=(50,), n=60, k_samples=60)
    _, network, _ = prepare(Job("s", cell.init))
    dataset = load_dataset(cell.init)
    x = dataset.x
    before = oracles.jacobians(network, x).flatten(0, 1)
    row, _, (measured,) = run_trial(job_of(cell))
    eta = row["eta"]
    for batch in sampler.batches(0, 0, 50, 8, 60):
        value = ((network(x[batch]) - dataset.y[batch]) ** 2).sum() / 16
        value.backward()
        with torch.no_grad():
            for p in network.parameters():
                p -= eta * p.grad
                p.grad = None
    after = oracles.jacobians(network, x).flatten(0, 1)
    k0, k1 = before @ before.T, after @ after.T
    assert measured["kernel_drift"] == pytest.approx(((k1 - k0).norm() / k0.norm()).item(), rel=1e-8)


def test_cross_entropy_on_sequences(make_cell, monkeypatch):
    tokens = torch.randint(5, (40, 7))
    small = data.Dataset(tokens[:30, :-1], tokens[:30, 1:], tokens[30:, :-1], tokens[30:, 1:], vocabulary=5)
    monkeypatch.setattr("raysat.trial.job.load_dataset", lambda init: small)
    model = Model("gpt", (("heads", 2), ("layers", 1)))
    cell = make_cell(dataset="x", model=model, width=8, n=30, n_test=10, loss="cross_entropy", k_samples=30)
    row, curve, _ = run_trial(job_of(cell))
    assert row["status"] == "completed"
    assert row["n_outputs"] == 5
    assert row["loss_final"] < row["loss_init"] == pytest.approx(curve[0]["train_loss"])
    assert 0 <= row["test_accuracy"] <= 1
    assert row["gamma_frobenius"] is None or row["gamma_frobenius"] > 0


def test_a_failed_row_names_cell_and_error(make_cell):
    cell = make_cell()
    row = failed_row(Job("s", cell.init, cell), "Traceback\nValueError: no")
    assert set(row) <= set(arrow_schema("trials").names)
    assert (row["cell_id"], row["status"], row["error"]) == (cell.cell_id, "failed", "Traceback\nValueError: no")


@pytest.mark.parametrize(("b", "c"), [(1, 0.5), (8, 1.0), (64, 1.0)])
def test_the_mean_loss_on_least_squares_is_the_exact_recursion(make_cell, b, c):
    """Bar of the linear data set: E L(w_t) over seeds against the second-moment recursion, for b = 1, 8, n."""
    n, d, steps, runs = 64, 16, 60, 200 if b < 64 else 10  # at b = n every run is its mean
    problem = data.linear_problem(n=n, d=d)
    cell = make_cell(
        dataset=f"linear(n={n}, d={d})",
        preprocessing="none",
        model=Model("linear", has_width=False),
        width=0,
        n=n,
        n_test=0,
        k_samples=n,
        batch_size=b,
        stepsize=theory(c),
        iterations=steps,
        evaluations=6,
    )
    statistics = compute_statistics(Job("s", cell.init))
    assert statistics["gamma"] == pytest.approx(problem.gamma, rel=1e-10)
    assert statistics["k_op"] == pytest.approx(problem.k_op, rel=1e-10)
    del statistics["train_loss"]  # that of the first seed's weights
    curves, errors = [], []
    for seed in range(runs):
        init = replace(cell.init, seed=seed)
        job = Job("s", init, replace(cell, init=init), statistics=statistics)
        curves.append([point["train_loss"] for point in run_trial(job)[1]])
        weights = prepare(job)[1].get_parameter("1.weight")
        errors.append(weights.detach().numpy()[0] - problem.w_bar)
    iterations = [point["iteration"] for point in run_trial(job)[1]]
    eta = c / beta(b, n, problem.gamma, problem.k_op)
    expected = oracles.least_squares_recursion(problem.x, np.array(errors), eta, b, steps)[iterations]
    mean, spread = np.mean(curves, 0), np.std(curves, 0, ddof=1) / runs**0.5
    if b == n:
        np.testing.assert_allclose(mean, expected, rtol=1e-10)
    else:
        # The batches of a seed are the only randomness that the recursion averages over; the weights are given.
        assert (np.abs(mean - expected) <= 3 * spread + 1e-12).all()
        assert (spread < 0.2 * expected).all()


def test_statistics_along_a_run_that_fail_are_rows_and_the_trial_goes_on(make_cell, monkeypatch):
    cell = make_cell(ntk_at=(5, 10), iterations=20)
    job = job_of(cell)

    def fail(*_, **__):
        raise RuntimeError("no second derivative")

    monkeypatch.setattr("raysat.trial.initial.ntk_statistics", fail)
    row, _, ntk = run_trial(job)
    assert row["status"] == "completed"
    found = [(one["iteration"], one["method"], one["gamma"]) for one in ntk]
    assert found == [(5, "failed", None), (10, "failed", None)]
    assert ntk[0]["method_reason"] == "RuntimeError: no second derivative"


def test_a_job_leaves_the_random_generators_where_they_were(make_cell):
    import random

    def states():
        return (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())

    before = states()
    run_trial(job_of(make_cell(iterations=5)))
    assert states() == before
