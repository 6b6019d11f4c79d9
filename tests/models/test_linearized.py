import pytest
import torch

from raysat import InputError, linearized, mlp, models
from raysat.trial.initial import compute_statistics
from raysat.trial.job import Job
from raysat.trial.train import run_trial


def pair(**options):
    model = mlp(2, "tanh", **options)
    return [models.build(each, 16, (4,), 3, seed=0).double() for each in (model, linearized(model))]


def test_it_is_the_first_order_expansion():
    network, linear = pair()
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(linear(x), network(x))
    step = 1e-6
    with torch.no_grad():
        for weight, offset in zip(network.parameters(), linear.offsets, strict=True):
            direction = torch.randn_like(weight)
            weight += step * direction
            offset += step * direction
    torch.testing.assert_close(linear(x), network(x), rtol=0, atol=1e-9)


def test_it_is_affine_in_its_weights():
    _, linear = pair()
    x = torch.randn(5, 4, dtype=torch.float64)
    start = linear(x).detach()
    with torch.no_grad():
        for offset in linear.offsets:
            offset.normal_()
        once = linear(x)
        for offset in linear.offsets:
            offset *= 3
    torch.testing.assert_close(linear(x) - start, 3 * (once - start))


def test_the_network_itself_is_not_trained():
    _, linear = pair()
    assert all(
        parameter is offset
        for parameter, offset in zip((p for p in linear.parameters() if p.requires_grad), linear.offsets, strict=True)
    )


def test_its_statistics_are_those_of_the_network_by_the_fast_way(make_cell):
    rows = []
    for model in (mlp(1), linearized(mlp(1))):
        rows.append(compute_statistics(Job("s", make_cell(model=model).init)))
    for name in ("gamma", "k_op", "noise_scale", "loss_init", "parameters", "method"):
        assert rows[0][name] == rows[1][name], name
    assert rows[1]["method"] == "gram"


def test_a_wide_network_trains_like_its_linearization(make_cell):
    """Theorem 4.2: the difference falls with width."""
    errors = []
    for width in (16, 1024):
        h = []
        for model in (mlp(2, "tanh"), linearized(mlp(2, "tanh"))):
            cell = make_cell(model=model, width=width, dtype="float32", iterations=20)
            job = Job("s", cell.init, cell, statistics=compute_statistics(Job("s", cell.init)))
            h.append(run_trial(job)[0]["h"])
        errors.append(abs(h[0] / h[1] - 1))
    assert errors[1] < 0.5 * errors[0]


def test_statistics_along_its_run_are_not_taken_for_its_kernel_never_moves(make_cell):
    cell = make_cell(model=linearized(mlp(1)), ntk_at=(10,), iterations=10)
    job = Job("s", cell.init, cell, statistics=compute_statistics(Job("s", cell.init)))
    assert run_trial(job)[2] == []


def test_only_a_model_can_be_linearized():
    with pytest.raises(InputError, match=r"linearized\('mlp'\)"):
        linearized("mlp")
