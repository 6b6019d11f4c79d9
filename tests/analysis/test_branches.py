"""The critical batch along training, against the exact second moments of SGD on least squares."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

import raysat
from raysat import Branches, InputError, Sweep, Training, fixed, grid, linear
from raysat.analysis.branches import branches, excesses, sentences, warm_ups
from raysat.report.along import schedules, section
from raysat.report.configuration import sweep_file
from raysat.sgd.sampler import Batches
from raysat.spec.phases import branch_in, without_phases
from raysat.storage.recall import sweep_of
from raysat.storage.rows import cell_columns, init_columns
from raysat.sweep import main
from raysat.trial.job import Job, load_dataset
from raysat.trial.train import run_trial

N, B, ETA, TOLERANCE = 64, 2, 0.01, 0.2
ASKED = Branches(at=(0, 100, 200), samples=256, factors=(2, 4, 8, 16), draws=6, scaling="sqrt", tolerance=TOLERANCE)
SWEEP = {"name": "s", "dataset": "digits", "n_train": N, "n_test": 0, "models": [linear()], "batch_sizes": [B]}
SWEEP |= {"stepsizes": [fixed(ETA)], "iterations": 200, "dtype": "float64"}


@pytest.fixture(scope="module")
def cells():
    base, *made = Sweep(**SWEEP, branches=ASKED).cells(N, 0)
    return base, made


@pytest.fixture(scope="module")
def gram(cells):
    """The samples' Gram matrix G, of which `K = G/n` is made: `f(w) = x w`."""
    x = load_dataset(cells[0].init).x.flatten(1)
    return (x @ x.T).numpy()


@pytest.fixture(scope="module")
def run(cells, gram):
    """The residuals of the run at w_0 and at each step."""
    base, data = cells[0], load_dataset(cells[0].init)
    network = raysat.models.build(base.init.model, 0, data.input_shape, data.outputs, base.init.seed).double()
    with torch.no_grad():
        start = (network(data.x) - data.y).numpy()
    return steps(base, gram, start, 0, base.iterations)


def steps(cell, gram, residual, start, end):
    """The residuals of a cell from one step to another: `r <- r - (eta/b) G P_S r`."""
    schedule, residuals = cell.training.batch_schedule, [residual]
    batches = Batches(cell.init.seed, cell.iterations, B, N, cell.sampling, "cpu", schedule)
    for step in range(start, end):
        (batch,) = batches.take(step, 1).numpy()
        eta = ETA * cell.training.stepsize_factor(len(batch))
        residuals.append(residuals[-1] - eta / len(batch) * gram[:, batch] @ residuals[-1][batch])
    return residuals


def expected_loss(residual, gram, k):
    """E L at the window's end, from the second moments `M = E r r^T` restarted at the run's residual; exact.

    With `A = (eta/b) G` they are `M - A (b/n) M - M (b/n) A + A E[P_S M P_S] A` after a step: a sample is in the batch
    with probability b/n, and two are with b (b-1) / (n (n-1)).
    """
    moments, b = residual @ residual.T, k * B
    a, share, both = math.sqrt(k) * ETA / b * gram, b / N, b * (b - 1) / (N * (N - 1))
    for _ in range(ASKED.samples // b):
        kept = both * moments + np.diag((share - both) * np.diag(moments))
        moments = moments - share * (a @ moments + moments @ a) + a @ kept @ a
    return float(np.trace(moments) / (2 * N))


@pytest.fixture(scope="module")
def trials(cells, gram, run):
    rows = []
    for cell in (cells[0], *cells[1]):
        phase = branch_in(cell.training.label)
        t = phase.start if phase else 0
        last = steps(cell, gram, run[t], t, cell.iterations)[-1]
        row = {**init_columns("s", cell.init), **cell_columns(cell), "eta": ETA, "status": "completed"}
        rows.append(row | {"loss_final": float((last**2).sum() / (2 * N))})
    return pd.DataFrame(rows)


def test_a_branch_is_a_trial_whose_steps_before_t_are_the_runs(cells, trials):
    for k in (1, 61):
        cell = cells[1][k]
        row, *_ = run_trial(Job(sweep="s", init=cell.init, cell=cell))
        assert row["loss_final"] == pytest.approx(trials["loss_final"][k + 1], rel=1e-9)


def test_it_agrees_with_the_exact_moments_of_least_squares(gram, run, trials):
    """The critical batch grows along training, by the exact moments and by the branches."""
    found = branches(trials, TOLERANCE).set_index("iteration")
    own = excesses(trials).set_index(["iteration", "factor"])
    exact = []
    for t in ASKED.at:
        losses = {k: expected_loss(run[t], gram, k) for k in (1, 2, 4, 8, 16)}
        excess = {k: math.log(value / losses[1]) for k, value in losses.items()}
        exact.append(B * max(k for k in excess if max(excess[j] for j in excess if j <= k) <= math.log1p(TOLERANCE)))
        for k in (2, 4, 8, 16):
            assert abs(excess[k] - own["excess"][t, k]) < 2 * (own["high"] - own["low"])[t, k]
    assert exact == [2, 4, 8]
    assert ((found["low"] <= exact) & (exact <= found["high"])).all()
    assert (found["high"] <= 4 * found["low"]).all()
    assert set(found["draws"]) == {6}


def rows_of(losses, status="completed"):
    """Rows of branches at t = 5 with the losses of each factor, a list over draws."""
    trial = dict.fromkeys(["init_id", "model", "width", "seed", "stepsize", "eta", "sampling", "precision"], 0)
    trial |= {"batch_size": 2, "status": status}
    made = [
        {"training": f"{k} x batch from 5 drawn by {draw}", "loss_final": value, "iterations": 5 + 32 // k}
        for k, values in losses.items()
        for draw, value in enumerate(values, 1)
    ]
    return pd.DataFrame([trial | one for one in made])


def test_it_is_the_largest_batch_no_worse_than_all_smaller():
    (row,) = branches(rows_of({1: [1, 1.1], 2: [1, 1.1], 4: [2, 2.2], 8: [1, 1.1]}), 0.1).to_dict("records")
    assert (row["b_crit"], row["low"], row["high"], row["window"], row["rule"]) == (4, 4, 4, 64, "sgd")
    (row,) = branches(rows_of({1: [1, 1.1], 2: [1.3, 1.1], 4: [2, 2.2]}), 0.1).to_dict("records")
    assert (row["b_crit"], row["low"], row["high"]) == (2, 2, 4), "2 is told neither from 1 nor from what is worse"
    (row,) = branches(rows_of({1: [1, 1], 2: [1, math.inf]}), 0.1).to_dict("records")
    assert (row["b_crit"], row["high"]) == (2, 2)


def test_the_warm_up_follows_the_smallest_of_all_seeds_and_never_falls():
    """b_crit over seeds is 2, 4, 2, 8 at t = 5, 6, 7, 8: batches of 2 b from 6 on, and of 4 b from 8 on."""
    reached = {5: (1, 2), 6: (4, 2), 7: (1, 4), 8: (4, 4)}  # by t the largest good factor of each seed
    made = []
    for t, factors in reached.items():
        for seed, best in enumerate(factors):
            rows = rows_of({k: [1.0, 1.1] if k <= best else [2.0, 2.2] for k in (1, 2, 4, 8)})
            named = [text.replace("from 5", f"from {t}") for text in rows["training"]]
            made.append(rows.assign(training=named, iterations=rows["iterations"] + t - 5, seed=seed, init_id=seed))
    table = branches(pd.concat(made, ignore_index=True), 0.1)
    ((own, schedule),) = warm_ups(table)
    assert len(own) == 8
    assert schedule == ((6, 2, 0), (8, 4, 0))
    (said,) = sentences(table)
    assert "the critical batch is 2 [2, 2] at t = 5, 4 [4, 4] at t = 6, 2 [2, 2] at t = 7, 8 [8, 8] at t = 8" in said
    assert said.endswith("the smallest of 2 seeds. batch_schedule=((6, 2), (8, 4)) follows it.")
    assert Training(batch_schedule=((6, 2), (8, 4))).batch_schedule == schedule
    (written,) = schedules(table)
    assert written["batch_sizes"] == [[0, 2], [6, 4], [8, 8]]
    assert "6" in section(table).html
    (said,) = sentences(table[table["iteration"] == 5])
    assert said.endswith("No larger batch is worth its samples.")
    assert section(table.iloc[:0]).html == ""


def test_what_is_not_known_is_said():
    (row,) = branches(rows_of({1: [1.0], 2: [1.0], 4: [1.0]}), 0.1).to_dict("records")
    assert row["b_crit"] == 8
    assert math.isnan(row["low"])
    assert row["reason"] == "no batch run, up to 8, loses more than the tolerance"
    assert branches(rows_of({2: [1.0], 4: [1.0]}), 0.1).empty
    assert branches(rows_of({1: [1.0]}, status="failed"), 0.1).empty
    assert branches(rows_of({1: [1.0]}).assign(training="sgd"), 0.1).empty
    assert branches(rows_of({1: [1.0]}).assign(training=None), 0.1).empty, "a row of an earlier raysat"


def test_the_cells_of_branches(cells):
    base, made = cells
    assert base.cell_id == Sweep(**SWEEP).cells(N, 0)[0].cell_id
    assert len({cell.cell_id for cell in made}) == len(made) == 3 * 5 * 6
    for cell in made:
        phase = branch_in(cell.training.label)
        assert phase.start in ASKED.at
        assert cell.samples_at(cell.iterations) - B * phase.start == ASKED.samples
        assert without_phases(cell.training.label) == "sqrt scaling from 2"
    by_default = Branches(at=[3], samples=96, draws=1)
    own = Training("adam", scaling="half_life", base_batch=4)
    (_, *made) = Sweep(**SWEEP | {"trainings": [own], "branches": by_default}).cells(N, 0)
    assert [cell.largest_batch for cell in made] == [2, 4, 8, 16, 32]
    assert {cell.training.scaling for cell in made} == {"half_life"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"branches": 3}, r"use Branches\(at=\[...\], samples=...\)"),
        ({"branches": Branches([201], 64)}, "branches at 201 are after the last of 200 iterations"),
        ({"branches": Branches([1], 96, [32])}, "no multiple of 64, 32 times b = 2: give .* such as 128"),
        ({"branches": Branches([1], 6)}, "no factor but 1 at b = 2"),
        ({"branches": Branches([1], 256, [64])}, "batches of 128 at b = 2"),
        ({"trainings": [Training(schedule="cosine")]}, "use the constant one"),
        ({"trainings": [Training(batch_schedule=((3, 2),))]}, "leave these out"),
        ({"stepsizes": [grid(auto=True)]}, "leave out adaptive"),
        ({"target_loss": 0.5}, "leave out adaptive"),
        ({"ranks_per_trial": 2}, "leave out adaptive"),
    ],
)
def test_what_cannot_branch_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        Sweep(**SWEEP | {"branches": Branches([1], 128)} | changes).cells(N, 0)


TEXT = """
from raysat import Branches, Sweep, fixed, mlp
sweep = Sweep(name="s", dataset="digits", n_train=16, n_test=0, models=[mlp(1)], widths=[4], batch_sizes=[4],
              stepsizes=[fixed(0.05)], iterations=8, ntk_at=[4, 8],
              branches=Branches(at=[0, 4], samples=32, draws=2, tolerance=0.5))
"""


def test_a_sweep_runs_them_and_its_results_have_the_table(tmp_path, capsys, monkeypatch):
    (tmp_path / "s.py").write_text(TEXT)
    command = [str(tmp_path / "s.py"), "--results", str(tmp_path), "--inline"]
    assert main(command) == 0
    assert "Along training from b = 4 (mlp at width 4, fixed(0.05), " in " ".join(capsys.readouterr().out.split())
    ((start, first), *_) = json.loads((tmp_path / "s" / "batch_schedule.json").read_text())[0]["batch_sizes"]
    assert (start, first) in ((0, 4), (0, 8), (0, 16))
    assert "The critical batch along training" in (tmp_path / "s" / "report.html").read_text()
    monkeypatch.setattr("raysat.report.finish", lambda *_: None)
    found = raysat.load(tmp_path / "s")
    assert len(found.trials) == 1 + 2 * 3 * 2
    assert list(found.branches["iteration"]) == [0, 4]
    assert list(found.branches["noise_scale"]) == list(found.ntk.sort_values("iteration")["noise_scale"][:2])
    assert found.branches[["b_crit", "low", "high", "b_star"]].notna().all(axis=None)
    assert set(found.fit().points["training"]) == {"sgd"}, "branches are in no fit"
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0
    assert "13 cells, 13 finished" in capsys.readouterr().out
    assert "branches=Branches(at=[0, 4], samples=32, draws=2" in sweep_file(found.record["sweep"])
    assert sweep_of(found.record).branches == Branches([0, 4], 32, draws=2, tolerance=0.5)
