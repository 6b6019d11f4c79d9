"""N and b_N of several metrics, from made curves whose first passages are known."""

import math

import numpy as np
import pytest
from analysis.test_analysis import SIZES, printed, tables, trial

from raysat.analysis import analyze, summary, what_to_use
from raysat.analysis.recommendation import recommendations
from raysat.errors import InputError

B_C = {"test_loss": 5.0, "test_accuracy": 30.0}
"""The critical batch size of each metric; that of the training loss is 12."""


def rate(b, b_c):
    return 0.02 / (1 + b_c / b)


def of_several(statuses=None, **changes):
    """Trials of which each metric falls exponentially, with a critical batch size of its own."""
    made = []
    for seed in range(2):
        for b in SIZES:
            for eta in (0.5, 1.0, 2.0):
                slower = {0.5: 0.8, 1.0: 1.0, 2.0: 0.7}[eta]
                fall = slower * rate(b, 12.0)
                row, curve = trial(b, seed, "grid", eta, rate=fall, **changes)
                for point in curve:
                    t = point["iteration"] * slower
                    point["test_loss"] = 2 * math.exp(-rate(b, B_C["test_loss"]) * t)
                    point["test_accuracy"] = 1 - 0.9 * math.exp(-rate(b, B_C["test_accuracy"]) * t)
                made.append((row, curve))
    return made


def fits_of(made, targets):
    fits = analyze(*tables(made), targets).fits
    return fits[(fits["quantity"] == "b_N") & (fits["tuning"] == "free")]


TARGETS = ("test_accuracy >= 0.5", 0.4, "test_loss <= 1", "test_accuracy >= 0.4")


def test_each_metric_has_its_own_n_and_b_n():
    made = analyze(*tables(of_several(iterations=3000)), TARGETS)
    points = made.points[(made.points["quantity"] == "N") & (made.points["tuning"] == "free")]
    for metric, target, fall, b_c in (
        ("test_accuracy", 0.5, 0.9 / 0.5, 30.0),
        ("test_accuracy", 0.4, 0.9 / 0.6, 30.0),
        ("test_loss", 1.0, 2.0, 5.0),
        ("train_loss", 0.4, 2.5, 12.0),
    ):
        own = points[(points["metric"] == metric) & (points["target"] == target)]
        expected = [math.log(fall) / rate(b, b_c) for b in SIZES]
        assert own["batch_size"].tolist() == list(SIZES)
        assert own["value"].to_numpy() == pytest.approx(expected, rel=1e-9)  # a chord is exact on an exponential
        fits = made.fits[(made.fits["metric"] == metric) & (made.fits["target"] == target)]
        assert fits["value"].to_numpy() == pytest.approx([b_c] * len(fits), rel=1e-3)
        spent = made.costs.query("cost == 'samples' and metric == @metric and target == @target and tuning == 'free'")
        assert spent["value"].to_numpy() == pytest.approx(np.array(SIZES) * expected, rel=1e-9)


def test_the_metric_of_the_first_target_leads_and_each_has_a_headline():
    made = analyze(*tables(of_several(iterations=3000)), TARGETS)
    heads = made.fits[made.fits["headline"] & (made.fits["tuning"] == "free")]
    assert list(zip(heads["quantity"], heads["metric"], heads["target"].fillna(0), strict=True)) == [
        ("b_h", "train_loss", 0),
        ("b_N", "test_accuracy", 0.5),  # the harder one that all reach
        ("b_N", "train_loss", 0.4),
        ("b_N", "test_loss", 1.0),
    ]
    found = recommendations(made.fits, made.points)
    assert [(one.metric, one.target) for one in found] == [
        ("test_accuracy", 0.5),
        ("train_loss", 0.4),
        ("test_loss", 1.0),
    ]
    assert [" ".join(one.sentence.split(". To ")[1].split(", ")[:1]) for one in found] == [
        "test accuracy 0.5",
        "loss 0.4",
        "test loss 1",
    ]
    _, said = what_to_use(made.choices)
    assert [sentence.split(" at width")[0] for sentence in said] == [
        "To reach test accuracy 0.5",
        "To reach loss 0.4",
        "To reach test loss 1",
    ]
    text = printed(made, width=200)
    for words in ("test\naccuracy\n>= 0.5",):
        assert all(word in text for word in words.split("\n"))


def test_the_theory_predicts_the_training_loss_alone():
    made = analyze(*tables(of_several(iterations=3000)), TARGETS)
    others = made.fits["metric"] != "train_loss"
    assert made.fits.loc[others, ["b_star", "b_star_min", "b_star_max", "noise_scale"]].isna().all(axis=None)
    assert made.fits.loc[~others, "b_star"].notna().all()
    assert set(made.fits.loc[others, "unpredicted"]) == {"the theory is of the training loss"}
    rows = made.comparison[made.comparison["metric"] != "train_loss"]
    assert rows["predicted"].isna().all()
    assert set(rows["remark"]) == {"the theory is of the training loss"}
    table = summary(made.fits)
    assert table.loc[table["metric"] == "test_accuracy", "b_star"].isna().all()
    assert table.loc[table["metric"] == "train_loss", "b_star"].notna().all()
    assert table.groupby(["tuning"])["b_h"].count().tolist() == [1, 1]  # once a reading


def test_a_curve_need_not_fall_and_its_first_passage_counts():
    """Accuracy that is reached, lost and reached again: N is between the evaluations at 10 and 20."""
    made = []
    for b in (1, 2, 4, 8):
        row, _ = trial(b, stepsize="fixed(0.1)", eta=0.1)
        curve = [
            {"cell_id": row["cell_id"], "iteration": t, "train_loss": 1.0, "test_accuracy": accuracy}
            for t, accuracy in ((0, 0.1), (10, 0.5), (20, 0.9), (30, 0.6), (40, 0.95))
        ]
        made.append((row, curve))
    points = analyze(*tables(made), ["test_accuracy >= 0.8"]).points.query("quantity == 'N'")
    chord = 10 + 10 * math.log(0.5 / 0.2) / math.log(0.5 / 0.1)
    assert (points["value"] <= chord + 1e-9).all()
    assert (points["value"] > 0).all()
    perfect = analyze(*tables(made), ["test_accuracy >= 1"]).points.query("quantity == 'N'")
    assert perfect["value"].isna().all()


def test_an_accuracy_of_one_has_a_first_passage():
    row, _ = trial(4, stepsize="fixed(0.1)", eta=0.1)
    accuracies = (0.25, 0.5, 1.0)
    curve = [
        {"cell_id": row["cell_id"], "iteration": t, "train_loss": 1.0, "test_accuracy": accuracy}
        for t, accuracy in enumerate(accuracies)
    ]
    (value,) = analyze(*tables([(row, curve)]), ["test_accuracy >= 1"]).points.query("quantity == 'N'")["value"]
    assert value == 2


def test_trials_that_run_to_their_end_without_the_target_are_infeasible():
    """Counted by hand: b N(b) grows with the rate, and T is short."""
    made, targets = of_several(iterations=300), (0.2, "test_accuracy >= 0.6", "test_loss <= 0.1")
    made.append(trial(256, 0, "grid", 9.0, status="diverged"))
    counts = fits_of(made, targets).set_index("metric")["n_infeasible"]
    for metric, level in (("train_loss", 0.2), ("test_loss", 0.1), ("test_accuracy", 0.6)):
        lacking = 0
        for row, curve in made:
            met = [point[metric] >= level if metric == "test_accuracy" else point[metric] <= level for point in curve]
            lacking += row["status"] == "completed" and not any(met)
        assert lacking > 0
        assert counts[metric] == lacking
    made = analyze(*tables(made), targets)
    assert f"Infeasible: {counts['test_loss']} trials ran to their end without reaching test loss <= 0.1." in " ".join(
        printed(made, width=400).split()
    )
    assert (made.fits.loc[made.fits["quantity"] == "b_h", "n_infeasible"] == 0).all()
    assert made.comparison["n_infeasible"].dtype.kind == "i"


def test_one_that_was_ended_at_another_target_may_have_been_the_best():
    """At b = 8 the trial that ended at test accuracy 0.5 stands at loss 0.8, before any other is at loss 0.5."""
    made = of_several(iterations=3000)
    for k, (row, curve) in enumerate(made):
        if (row["batch_size"], row["seed"], row["eta"]) == (8, 0, 1.0):
            end = next(j for j, point in enumerate(curve) if point["train_loss"] <= 0.8)
            made[k] = ({**row, "status": "target_reached"}, curve[: end + 1])
    analysis = analyze(*tables(made), (0.5, 0.85))
    fits = fits_of(made, (0.5, 0.85)).set_index("target")
    assert math.isnan(fits.at[0.5, "value"])
    assert fits.at[0.5, "reason"].startswith("at b = 8 a trial that ended at another target, or was cut, might have")
    assert fits.at[0.85, "value"] == pytest.approx(12, rel=1e-3)
    # N(8) of the others would be too large: there is none, no cost at b = 8, and no choice knows of it
    points = analysis.points.query("quantity == 'N' and tuning == 'free'").set_index(["target", "batch_size"])["value"]
    assert points.isna().to_dict() == {(level, b): (level, b) == (0.5, 8) for level in (0.5, 0.85) for b in SIZES}
    costs = analysis.costs.query("cost == 'samples' and tuning == 'free'").groupby("target")["batch_size"].agg(list)
    assert costs.to_dict() == {0.5: [b for b in SIZES if b != 8], 0.85: list(SIZES)}
    choices = analysis.choices.query("choice == 'b_20' and tuning == 'free'").set_index("target")["reason"]
    assert "b = 8 left out, where N is not known for every seed" in choices[0.5]
    assert "left out" not in choices[0.85]


def test_a_metric_that_was_not_measured_is_refused():
    with pytest.raises(InputError, match="has no test accuracy: name a target of another metric"):
        analyze(*tables([trial(b) for b in SIZES]), ["test_accuracy >= 0.5"])
    assert analyze(*tables([]), ["test_accuracy >= 0.5"]).fits.empty
