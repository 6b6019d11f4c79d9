"""Trials that were cut because another stepsize was first: they count as worse, and as nothing else."""

import math

import numpy as np
import pandas as pd
import pytest
from analysis.test_analysis import ITERATIONS, K_OP, SIZES, analyzed, printed, tables, trial

from raysat.analysis.ladder import ladder
from raysat.analysis.reading import usable
from raysat.spec.race import UNLIMITED, Arrival, Limits

TARGET, ETAS, LIMIT = 0.1, (0.5, 0.7, 1.0, 1.2, 2.0, 3.0, 5.0, 9.0), 2 / K_OP


def swept(race):
    """Of each seed and batch size stepsizes of which the best is 0.8 b or less; what is beyond diverges."""
    made = []
    for seed in range(2):
        for b in SIZES[:6]:
            rates = {eta: 0.03 * eta / (1 + 0.1 * seed) / (1 + 3 / b) for eta in ETAS if eta <= max(0.8 * b, 1.2)}
            steps = {eta: math.log(1 / TARGET) / rate for eta, rate in rates.items()}
            ends = {eta: int(ITERATIONS[np.argmax(steps[eta] <= ITERATIONS)]) for eta in rates}
            limits = Limits.after(Arrival(steps[eta], ends[eta], eta / LIMIT) for eta in rates) if race else UNLIMITED
            for eta in ETAS:
                if eta not in rates:
                    made.append(trial(b, seed, "grid", eta, status="diverged"))
                    continue
                limit = limits.of(eta / LIMIT)
                status, end = ("target_reached", ends[eta])
                if ends[eta] > limit:
                    status, end = "beaten", int(ITERATIONS[limit >= ITERATIONS][-1])
                made.append(trial(b, seed, "grid", eta, rate=rates[eta], iterations=end, status=status))
    return [(row | {"iterations": int(ITERATIONS[-1])}, curve) for row, curve in made]


def measured(made, targets):
    points = analyzed(made, targets).points
    return points[points["quantity"] == "N"].set_index(["tuning", "target", "batch_size"])


@pytest.mark.parametrize("targets", [[TARGET], [0.5, 0.2, TARGET], []])
def test_a_race_has_the_same_N_at_its_target_and_above_it(targets):
    alone, raced = measured(swept(False), targets), measured(swept(True), targets)
    rows, _ = tables(swept(True))
    assert (rows["status"] == "beaten").sum() > 20
    assert set(alone.index.get_level_values("tuning")) == {"free", "stable"}
    pd.testing.assert_series_equal(raced["value"], alone["value"], check_exact=True)
    pd.testing.assert_series_equal(raced["eta"], alone["eta"], check_exact=True)
    for end in ("low", "high"):
        known = alone[end].notna()
        assert known.any()
        assert raced.loc[known, end].to_numpy() == pytest.approx(alone.loc[known, end].to_numpy(), rel=0.05)


def test_a_target_above_the_initial_loss_is_named():
    made = [trial(b, 0, "grid", eta, iterations=0, status="target_reached") for b in SIZES[:4] for eta in (1.0, 2.0)]
    reasons = analyzed(made, []).fits.query("quantity == 'b_N'")["reason"]
    assert set(reasons) == {"target_loss is not below the loss at initialization, 1: lower it"}


def test_they_are_neither_diverged_nor_failed_nor_the_best_by_h():
    alone, raced = analyzed(swept(False), [TARGET]), analyzed(swept(True), [TARGET])
    for name in ("n_diverged", "n_failed", "reason"):
        of_N = [one.fits.query("quantity == 'b_N'")[name].tolist() for one in (alone, raced)]
        assert of_N[0] == of_N[1], name
    h = [one.points.query("quantity == 'h'")[["tuning", "batch_size", "value", "eta"]] for one in (alone, raced)]
    pd.testing.assert_frame_equal(*h, check_exact=True)
    assert "beaten" not in printed(raced)


def test_their_curves_count_as_far_as_they_go():
    rows, _ = tables(swept(True))
    assert "beaten" in set(usable(rows)["status"])


def test_the_ladder_goes_as_deep_as_all_who_were_first():
    made = swept(True)
    found = ladder(*tables(made), analyzed(made, [TARGET]))
    first = {}
    for row, curve in made:
        if row["status"] == "target_reached":
            key = row["seed"], row["batch_size"]
            first[key] = min(first.get(key, (math.inf, 0.0)), (row["iterations_done"], curve[-1]["train_loss"]))
    deepest = max(loss for _, loss in first.values())
    assert deepest <= found.fits["target"].min() < 1.01 * deepest
    assert len(found.fits["target"].unique()) > 5


def test_the_ladder_has_no_level_at_which_one_that_was_cut_could_have_won():
    """One that was seen at its first iteration alone may have been the first anywhere."""
    made = swept(True)
    at = next(k for k, (row, _) in enumerate(made) if row["status"] == "beaten")
    row, curve = made[at]
    made[at] = row | {"iterations_done": 1}, curve[:2]
    found = ladder(*tables(made), analyzed(made, [TARGET]))
    assert found.fits["own"].all()
