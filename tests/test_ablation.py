import numpy as np
import pandas as pd
import pytest

from raysat import ablation, sweep

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
    common |= {"learners": 1, "train_accuracy": 0.9, "loss_final": 1.0, "seconds": 1.0}
    trials, curves = [], []
    for seed, accuracy in enumerate(accuracies):
        row = {"cell_id": f"c{seed}", "seed": seed, "status": "completed", "batch_size": 4, "iterations": 100}
        trials.append({**common, **row, "test_accuracy": accuracy})
        for t in (0, 1, 3, 10, 100):
            distance = 1 + slope * np.log(t) if t else 0.0
            point = {"iteration": t, "distance_from_init": distance, "gradient_square_mean": t + 0.5}
            curves.append({"cell_id": f"c{seed}", **point})
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


def test_from_a_sweep_without_statistics_to_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "ways.py"
    path.write_text(SWEEP)
    results = tmp_path / "results"
    assert sweep.main([str(path), "--results", str(results), "--inline"]) == 0
    assert "no statistics, for 2 (GhostBatchNorm) mixes the samples" in capsys.readouterr().out
    trials = pd.read_parquet(results / "ways" / "trials")
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
    assert table[list(ablation.QUANTITIES)].notna().all(axis=None)
    assert (results / "ways" / "figures" / "ablation.png").stat().st_size > 0
    page = (results / "ways" / "report.html").read_text()
    shown = page[page.index('<section id="trainings"') :]
    assert all(row["training"] in shown for row in table.to_dict("records"))
    assert "mean ||grad L||^2" in shown

    again = [str(path), "--results", str(results), "--inline", "--set", "stepsizes=[theory()]"]
    assert sweep.main(again) == 2
    assert "made of gamma" in capsys.readouterr().err


def test_a_folder_without_results_is_refused(tmp_path, capsys):
    assert ablation.main([str(tmp_path)]) == 2
    assert "raysat: " in capsys.readouterr().err
