"""Targets that what is compared shares."""

import math

import pandas as pd
import pytest
from analysis.test_analysis import SIZES, analyzed, trial


def levels(made):
    fits = analyzed(made).fits
    rows = fits[fits["quantity"] == "b_N"]
    return {key: tuple(own["target"]) for key, own in rows.groupby(["training", "width", "stepsize", "tuning"])}, rows


def reaching(depth, **changes):
    """Trials of three seeds, each batch size of which goes from 1 to exp(-depth) at T = 300 or further."""
    return [trial(b, seed, rate=depth / 300 * (2 if b > 8 else 1), **changes) for b in SIZES for seed in range(3)]


def test_two_trainings_have_the_same_targets_as_deep_as_both_reach():
    found, rows = levels(reaching(4.0, training="sgd") + reaching(6.0, training="momentum(0.9)", cell="m"))
    assert len(set(found.values())) == 1
    (shared,) = set(found.values())
    # All of the way is exp(-4) = 0.0183, which the slower training reaches; up to two digits.
    assert shared[-1] == pytest.approx(0.019)
    assert set(rows.loc[rows["headline"].astype(bool), "target"]) == {shared[-1]}


def test_widths_and_policies_share_them_too():
    made = reaching(4.0, width=64) + reaching(5.0, width=128)
    made += reaching(4.5, width=64, stepsize="fixed(0.1)", eta=0.05)
    found, _ = levels(made)
    assert len(found) == 3
    assert set(found.values()) == {(*found["sgd", 64, "theory(1)", ""],)}


def test_a_training_that_stays_far_behind_makes_no_target_shallow_and_is_told_that_it_does_not_reach():
    found, rows = levels(reaching(5.0, training="sgd") + reaching(0.1, training="adam", cell="m"))
    assert set(found) == {("sgd", 64, "theory(1)", ""), ("adam", 64, "theory(1)", "")}
    assert min(found["sgd", 64, "theory(1)", ""]) < 0.01
    lazy = rows[(rows["training"] == "adam") & rows["headline"].astype(bool)].iloc[0]
    assert math.isnan(lazy["value"])
    assert "do not reach L <= " in lazy["reason"]


def test_a_weaker_policy_is_read_at_the_lowest_shared_level_that_it_reaches():
    made = reaching(6.0, stepsize="theory(1)") + reaching(4.6, stepsize="fixed(0.1)", eta=0.05)
    _, rows = levels(made)
    heads = rows[rows["headline"].astype(bool)].set_index("stepsize")["target"]
    assert heads["theory(1)"] == pytest.approx(0.0025)
    assert heads["fixed(0.1)"] == pytest.approx(math.ceil(1000 * math.exp(-6 * 3 / 4)) / 1000)  # three quarters of it


def test_other_data_and_other_architectures_have_their_own():
    made = reaching(4.0) + reaching(2.0, model="resnet", cell="r") + reaching(3.0, preprocessing=None, cell="p")
    fits = analyzed(made).fits
    heads = fits[fits["headline"].astype(bool) & (fits["quantity"] == "b_N")]
    assert len(heads) == 3
    assert heads["target"].nunique() == 3
    assert pd.notna(heads["value"]).all()


def test_the_widest_network_of_which_the_recommendation_is_has_a_say_however_shallow_it_stays():
    made = reaching(5.0, width=64) + reaching(1.0, width=256)
    found, rows = levels(made)
    assert len(set(found.values())) == 1
    wide = rows[(rows["width"] == 256) & rows["headline"].astype(bool)].iloc[0]
    assert wide["value"] > 0
    assert math.exp(-1.0) <= wide["target"] < 0.4


def test_where_trials_end_at_a_target_none_is_below_it():
    """Of each batch size one stepsize ends far below the target, and one at it, which may be the first further down."""
    made = [
        trial(b, seed, "grid", eta, rate=depth / end, iterations=end, status="target_reached", cell=str(eta))
        for b, end in ((1, 250), (8, 180), (64, 120), (128, 115))
        for seed in (0, 1)
        for eta, depth in ((0.1, 2.4), (0.2, 4.0))
    ]
    found, _ = levels(made)
    lowest = {min(own) for own in found.values()}
    assert lowest == {0.091}  # exp(-2.4), rounded up
