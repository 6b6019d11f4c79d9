from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raysat import ablation, sweep
from raysat.analysis import ablation as trainings

SWEEP = """
from raysat import Sweep, Training, asynchronous, fixed, mlp
sweep = Sweep(name="ways", dataset="digits", n_train=64, n_test=32, widths=[8], batch_sizes=[4, 16], epochs=4, seeds=2,
              models=[mlp(1, norm="batch"), mlp(1, norm="batch", ghost=4)], stepsizes=[fixed(0.1)], gradient_norm=True,
              trainings=[Training(), Training("momentum", adapt_regime=True, base_batch=4), asynchronous(3)])
"""


def tables(accuracies, slope=2.0):
    """Trials of one way, a seed each, whose weights move as `1 + slope log t`."""
    common = {
        "model": "mlp",
        "model_options": "{}",
        "width": 8,
        "stepsize": "fixed(1)",
        "training": "sgd",
        "learners": 1,
    }
    common |= {"train_accuracy": 0.9, "loss_final": 1.0, "seconds": 1.0, "eta": 1.0}
    trials, curves = [], []
    for seed, accuracy in enumerate(accuracies):
        row = {"cell_id": f"c{seed}", "seed": seed, "status": "completed", "batch_size": 4, "iterations": 100}
        trials.append({**common, **row, "test_accuracy": accuracy, "finished_at": pd.Timestamp(seed, unit="s")})
        for t in (0, 1, 3, 10, 100):
            distance = 1 + slope * np.log(t) if t else 0.0
            point = {"iteration": t, "distance_from_init": distance, "gradient_square_mean": t + 0.5, "samples": 4 * t}
            rest = {"train_loss": 1.0, "test_accuracy": accuracy, "seconds": 0.1 * t}
            curves.append({"cell_id": f"c{seed}", **point, **rest})
    return pd.DataFrame(trials), pd.DataFrame(curves)


def test_a_row_has_means_and_students_interval():
    (row,) = ablation.ablation(*tables([0.5, 0.6, 0.7])).to_dict("records")
    assert (row["seeds"], row["lost"], row["iterations"]) == (3, 0, 100)
    assert row["test_accuracy"] == pytest.approx(0.6)
    half = 4.302652729911275 * 0.1 / 3**0.5  # t of 2 degrees of freedom at 97.5 %, from a table
    assert row["test_accuracy_high"] - 0.6 == pytest.approx(half)
    assert 0.6 - row["test_accuracy_low"] == pytest.approx(half)
    assert row["gap"] == pytest.approx(0.3)
    assert row["gradient_square_mean"] == 100.5


def test_the_slope_is_of_the_distance_against_log_t():
    (row,) = ablation.ablation(*tables([0.5, 0.5], slope=2.0)).to_dict("records")
    assert row["slope"] == pytest.approx(2.0)
    assert row["r_square"] == pytest.approx(1.0)


def test_lost_trials_are_counted_and_not_averaged():
    trials, curves = tables([0.5, 0.6, 0.0])
    trials.loc[2, "status"] = "diverged"
    (row,) = ablation.ablation(trials, curves).to_dict("records")
    assert (row["seeds"], row["lost"]) == (2, 1)
    assert row["test_accuracy"] == pytest.approx(0.55)


def test_one_seed_has_no_interval():
    (row,) = ablation.ablation(*tables([0.5])).to_dict("records")
    assert row["test_accuracy"] == 0.5
    assert np.isnan([row["test_accuracy_low"], row["test_accuracy_high"]]).all()


def test_of_a_grid_the_best_stepsize_of_each_seed_counts_and_is_named():
    """Two seeds of three stepsizes: six trials, one row of two seeds."""
    trials, curves = tables([0.1, 0.5, 0.2, 0.1, 0.2, 0.7])
    trials = trials.assign(seed=[0, 0, 0, 1, 1, 1], eta=[0.1, 0.2, 0.4] * 2, loss_final=[3, 1, 2, 3, 2, 1])
    trials = trials.assign(stepsize="grid")
    table = ablation.ablation(trials, curves)
    (row,) = table.to_dict("records")
    assert (row["seeds"], row["lost"]) == (2, 0)
    assert row["test_accuracy"] == pytest.approx((0.5 + 0.7) / 2)
    assert (row["eta_min"], row["eta_max"]) == (0.2, 0.4)
    assert "grid: 0.2 to 0.4" in trainings.cells(table)[1][0]
    assert any("least final training loss" in said for said in trainings.remarks(table))
    trials.loc[3:, "status"] = "diverged"
    (row,) = ablation.ablation(trials, curves).to_dict("records")
    assert (row["seeds"], row["lost"]) == (1, 1)  # seeds, not trials
    trials.loc[:, "status"] = "diverged"
    assert trainings.cells(ablation.ablation(trials, curves))[1][0][1:3] == ["grid", "sgd"]


def test_a_trial_of_outdated_code_does_not_count_as_a_seed():
    trials, curves = tables([0.5, 0.6, 0.9])
    trials = trials.assign(seed=[0, 1, 1])
    (row,) = ablation.ablation(trials, curves).to_dict("records")
    assert row["seeds"] == 2
    assert row["test_accuracy"] == pytest.approx(0.7)


def test_widths_are_told_apart_in_the_table_and_the_figure():
    trials, curves = tables([0.5, 0.7])
    one, _ = trainings.cells(ablation.ablation(trials, curves))
    assert "width" not in one
    trials = trials.assign(width=[8, 16])
    columns, rows = trainings.cells(ablation.ablation(trials, curves))
    assert [row[columns.index("width")] for row in rows] == ["8", "16"]
    _, _, accuracies = ablation.figure(trials, curves).axes
    assert [line.get_ydata()[-1] for line in accuracies.lines] == [0.5, 0.7]
    (legend,) = ablation.figure(trials, curves).legends
    assert [text.get_text() for text in legend.get_texts()] == ["sgd", "width 8, b = 4", "width 16, b = 4"]


def test_the_figure_has_a_line_for_each_stepsize_policy_and_one_for_a_grid():
    trials, curves = tables([0.5, 0.7, 0.9])
    trials = trials.assign(stepsize=["fixed(1)", "grid", "grid"], seed=[0, 0, 0], eta=[1, 1, 2], loss_final=[1, 1, 2])
    _, _, accuracies = ablation.figure(trials, curves).axes
    assert [line.get_ydata()[-1] for line in accuracies.lines] == [0.5, 0.7]


def test_a_simulation_of_learners_has_no_seconds_of_theirs():
    trials, curves = tables([0.5, 0.7])
    table = ablation.ablation(trials, curves)
    assert table["seconds"].tolist() == [1.0]
    assert len(trainings.remarks(table)) == 1
    trials = trials.assign(learners=[1, 4], training=["sgd", "4 learners random"])
    table = ablation.ablation(trials, curves).set_index("learners")
    assert table.at[1, "seconds"] == 1.0
    assert np.isnan(table.at[4, "seconds"])
    assert any(said.startswith("seconds: left out for asynchronous") for said in trainings.remarks(table.reset_index()))
    distances, losses, _ = ablation.figure(trials, curves).axes
    assert (distances.get_xlabel(), losses.get_xlabel()) == ("iteration t", "samples")
    assert losses.lines[1].get_xdata().tolist() == [4, 12, 40, 400]


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("name", ["train_loss", "seconds", "distance_from_init", "test_accuracy"])
def test_the_figure_is_drawn_whatever_a_curve_has(tmp_path, name, value):
    trials, curves = tables([0.5])
    ablation.figure(trials, curves.assign(**{name: value})).savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_from_a_sweep_to_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "ways.py"
    path.write_text(SWEEP)
    results = tmp_path / "results"
    assert sweep.main([str(path), "--results", str(results), "--inline"]) == 0
    assert "held constant" in capsys.readouterr().out  # the statistics of batch normalization are an approximation
    trials = pd.read_parquet(results / "ways" / "trials")
    assert set(trials.loc[trials["model_options"].str.contains("ghost"), "frozen_norms"]) == {"2"}
    assert set(trials["status"]) == {"completed"}
    assert trials.set_index(["batch_size", "training"])["iterations"].to_dict() == {
        **{(4, way): 64 for way in ("sgd", "momentum 0.9, regime of 4", "3 learners round_robin")},
        **{(16, "sgd"): 16, (16, "momentum 0.9, regime of 4"): 64, (16, "3 learners round_robin"): 16},
    }
    assert set(trials["budget"]) == {"4 epochs"}
    assert ablation.main([str(results / "ways")]) == 0
    said = capsys.readouterr().out
    assert "ghost=4" in said
    assert "momentum 0.9" in said
    table = pd.read_parquet(results / "ways" / "ablation.parquet")
    assert len(table) == 2 * 2 * 3
    assert (table["seeds"] == 2).all()
    known = table[list(trainings.QUANTITIES)].notna()
    assert known.drop(columns="seconds").all(axis=None)
    assert (known["seconds"] == (table["learners"] == 1)).all()
    assert (results / "ways" / "figures" / "ablation.png").stat().st_size > 0
    page = (results / "ways" / "report.html").read_text()
    shown = page[page.index('<section id="trainings"') :]
    assert all(row["training"] in shown for row in table.to_dict("records"))
    assert "mean ||grad L||^2" in shown


def test_on_mnist_the_mean_gradient_norm_rises_with_batch_size_and_learners(real_data, tmp_path):
    """The part of the theory under a budget of samples that holds at two cores' size, and the loss against b."""
    changes = {
        **{"name": "budget", "dataset": "mnist", "preprocessing": "center", "n_train": 2000, "n_test": 0},
        **{"models": '[mlp(2,"relu",2**0.5)]', "widths": [64], "stepsizes": "[fixed(0.6)]", "samples": 8000},
        **{"batch_sizes": [16, 256], "trainings": "[asynchronous(1),asynchronous(8)]", "seeds": 2},
    }
    settings = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    path = Path(__file__).parents[2] / "sweeps" / "asgd.py"
    assert sweep.main([str(path), *settings, "--results", str(tmp_path), "--inline", "--quiet"]) == 0
    trials, curves = (pd.read_parquet(tmp_path / "budget" / name) for name in ("trials", "curves"))
    table = ablation.ablation(trials, curves).pivot(index="batch_size", columns="learners")
    norms, losses = table["gradient_square_mean"], table["loss_final"]
    assert (norms.loc[256] > 2 * norms.loc[16]).all()
    assert (norms[8] > 2 * norms[1]).all()
    assert (losses.loc[256] > 1.5 * losses.loc[16]).all()
    page = (tmp_path / "budget" / "report.html").read_text()
    shown = page[page.index('<section id="trainings"') :]
    assert "mean ||grad L||^2" in shown
    assert " ± " in shown


def test_a_folder_without_results_is_refused(tmp_path, capsys):
    assert ablation.main([str(tmp_path)]) == 2
    assert "raysat: " in capsys.readouterr().err
