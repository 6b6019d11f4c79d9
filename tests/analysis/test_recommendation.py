import math
import re

import pytest
from analysis.test_analysis import SIZES, analyzed, full, printed, trial

from raysat.analysis.recommendation import recommendations


def tuned(b_c=12.0, seeds=3, etas=(0.25, 0.5, 1.0, 2.0), best=0.5, **changes):
    """A grid whose best stepsize lies inside: N is twice as large a factor of four away from it."""
    return [
        trial(b, seed, "grid", eta, rate=0.02 / (1 + b_c / b) / (1 + math.log2(eta / best) ** 2 / 4), **changes)
        for seed in range(seeds)
        for b in SIZES
        for eta in etas
    ]


def recommended(made, targets=(0.7,)):
    analysis = analyzed(made, list(targets))
    (one,) = recommendations(analysis.fits, analysis.points)
    return one


def test_it_is_the_batch_size_run_that_is_nearest_to_b_n_and_says_what_it_saves_and_costs():
    """N is N_inf (1 + 12/b): at 16 it is 1.75 and at 1 it is 13 times N_inf, -log(0.7)/0.02 = 17.8."""
    one = recommended(tuned())
    assert one.batch_size == 16
    assert one.low <= 12.001
    assert one.high >= 11.999
    assert one.target == 0.7
    assert one.sentence.startswith("Use b = 16 (b_N = 12 [")
    assert (
        f"{13 / 1.75:.1f} times fewer iterations than b = 1 for {16 * 1.75 / 13:.1f} times the samples" in one.sentence
    )
    assert "beyond b =" not in one.sentence  # 5 % above the plateau lies at 240, beyond what was run
    assert f"To loss 0.7, {16 * 1.75 * 17.83 / 1000:.1g}" in one.sentence
    assert "width 64, 3 seeds, stepsizes tuned at each b. That is less than an epoch away" in one.sentence
    assert recommended(tuned(n=100)).sentence.endswith("width 64, 3 seeds, stepsizes tuned at each b.")


def test_beyond_the_plateau_nothing_is_gained():
    assert "; beyond b = 64 less than 5 % of the iterations are saved." in recommended(tuned(b_c=2.5)).sentence


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            full(),
            r"stepsizes were not tuned at each batch size \(theory\(1\)\)\. Run it again with .*grid\(auto=True\)",
        ),
        (tuned(etas=(0.25, 0.5)), r"the best stepsize is the largest tried at b = 1, 2, .*: widen the grid"),
        (tuned(b_c=500.0), r"beyond the largest batch size run \(128\)"),
        (tuned(b_c=0.1), r"below the smallest batch size run \(1\)"),
    ],
)
def test_what_is_not_supported_is_said_in_the_place_of_a_number(made, words):
    one = recommended(made, [0.99] if "beyond" in words else [0.7])
    assert math.isnan(one.batch_size)
    assert re.match(r"No batch size can be recommended yet( for loss [\d.]+)?: " + words, one.sentence)


def test_the_free_reading_of_the_widest_network_speaks():
    assert "width 128" in recommended(tuned() + tuned(b_c=30.0, width=128), [0.9]).sentence


def test_an_interval_over_all_batch_sizes_recommends_none():
    """Three values of one seed, one of them off by a factor of 3, and seeds with one batch size each."""
    wide = [one for one in tuned(seeds=1) if one[0]["batch_size"] in (4, 16, 64)]
    wide = [one if one[0]["batch_size"] != 16 else trial(16, 0, "grid", one[0]["eta"], rate=0.005 / (1 + one[0]["eta"]))
            for one in wide]  # fmt: skip
    alone = [one for one in tuned(seeds=8) if one[0]["batch_size"] == SIZES[one[0]["seed"]]]
    for made, words in ((wide, r"b_N = \S+ \["), (alone, r"b_N = \S+ without an interval")):
        one = recommended(made)
        assert math.isnan(one.batch_size)
        assert re.search(words + ".* may be any of the batch sizes run: more seeds would tell", one.sentence)


@pytest.mark.parametrize("target", [5.0, 1e-320])
def test_no_stepsize_is_the_best_where_there_is_no_value(target):
    assert "widen the grid" not in recommended(tuned(), [target]).sentence


def test_a_target_twice_is_one():
    analysis = analyzed(tuned(), [0.7, 0.7])
    assert printed(analysis, 100) == printed(analyzed(tuned(), [0.7]), 100)


def test_one_batch_size_varies_by_nothing():
    assert "varies" not in recommended([one for one in tuned() if one[0]["batch_size"] == 8]).sentence


def test_the_smallest_batch_size_saves_nothing_beside_itself():
    sentence = recommended(tuned(b_c=1.2)).sentence
    assert sentence.startswith("Use b = 1 (b_N = 1.2 [")
    assert "the smallest run: a larger batch costs samples nearly in proportion" in sentence
    assert "times fewer" not in sentence


def test_a_model_without_depth_or_width_has_one_too():
    """A column of such a table has nothing but missing values."""
    made = tuned(model="linear", model_options="{}", depth=None, activation=None, width=0)
    assert recommended(made).sentence.startswith("Use b = 16 ")
    assert "width" not in recommended(made).sentence


def test_the_terminal_begins_with_it():
    analysis = analyzed(tuned(), [0.7])
    assert " ".join(printed(analysis, 100).split()).startswith("Use b = 16 ")
