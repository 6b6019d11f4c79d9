from itertools import count

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raysat import mlp, models
from raysat.losses import LOSSES
from raysat.models.resnet import resnet
from raysat.sgd.asynchronous import PLACES, AsynchronousEngine, mean_staleness, share_beyond, slots
from raysat.sgd.autograd import AutogradEngine
from raysat.sgd.problem import Problem
from raysat.sgd.sampler import batches

LOSS, ETA, B, N = LOSSES["mse"], 0.3, 4, 30
MEASURED = (0.1, 0.2, 0.0, 0.7)


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 5, generator=generator)
    return x, torch.randn(N, 2, generator=generator)


def network(seed=0):
    return models.build(mlp(2), 8, (5,), 2, seed)


def engine(problem, learners, staleness="round_robin", seed=0):
    return AsynchronousEngine(Problem(network(), *problem, LOSS), ETA, learners, staleness, seed)


def weights(engine):
    return torch.cat([parameter.detach().flatten() for parameter in engine.network.parameters()])


def replayed(problem, taus, seed=0):
    """The definition: every past weight is kept, and step t's gradient is taken at w_{t - tau_t}."""
    x, y = problem
    net = network()
    past = [[p.detach().clone() for p in net.parameters()]]
    for t, (batch, tau) in enumerate(zip(batches(seed, 0, len(taus), B, N), taus, strict=True)):
        for p, old in zip(net.parameters(), past[t - tau], strict=True):
            p.data = old.clone()
        g = torch.autograd.grad(LOSS.total(net(x[batch]), y[batch]) / B, list(net.parameters()))
        past.append([w - ETA * d for w, d in zip(past[-1], g, strict=True)])
    return torch.cat([w.flatten() for w in past[-1]])


@pytest.mark.parametrize("staleness", ["round_robin", "random", (1.0,)])
def test_one_learner_is_sgd_bit_for_bit(problem, staleness):
    one, sgd = engine(problem, 1, staleness), AutogradEngine(Problem(network(), *problem, LOSS), ETA)
    for start in (0, 7):
        one.run(batches(0, start, 7, B, N))
        sgd.run(batches(0, start, 7, B, N))
        assert torch.equal(weights(one), weights(sgd))
    assert one.counts.tolist() == [14]


def test_one_learner_is_sgd_bit_for_bit_with_batch_norm_too():
    x, y = torch.randn(12, 3, 8, 8), torch.randn(12, 2)
    nets = [models.build(resnet(depth=10, norm="batch", ghost=3), 4, (3, 8, 8), 2, 0) for _ in range(2)]
    AsynchronousEngine(Problem(nets[0], x, y, LOSS), 0.1, 1).run(batches(0, 0, 3, 6, 12))
    AutogradEngine(Problem(nets[1], x, y, LOSS), 0.1).run(batches(0, 0, 3, 6, 12))
    for a, b in zip(nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_two_learners_in_turn_are_the_reference(problem):
    """Ten lines: each step is taken at the newest weights with a gradient of those before them."""
    x, y = problem
    net = network()
    stale = [p.detach().clone() for p in net.parameters()]
    for batch in batches(0, 0, 20, B, N):
        fresh = [p.detach().clone() for p in net.parameters()]
        for p, old in zip(net.parameters(), stale, strict=True):
            p.data = old.clone()
        g = torch.autograd.grad(LOSS.total(net(x[batch]), y[batch]) / B, list(net.parameters()))
        for p, new, d in zip(net.parameters(), fresh, g, strict=True):
            p.data = new - ETA * d
        stale = fresh
    two = engine(problem, 2)
    two.run(batches(0, 0, 20, B, N))
    torch.testing.assert_close(weights(two), weights(type("", (), {"network": net})), rtol=1e-6, atol=1e-7)
    assert two.counts.tolist() == [1, 19]


@pytest.mark.parametrize(("learners", "staleness"), [(4, "round_robin"), (3, "random"), (9, MEASURED)])
def test_steps_are_the_definition_with_the_staleness_that_was_counted(problem, learners, staleness):
    run = engine(problem, learners, staleness, seed=5)
    taus = []
    for t in range(25):
        before = run.counts.clone()
        run.run(batches(5, t, 1, B, N))
        change = run.counts.clone()
        change[: len(before)] -= before
        taus.append(int(change.argmax()))
    torch.testing.assert_close(weights(run), replayed(problem, taus, 5), rtol=1e-5, atol=1e-6)
    if staleness == "round_robin":
        assert taus == [min(t, 3) for t in range(25)]
    elif staleness == MEASURED:
        assert set(taus[3:]) <= {0, 1, 3}
    assert len(run.stale) == (4 if staleness == MEASURED else learners)


@pytest.mark.parametrize(("learners", "staleness"), [(3, "round_robin"), (3, "random"), (2, MEASURED)])
def test_a_run_that_was_stopped_goes_on_in_the_same_bits(problem, learners, staleness):
    whole, first, second = (engine(problem, learners, staleness) for _ in range(3))
    whole.run(batches(0, 0, 20, B, N))
    first.run(batches(0, 0, 9, B, N))
    second.network.load_state_dict(first.network.state_dict())
    second.load_state_dict(first.state_dict())
    second.run(batches(0, 9, 11, B, N))
    assert torch.equal(weights(whole), weights(second))
    assert torch.equal(whole.counts, second.counts)


def test_random_staleness_is_geometric():
    """P(tau = k) = (1 - 1/p)^k / p: the others arrive k times before the learner does."""
    p, steps = 4, 100_000
    order = slots("random", p, 0, 0, steps)[:, 0].tolist()
    last, taus = dict.fromkeys(range(p), 0), []
    for t, learner in enumerate(order):
        taus.append(t - last[learner])
        last[learner] = t + 1
    counts = torch.tensor(taus[100:]).bincount()
    assert mean_staleness(counts) == pytest.approx(p - 1, rel=0.02)
    for k in range(4):
        assert counts[k] / counts.sum() == pytest.approx((1 - 1 / p) ** k / p, abs=0.005)


def test_measured_staleness_has_its_own_frequencies():
    pairs = slots((1.0, 2.0, 0.0, 7.0), 1, 0, 0, 50_000)
    tau = (torch.arange(50_000) - pairs[:, 0]) % 4
    assert torch.equal(pairs[:, 1], (torch.arange(50_000) + 1) % 4)
    for value, share in enumerate((0.1, 0.2, 0.0, 0.7)):
        assert (tau[3:] == value).double().mean().item() == pytest.approx(share, abs=0.01)


def test_a_straggler_does_not_take_memory_for_all_that_it_missed(problem):
    """One gradient in four of 3,000 steps ago: it counts as the stalest that is kept."""
    straggling = (3.0, *[0.0] * 2998, 1.0)
    run = engine(problem, 2, straggling)
    assert len(run.stale) == 2 * PLACES
    run.run(batches(0, 0, 400, B, N))
    assert run.counts[2 * PLACES - 1 :].tolist() == [run.counts[-1].item()]
    assert run.counts[-1] / 400 == pytest.approx(0.25, abs=0.08)
    assert share_beyond(straggling, 2) == 0.25
    assert share_beyond(MEASURED, 2) == 0


def test_of_random_arrivals_hardly_any_is_staler_than_what_is_kept():
    for p in (2, 4, 16, 1000):
        geometric = tuple((1 - 1 / p) ** k / p for k in range(40 * p))
        assert share_beyond(geometric, p) < 3.4e-4


@given(st.sampled_from(["round_robin", "random", MEASURED]), st.integers(0, 2**40), st.integers(1, 5))
def test_a_draw_depends_on_seed_and_step_alone(staleness, start, learners):
    coupled_group_size = slots(staleness, learners, 3, start, 5)
    apart = torch.cat([slots(staleness, learners, 3, start + k, 1) for k in range(5)])
    assert torch.equal(coupled_group_size, apart)


def test_gradients_that_are_staler_end_elsewhere(problem):
    ends = []
    for learners in (1, 2, 4):
        run = engine(problem, learners)
        run.run(batches(0, 0, 10, B, N))
        ends.append(weights(run))
    assert all(not torch.allclose(a, b) for a, b, _ in zip(ends, ends[1:], count(), strict=False))
