import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysat import InputError
from raysat.spec.cells import identity
from raysat.spec.labels import beyond_theory, transform_in
from raysat.spec.training import SCHEDULES, Training, asynchronous, factor, iterations_of


def test_the_default_is_plain_sgd():
    assert Training().is_plain
    assert Training().label == "sgd"
    assert asynchronous(1) == Training()
    assert not asynchronous(2).is_plain
    assert not asynchronous(1, [0.5, 0.5]).is_plain
    assert Training(scaling="sqrt", base_batch=8, adapt_regime=True).is_plain  # other stepsize, other T, same steps


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Training(), Training(momentum=0.5)),
        (Training(), Training(base_batch=8)),
        (Training(), asynchronous(1, "random")),
        (Training(), asynchronous(1, [3])),  # never stale
        (Training("adam"), Training("adam", momentum=0.5, base_batch=4, staleness="random")),
        (asynchronous(3, [1, 2]), asynchronous(3, [50, 100, 0])),
        (asynchronous(3, "random"), asynchronous(3, "random", momentum=0.5, base_batch=2)),
    ],
)
def test_trainings_that_train_alike_are_equal(make_cell, one, other):
    assert one == other
    assert one.label == other.label
    assert make_cell(training=one).cell_id == make_cell(training=other).cell_id
    assert dataclasses.replace(other) == other  # and stay so


def test_the_default_adds_nothing_to_an_identity():
    assert identity(Training()) == identity({})


@given(st.lists(st.integers(0, 10**6), min_size=2).filter(any), st.integers(1, 1000))
def test_measured_counts_matter_by_their_ratio(counts, times):
    training = asynchronous(2, counts)
    assert training == asynchronous(2, [times * count for count in counts]) == dataclasses.replace(training)


@pytest.mark.parametrize(
    ("scaling", "factors"), [("none", (1, 1, 1)), ("linear", (0.25, 1, 16)), ("sqrt", (0.5, 1, 4))]
)
def test_scaling_is_its_formula(scaling, factors):
    training = Training(scaling=scaling, base_batch=8)
    assert tuple(training.stepsize_factor(b) for b in (2, 8, 128)) == factors


def test_a_budget_of_samples_gives_iterations():
    plain, adapted = Training(), Training(adapt_regime=True, base_batch=4)
    assert [iterations_of(1000, b, plain) for b in (1, 3, 64, 3000)] == [1000, 333, 16, 1]
    assert [iterations_of(1000, b, adapted) for b in (1, 3, 64, 3000)] == [250] * 4


@pytest.mark.parametrize("samples", [math.inf, 10**400])
def test_a_budget_of_more_iterations_than_can_be_counted_is_refused(samples):
    with pytest.raises(InputError, match="than can be counted: lower them"):
        iterations_of(samples, 1, Training())


@given(st.sampled_from(SCHEDULES), st.integers(1, 500), st.data())
def test_schedules_fall_from_one_and_stay_positive(schedule, iterations, data):
    t = data.draw(st.integers(0, iterations - 1))
    assert 0 < factor(schedule, t, iterations) <= factor(schedule, 0, iterations) == 1
    assert factor(schedule, t, iterations) == pytest.approx(factor(schedule, 7 * t, 7 * iterations))  # stretched


def test_labels_tell_trainings_apart():
    trainings = [
        Training(),
        Training("momentum"),
        Training("momentum", momentum=0.5),
        Training("nesterov"),
        Training("adam"),
        Training(schedule="cosine"),
        *(Training(scaling=scaling, base_batch=base) for scaling in ("linear", "sqrt") for base in (8, 16)),
        *(Training(base_batch=8, noise=noise, adapt_regime=not noise) for noise in (True, False)),
        Training("momentum", momentum=0.9000001),
        *(asynchronous(p, staleness) for p in (2, 3) for staleness in ("round_robin", "random", [1, 2])),
        *(asynchronous(2, [count, 1]) for count in (10**6, 10**6 + 1)),
        *(Training("adamw", options={"weight_decay": decay, "betas": (0.9, 0.95)}) for decay in (0, 0.1)),
        *(Training(options={"weight_decay": decay}) for decay in (0.1, 0.2)),
        *(Training("adam", scaling=scaling, base_batch=8) for scaling in ("adam_sqrt", "half_life")),
        *(Training(clip=clip) for clip in (1.0, 2.0)),
        *(Training(warmup=8), Training(warmup=16), Training(warmup_samples=8)),
        Training(schedule="linear"),
        *(Training(schedule=name) for name in ("LinearLR", "CosineAnnealingLR", "my:schedule")),
        *(Training(schedule="StepLR", schedule_options={"step_size": size}) for size in (10, 20)),
        *(Training(label_smoothing=share) for share in (0.1, 0.2)),
        *(Training(average=average) for average in (0.9, 0.99, "uniform")),
        *(Training(name, transform=path) for name in ("sgd", "adamw") for path in ("my:flip", "my:crop")),
    ]
    assert len({training.label for training in trainings}) == len(trainings)
    for training in trainings:
        assert (not beyond_theory(training.label)) == training.is_plain, training
        assert transform_in(training.label) == training.transform
    assert Training("momentum", schedule="step", scaling="sqrt", base_batch=8).label == (
        "momentum 0.9, step schedule, sqrt scaling from 8"
    )
    long = asynchronous(4, list(range(1, 1000))).label
    assert long.startswith("4 learners measured (mean 665, ")
    assert len(long) < 50


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Training("lion"), "optimizer='lion': use one of sgd"),
        (lambda: Training(schedule="exponential"), "schedule='exponential': use one of constant"),
        (lambda: Training(scaling="sqrt"), "give base_batch"),
        (lambda: Training(noise=True), "give base_batch"),
        (lambda: Training("momentum", momentum=1.0), "below 1"),
        (lambda: asynchronous(0), "learners has 0"),
        (lambda: asynchronous(2, "often"), "staleness='often': use 'round_robin'"),
        (lambda: asynchronous(2, [0, 0]), "use 'round_robin'"),
        (lambda: asynchronous(2, optimizer="adam"), "plain SGD: leave out its optimizer"),
        (lambda: asynchronous(2, speed=3), "no such field"),
        (lambda: asynchronous(2, clip=1.0), "plain SGD: leave out its optimizer"),
        (lambda: Training("adamw", options=[0.1]), "options=.*give a dictionary"),
        (lambda: Training("adamw", options={"lr": 0.1}), "the sweep's stepsizes are the learning rates"),
        (lambda: Training("adamw", options={"weight decay": 0.1}), "give names of arguments"),
        (lambda: Training("adamw", options={"betas": {"a": [1]}}), "options has betas"),
        (lambda: Training("adamw", options={"betas": [[0.9], [0.95]]}), "options has betas"),
        (lambda: Training("adamw", options={"weight_decay": len}), "options has weight_decay"),
        (lambda: Training("adamw", options={"weight_decay": math.nan}), "options has weight_decay"),
        (lambda: Training(noise="no", base_batch=2), "noise='no': give True or False"),
        (lambda: Training(adapt_regime=1, base_batch=2), "adapt_regime=1: give True or False"),
        (lambda: Training(clip=-1.0), "clip has -1.0"),
        (lambda: Training(warmup=-1), "warmup has -1"),
        (lambda: Training(warmup=1, warmup_samples=1), "give one of them"),
        (lambda: Training(schedule="StepLR", schedule_options=[1]), 'such as {"step_size": 100}'),
        (lambda: Training(schedule="cosine", schedule_options={"eta_min": 0.1}), "leave schedule_options out"),
        (lambda: Training(schedule="ReduceLROnPlateau"), "follows a metric"),
        (lambda: Training(schedule="LambdaLR"), "use one of constant.*StepLR, module:name"),
        (lambda: Training(label_smoothing=1), "label_smoothing=1: give a number from 0 to below 1, such as 0.1"),
        (lambda: Training(average="polyak"), "average='polyak': give a number .*, or 'uniform'"),
        (lambda: Training(average=-0.1), "average=-0.1: give a number"),
        (lambda: asynchronous(2, label_smoothing=0.1), "plain SGD: leave out"),
        (lambda: asynchronous(2, average=0.9), "plain SGD: leave out"),
        (lambda: Training("muon", scaling="adam_sqrt", base_batch=8), "is of adam, adamw"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(build, words):
    with pytest.raises(InputError, match=words):
        build()
