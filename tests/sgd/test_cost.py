import copy
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from raysat import Sweep, gpt, mlp, models, resnet, theory
from raysat.driver.plan import plan
from raysat.errors import InputError
from raysat.losses import LOSSES
from raysat.sgd import cost
from raysat.sgd.cost import Flops, count, evaluated_samples
from raysat.sgd.engine import build
from raysat.sgd.schedule import evaluation_iterations
from raysat.spec.sweep import FEWEST_EVALUATIONS

SWEEP = {"name": "s", "dataset": "digits", "models": [mlp(1)], "widths": [16], "stepsizes": [theory()], "n_train": 100}


@given(
    b=st.integers(1, 100),
    iterations=st.integers(1, 10**6),
    evaluations=st.integers(2, 60),
    subset=st.integers(0, 99),
    budget=st.floats(0.01, 10),
)
def test_evaluations_stay_within_the_budget_unless_they_are_the_fewest(
    make_cell, b, iterations, evaluations, subset, budget
):
    cell = make_cell(batch_size=b, iterations=iterations, evaluations=evaluations)
    cell = replace(cell, init=replace(cell.init, evaluation_samples=subset))
    flops = Flops(forward=1000, step=3000, fused=True)
    found = flops.within_budget(cell, budget)
    steps = iterations * (b + 4) * 3000
    if found.evaluations > FEWEST_EVALUATIONS:
        assert flops.of_evaluations(found) <= budget * steps * (1 + 1e-9)
    assert min(evaluations, FEWEST_EVALUATIONS) <= found.evaluations <= evaluations
    assert replace(found, evaluations=evaluations) == cell
    if found.evaluations < evaluations:  # one more would not have been within it
        one_more = (found.evaluations + 1) * ((subset or 100) + 50) * 1000
        assert one_more > budget * steps or found.evaluations == FEWEST_EVALUATIONS


def test_the_fewest_are_the_last_and_six_before_it():
    assert evaluation_iterations(10**6, FEWEST_EVALUATIONS) == [0, 1, 10, 100, 1000, 10**4, 10**5, 10**6]


def test_the_evaluation_of_the_initialization_is_not_the_cells_own(make_cell):
    cell = make_cell(iterations=100, evaluations=5)
    assert evaluated_samples(cell) == 5 * (100 + 50)  # after 1, 3, 10, 32 and 100 iterations


def test_the_gradient_norm_counts_among_the_evaluations(make_cell):
    flops = Flops(forward=1000, step=3000)
    cell = make_cell(iterations=100, evaluations=5)
    measured = replace(cell, gradient_norm=True)
    assert flops.of_evaluations(measured) - flops.of_evaluations(cell) == 5 * 100 * 3000
    assert flops.within_budget(measured, 0.1).evaluations <= flops.within_budget(cell, 0.1).evaluations


def test_what_cannot_be_counted_is_run_all_the_same(make_cell):
    cell = make_cell()
    assert Flops(forward=0, step=0).within_budget(cell, 0.5) == cell


def test_a_network_that_normalizes_over_the_batch_is_counted():
    network = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4))
    flops = count(network, torch.randn(5, 6), torch.randn(5, 4), LOSSES["mse"])
    assert (flops.forward, flops.step) == (2 * 6 * 4, 2 * 2 * 6 * 4)


@pytest.mark.parametrize(
    ("model", "width", "shape", "loss"),
    [(mlp(2), 16, (1, 8, 8), "mse"), (resnet(), 8, (3, 16, 16), "mse"), (gpt(heads=2), 16, (32,), "cross_entropy")],
    ids=["mlp", "resnet", "gpt"],
)
def test_operations_are_those_that_pytorchs_own_counter_finds(model, width, shape, loss):
    network = models.build(model, width, shape, 10, 0)
    tokens = loss == "cross_entropy"
    x = torch.zeros(2, *shape, dtype=torch.int64 if tokens else torch.float32)
    y = torch.zeros(2, *shape, dtype=torch.int64) if tokens else torch.zeros(2, 10)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        network(x)
    with FlopCounterMode(display=False) as step:
        LOSSES[loss].total(network(x), y).backward()
    found = count(network, x, y, LOSSES[loss])
    assert (2 * found.forward, 2 * found.step) == (forward.get_total_flops(), step.get_total_flops())
    assert found.forward > 0


def test_a_calibration_makes_updates_and_leaves_the_network_as_it_is(monkeypatch):
    etas = []

    def recorded(*arguments, eta):
        etas.append(eta)
        return build(*arguments, eta)

    monkeypatch.setattr(cost, "build", recorded)
    monkeypatch.setattr(cost, "_seconds", lambda function: (function(), 1.0)[1])
    network = models.build(resnet(depth=10, norm="batch"), 4, (3, 8, 8), 10, seed=0)
    before = copy.deepcopy(network.state_dict())
    pace = cost.calibrate(network, torch.randn(20, 3, 8, 8), torch.randn(20, 10), LOSSES["mse"])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert len(etas) == 1
    assert etas[0] != 0  # matrix products return at once where what they add counts nothing
    assert pace.launch > 0


def test_counting_loads_nothing_to_be_compiled():
    code = (
        "import sys, torch; from raysat import losses; from raysat.sgd import cost\n"
        "network = torch.nn.Linear(3, 2)\n"
        "assert cost.count(network, torch.ones(4, 3), torch.ones(4, 2), losses.LOSSES['mse']).forward == 12\n"
        "print('torch._dynamo' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_a_plan_gives_small_batches_fewer_evaluations(tmp_path):
    sweep = Sweep(**SWEEP, batch_sizes=[1, 100], iterations=50)
    by_size = {cell.batch_size: cell.evaluations for cell in plan(sweep, tmp_path).cells}
    assert by_size[1] == FEWEST_EVALUATIONS < by_size[100]
    generous = plan(replace(sweep, evaluation_budget=1e6), tmp_path)
    assert {cell.evaluations for cell in generous.cells} == {sweep.evaluations}


@pytest.mark.parametrize("field", ["evaluation_budget", "evaluation_samples"])
def test_a_budget_must_be_positive(field):
    with pytest.raises(InputError, match=f"{field} has 0: give"):
        Sweep(**SWEEP, batch_sizes=[1], iterations=50, **{field: 0})
