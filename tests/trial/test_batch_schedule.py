"""Batches that grow along a run, against loops of plain PyTorch in float64."""

import math
from dataclasses import replace
from itertools import chain

import pytest
import torch

import raysat
from raysat import InputError, Sweep, Training, asynchronous, fixed, mlp, models
from raysat.analysis.recommendation import recommendations
from raysat.sgd import cost
from raysat.sgd.engine import AutogradEngine
from raysat.sgd.sampler import Batches, batches
from raysat.spec.phases import as_schedule, in_label
from raysat.spec.training import iterations_of
from raysat.sweep import main
from raysat.trial import train as trial_module
from raysat.trial.job import Job, load_dataset
from raysat.trial.train import run_trial

GROWING, B, T, ETA = ((10, 2), (30, 4)), 8, 50, 0.02


def adam_of(kappa):
    """Malladi et al. 2022, definition 5.2."""
    return {"betas": (1 - 0.1 * kappa, 1 - 0.001 * kappa), "eps": 1e-8 / math.sqrt(kappa)}


CASES = {
    "constant stepsize": (Training(), torch.optim.SGD, lambda kappa: {"lr": ETA}),
    "linear": (Training(scaling="linear", base_batch=B), torch.optim.SGD, lambda kappa: {"lr": ETA * kappa}),
    "sqrt, cosine": (
        Training("momentum", scaling="sqrt", base_batch=4, schedule="cosine"),
        lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9),
        lambda kappa: {"lr": ETA * math.sqrt(2 * kappa)},
    ),
    "adam_sqrt": (
        Training("adam", scaling="adam_sqrt", base_batch=B),
        torch.optim.Adam,
        lambda kappa: {"lr": ETA * math.sqrt(kappa), **adam_of(kappa)},
    ),
}


def job_of(cell, **changes):
    return Job(sweep="s", init=cell.init, cell=cell, **changes)


def by_hand(cell, made, settings):
    """L(w_T) of a loop of plain PyTorch."""
    data, init = load_dataset(cell.init), cell.init
    network = models.build(init.model, init.width, data.input_shape, data.outputs, init.seed).double()
    optimizer = made(network.parameters(), lr=ETA)
    for t in range(T):
        factor = 1 if t < 10 else 2 if t < 30 else 4
        (batch,) = batches(init.seed, t, 1, factor * B, init.n)
        optimizer.param_groups[0].update(settings(factor))
        if cell.training.schedule == "cosine":
            optimizer.param_groups[0]["lr"] *= (1 + math.cos(math.pi * t / T)) / 2
        optimizer.zero_grad()
        ((network(data.x[batch]) - data.y[batch]).square().sum() / (2 * len(batch))).backward()
        optimizer.step()
    with torch.no_grad():
        return float((network(data.x) - data.y).square().sum() / (2 * init.n))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_the_loop_of_plain_pytorch(make_cell, monkeypatch, case):
    training, made, settings = case
    micro_batch = 5 if training.scaling == "linear" else None
    cell = make_cell(stepsize=fixed(ETA), training=replace(training, batch_schedule=GROWING))
    if micro_batch:
        monkeypatch.setattr(trial_module, "micro_batch_of", lambda *_: micro_batch)
    row, curve, _ = run_trial(job_of(cell))
    assert row["loss_final"] == pytest.approx(by_hand(cell, made, settings), rel=1e-10)
    assert row["micro_batch"] == (micro_batch or 32)
    assert (row["batch_size"], row["eta_limit"]) == (B, None)
    samples = [8 * t + 8 * max(0, t - 10) + 16 * max(0, t - 30) for t in range(T + 1)]
    assert [point["samples"] for point in curve] == [samples[point["iteration"]] for point in curve]


@pytest.mark.parametrize("stop_at", [10, 17, 40])
def test_a_trial_that_was_killed_ends_in_the_same_bits(make_cell, tmp_path, monkeypatch, stop_at):
    training = Training("adam", scaling="half_life", base_batch=B, batch_schedule=(*GROWING, (40, 1, 7)))
    cell = make_cell(training=training, stepsize=fixed(ETA), dtype="float32", sampling="epochs")
    whole, *_ = run_trial(job_of(cell))
    job = job_of(cell, checkpoints=tmp_path, checkpoint_seconds=1e-9)
    steps = iter(range(1000))

    def killed(inner, *arguments, gradients=AutogradEngine.gradients):
        if next(steps) == stop_at:
            raise KeyboardInterrupt
        return gradients(inner, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trial_module, "CHECKPOINT_SHARE", 1e9)
        patch.setattr(trial_module, "STEPS_AT_ONCE", 1)
        patch.setattr(AutogradEngine, "gradients", killed)
        with pytest.raises(KeyboardInterrupt):
            run_trial(job)
    row, *_ = run_trial(job)
    assert row["attempts"] == 2
    assert row["loss_final"] == whole["loss_final"]
    assert row["distance_from_init"] == whole["distance_from_init"]


def drawn(sampling, schedule, steps=20, n=30):
    made = Batches(3, steps, 2, n, sampling, "cpu", as_schedule(schedule))
    return [made.take(t, 1)[0].tolist() for t in range(steps)]


@pytest.mark.parametrize("sampling", ["without_replacement", "with_replacement", "epochs"])
def test_the_samples_before_a_phase_are_those_of_a_run_without_it_and_a_draw_has_its_own(sampling):
    plain = drawn(sampling, ())
    grown, redrawn, again = (drawn(sampling, [(7, *more)]) for more in [(3,), (3, 1), (3, 2)])
    assert plain[:7] == grown[:7] == redrawn[:7] == again[:7]
    assert [len(batch) for batch in grown] == 7 * [2] + 13 * [6]
    assert all(one != other for one, other in zip(grown[7:], redrawn[7:], strict=True))
    assert all(one != other for one, other in zip(again[7:], redrawn[7:], strict=True))


def test_passes_go_on_through_a_phase_and_begin_with_a_draw():
    one_by_one = batches(3, 0, 200, 1, 30, "epochs").flatten().tolist()
    grown = [*chain(*drawn("epochs", [(7, 3), (9, 1)]))]
    assert grown == one_by_one[: len(grown)]
    redrawn = [*chain(*drawn("epochs", [(7, 3, 1)])[7:])]
    assert all(sorted(redrawn[k : k + 30]) == list(range(30)) for k in (0, 30))


def test_a_budget_of_samples_is_used_up():
    training = Training(batch_schedule=GROWING)
    assert iterations_of(80, 8, training) == 10
    assert iterations_of(80 + 320 + 10 * 32, 8, training) == 40
    assert iterations_of(7 * 8, 8, training) == 7


def test_operations_are_counted_for_the_batches_there_are(make_cell):
    plain, grown = make_cell(), make_cell(training=Training(batch_schedule=GROWING))
    flops, time = cost.Flops(10, 30), cost.StepTime(1.0, 0.5, 0.0)
    assert (plain.samples_at(T), grown.samples_at(T)) == (400, 80 + 320 + 640)
    assert flops.of_steps(grown) == 30 * 1040
    assert time.seconds(grown) == 50 + 0.5 * 1040
    assert grown.largest_batch == 32


def test_what_changes_nothing_is_left_out_and_a_label_says_it_all(make_cell):
    assert Training(batch_schedule=((0, 1), (5, 1))) == Training()
    assert Training(batch_schedule=[[5, 2], [9, 2], [12, 1]]) == Training(batch_schedule=((5, 2), (12, 1)))
    for schedule in ((), GROWING, ((0, 1, 3), (5, 4, 2))):
        training = Training("adam", scaling="half_life", base_batch=4, batch_schedule=schedule)
        assert in_label(training.label) == training.batch_schedule
        assert replace(training) == training
    ids = {make_cell(training=Training(batch_schedule=one)).cell_id for one in ((), ((5, 2),), ((5, 2, 1),), ((6, 2),))}
    assert len(ids) == 4
    assert not Training(batch_schedule=GROWING).is_plain


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (3, "give a list"),
        ([(100,)], "give pairs of an iteration and a whole factor"),
        ([(100, 0)], "give whole numbers of at least 1"),
        ([(100, 1.5)], "give whole numbers of at least 1"),
        ([(-1, 2)], "give whole numbers of at least 0"),
        ([(100, 2), (100, 4)], "give iterations that rise"),
    ],
)
def test_what_is_no_schedule_is_refused(schedule, words):
    with pytest.raises(InputError, match=words):
        Training(batch_schedule=schedule)


def test_what_it_cannot_go_with_is_refused():
    with pytest.raises(InputError, match=r"asynchronous.* is plain SGD"):
        asynchronous(2, batch_schedule=GROWING)
    with pytest.raises(InputError, match="leave one out"):
        Training(noise=True, base_batch=4, batch_schedule=GROWING)
    axes = {"dataset": "digits", "models": [mlp(1)], "widths": [8], "batch_sizes": [4], "stepsizes": [fixed(0.1)]}
    own = {"iterations": 50, "trainings": [Training(batch_schedule=GROWING)]}
    for asked, words in (({"ranks_per_trial": 2}, "set it to 1"), ({"engine": "fused"}, "set engine='auto'")):
        with pytest.raises(InputError, match=words):
            Sweep("s", **axes, **own, **asked)
    with pytest.raises(InputError, match=r"makes batches of 16 at b = 4, .* 15 training samples: lower it"):
        Sweep("s", **axes, **own).cells(15, 0)
    with pytest.raises(InputError, match="has 30, after the last of 30 iterations at b = 4: lower it"):
        Sweep("s", **axes, **own | {"iterations": 30}).cells(100, 0)


SWEEP = """
from raysat import Sweep, Training, fixed, mlp
sweep = Sweep(name="small", dataset="digits", n_train=64, models=[mlp(1)], widths=[8], batch_sizes=[1, 2, 4, 8],
              stepsizes=[fixed(0.05)], iterations=30, trainings=[Training(batch_schedule=((10, 4),))])
"""


def run(tmp_path, text):
    (tmp_path / "small.py").write_text(text)
    return main([str(tmp_path / "small.py"), "--results", str(tmp_path / "results"), "--inline"])


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ("Training(batch_schedule=((10, 16),))", "batches of 128 at b = 8"),
        ("Training('adam', scaling='adam_sqrt', base_batch=1, batch_schedule=((10, 4),))", "adam_sqrt"),
        (
            "Training(schedule='StepLR', schedule_options={'step_size': 9}, scaling='linear', base_batch=1, "
            "batch_schedule=((10, 4),))",
            "do not follow a batch_schedule",
        ),
    ],
)
def test_what_a_plan_finds_is_one_line_and_exit_code_2(tmp_path, capsys, training, words):
    assert run(tmp_path, SWEEP.replace("Training(batch_schedule=((10, 4),))", training)) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert words in line


def test_the_theory_is_silent_and_nothing_takes_samples_for_b_N(tmp_path, monkeypatch):
    monkeypatch.setattr("raysat.report.finish", lambda *_: None)
    assert run(tmp_path, SWEEP) == 0
    found = raysat.load(tmp_path / "results" / "small")
    assert set(found.trials["training"]) == {"4 x batch from 10"}
    made = found.fit()
    assert set(made.fits["unpredicted"]) == {"the theory is of fixed-stepsize SGD"}
    assert made.costs.empty
    assert made.choices.empty
    assert made.points["value"].notna().any()
    tuned = made.fits.assign(stepsize="grid")
    assert "batches grow along the run" in recommendations(tuned, made.points)[0].sentence
