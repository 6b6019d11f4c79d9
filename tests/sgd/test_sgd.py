import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from raysat import mlp, models
from raysat.losses import LOSSES
from raysat.sgd import sampler
from raysat.sgd.engine import AutogradEngine
from raysat.sgd.evaluate import evaluate
from raysat.sgd.problem import Problem
from raysat.sgd.sampler import Batches, batches
from raysat.sgd.schedule import evaluation_iterations

seeds = st.integers(0, 2**63 - 1)
RECORDED = {
    "without_replacement": [[37830, 37182, 47489, 36317], [4310, 11100, 21469, 45525]],
    "with_replacement": [[18684, 49580, 10907, 1166], [42676, 48374, 3317, 27235]],
    "epochs": [[22834, 43218, 24351, 8339], [49383, 39949, 499, 27338]],
}


def assert_uniform(outcomes, kinds):
    """A chi-square test at a level at which a sound generator fails once in 10^6 seeds; the seeds are fixed."""
    _, counts = outcomes.unique(dim=0, return_counts=True)
    assert len(counts) == kinds
    expected = len(outcomes) / kinds
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    assert statistic < chi2.isf(1e-6, kinds - 1)


@given(seeds, st.integers(0, 2**40), st.integers(1, 300), st.data())
def test_a_batch_without_replacement_is_a_subset(seed, start, n, data):
    b = data.draw(st.integers(1, n))
    drawn = batches(seed, start, 3, b, n).sort(1).values
    assert drawn.min() >= 0
    assert drawn.max() < n
    assert (drawn[:, 1:] > drawn[:, :-1]).all()


@pytest.mark.parametrize(("n", "b"), [(2, 1), (3, 1), (3, 2), (5, 2), (8, 3), (17, 2), (10, 9)])
def test_every_subset_is_equally_likely(n, b):
    assert_uniform(batches(1, 0, 60_000, b, n).sort(1).values, math.comb(n, b))


def test_consecutive_batches_are_independent():
    drawn = batches(7, 0, 100_001, 1, 12)
    assert_uniform(torch.cat([drawn[:-1], drawn[1:]], 1), 144)


def test_the_same_step_of_two_seeds_is_independent():
    assert_uniform(torch.cat([batches(0, 0, 50_000, 1, 12), batches(1, 0, 50_000, 1, 12)], 1), 144)


def test_with_replacement_draws_independently():
    assert_uniform(batches(3, 0, 100_000, 3, 5, "with_replacement"), 125)


@given(seeds, st.integers(1, 60), st.integers(1, 60))
def test_epochs_pass_over_every_sample_once(seed, n, b):
    drawn = batches(seed, 0, 2 * n, min(b, n), n, "epochs").flatten()
    for epoch in drawn.split(n)[: len(drawn) // n]:
        assert torch.equal(epoch.sort().values, torch.arange(n))


def test_epochs_are_shuffled_uniformly_and_anew():
    assert_uniform(batches(5, 0, 50_000, 4, 4, "epochs"), 24)


@pytest.mark.slow
@given(seeds, st.sampled_from(["without_replacement", "with_replacement", "epochs"]), st.integers(0, 1000))
def test_a_batch_depends_on_seed_and_step_alone(seed, sampling, start):
    coupled_group_size = batches(seed, start, 5, 4, 50, sampling)
    apart = torch.cat([batches(seed, start + k, 1, 4, 50, sampling) for k in range(5)])
    assert torch.equal(coupled_group_size, apart)


def test_the_draws_are_the_same_on_every_machine():
    """Recorded values: a change here changes every result."""
    assert batches(0, 0, 2, 4, 60_000).tolist() == RECORDED["without_replacement"]
    assert batches(0, 0, 2, 4, 60_000, "with_replacement").tolist() == RECORDED["with_replacement"]
    assert batches(0, 0, 2, 4, 60_000, "epochs").tolist() == RECORDED["epochs"]


def murmur(word):
    """MurmurHash3's finalizer in Python's integers."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        word = (word ^ word >> shift) * factor % 2**32
    return word


def shuffled(seed, step, position, n):
    """The sample at a position of a step's permutation, in Python's integers."""
    key = 0x9E3779B9
    for word, constant in ((seed, 0), (seed >> 32, 0), (step, 0x9E3779B9), (step >> 32, 0x9E3779B9)):
        key = murmur((key + word + constant) % 2**32)
    bits = max((n - 1).bit_length(), 2)
    low = bits // 2
    while True:
        left, right = position >> low, position % 2**low
        for turn in range(0, 24, 2):
            left ^= murmur(key ^ (right << 8 | turn) * 0x9E3779B1 % 2**32) % 2 ** (bits - low)
            right ^= murmur(key ^ (left << 8 | turn + 1) * 0x9E3779B1 % 2**32) % 2**low
        position = left << low | right
        if position < n:
            return position


@given(seeds, st.integers(0, 2**40), st.integers(4, 2**40))
def test_a_batch_is_the_start_of_a_feistel_networks_permutation(seed, step, n):
    assert batches(seed, step, 2, 3, n).tolist() == [
        [shuffled(seed, step + k, position, n) for position in range(3)] for k in range(2)
    ]


@pytest.mark.slow
@given(st.sampled_from(["without_replacement", "with_replacement", "epochs"]), st.data())
def test_what_is_drawn_ahead_is_what_would_be_drawn_in_time(sampling, data):
    steps, b = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 9))
    ahead = Batches(4, steps, b, 9, sampling, "cpu")
    ahead.at_once = data.draw(st.integers(1, 20))
    start = data.draw(st.integers(0, steps - 1))  # where a trial goes on
    while start < steps:
        count = data.draw(st.integers(1, steps - start))
        assert torch.equal(ahead.take(start, count), batches(4, start, count, b, 9, sampling))
        start += count


def test_no_more_is_drawn_than_a_trial_has_or_memory_allows(monkeypatch):
    drawn = []

    def counting(seed, start, steps, **rest):
        drawn.append((start, steps))
        return batches(seed, start, steps, **rest)

    monkeypatch.setattr(sampler, "batches", counting)
    short, large = (Batches(0, 400, b, 60_000, "epochs", "cpu") for b in (1, 50_000))
    for start in range(0, 400, 100):
        short.take(start, 100)
    for start in range(3):
        large.take(start, 1)
    assert drawn == [(0, 400), (0, 1), (1, 1), (2, 1)]


def test_the_full_batch_is_every_sample_in_order():
    assert batches(9, 4, 2, 6, 6).tolist() == [[0, 1, 2, 3, 4, 5]] * 2


@given(st.integers(1, 10**6), st.integers(2, 60))
def test_the_schedule_has_both_ends_and_about_the_count(iterations, evaluations):
    schedule = evaluation_iterations(iterations, evaluations)
    assert schedule[0] == 0
    assert schedule[-1] == iterations
    assert schedule == sorted(set(schedule))
    assert len(schedule) <= evaluations + 1


def test_the_schedule_is_log_spaced():
    schedule = evaluation_iterations(4000, 30)
    assert len(schedule) >= 25
    assert max(b / a for a, b in pairwise(schedule[10:])) < 1.4


@pytest.mark.parametrize("classes", [True, False])
def test_evaluation_is_equation_2_1_whatever_the_chunk(classes):
    network = models.build(mlp(1), 8, (4,), 3, 0).double()
    x = torch.randn(25, 4, dtype=torch.float64)
    y = torch.eye(3, dtype=torch.float64)[torch.randint(3, (25,))]
    evaluation = evaluate(network, x, y, LOSSES["mse"], classes=classes, chunk=7)
    outputs = network(x)
    assert evaluation.loss == pytest.approx(((outputs - y) ** 2).sum().item() / 50, rel=1e-12)
    if classes:
        assert evaluation.accuracy == (outputs.argmax(1) == y.argmax(1)).double().mean().item()
    else:
        assert math.isnan(evaluation.accuracy)


def test_a_step_is_the_papers_formula():
    network = models.build(mlp(2), 8, (4,), 3, 0).double()
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    reference = models.build(mlp(2), 8, (4,), 3, 0).double()
    chosen = batches(0, 0, 10, 5, 20)
    AutogradEngine(Problem(network, x, y, LOSSES["mse"]), eta=0.05).run(chosen)
    for batch in chosen:
        total = [torch.zeros_like(p) for p in reference.parameters()]
        for i in batch:
            outputs = reference(x[i][None])[0]
            residual = (outputs - y[i]).detach()
            for k, gradient in enumerate(torch.autograd.grad(outputs, list(reference.parameters()), residual)):
                total[k] += gradient / len(batch)
        with torch.no_grad():
            for parameter, gradient in zip(reference.parameters(), total, strict=True):
                parameter -= 0.05 * gradient
    for a, b in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_frozen_parameters_stay():
    network = models.build(mlp(1), 8, (4,), 3, 0)
    first = next(network.parameters())
    first.requires_grad_(False)
    before = first.clone()
    x, y = torch.randn(5, 4), torch.randn(5, 3)
    AutogradEngine(Problem(network, x, y, LOSSES["mse"]), 0.1).run(torch.zeros(3, 1, dtype=torch.int64))
    assert torch.equal(first, before)
