"""Any statistic or estimate may be missing, zero or infinite: no line, figure or fit fails of it or prints it so."""

import math
import re

import numpy as np
import pandas as pd
import pytest
from analysis.test_analysis import full, printed, tables
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from raysat import plots
from raysat.analysis import analyze, number, scatter, widths
from raysat.analysis.words import bounds
from raysat.driver import adaptive, progress
from raysat.saturation import recursion
from raysat.saturation.critical import critical_batch
from raysat.saturation.formulas import b_star, exponent, h_interpolated, stepsize
from raysat.saturation.targets import choose_targets, steps_to_target
from raysat.spec.stepsizes import fixed, fixed_fraction, grid, theory

WRONG = re.compile(r"\bnan\b|\binf\b|None|NaN")
"""What Python makes of a number that there is none of."""

ABSENT = st.sampled_from([None, math.nan, 0.0, math.inf, -math.inf, 1e-320, 1e308])
VALUES = st.one_of(ABSENT, st.floats(1e-6, 1e6))
FLOATS = VALUES.map(lambda value: math.nan if value is None else value)
SIZE = st.integers(1, 100)


def right(text):
    assert not WRONG.search(text), text
    return text


ROW = {"model": "mlp", "width": 8, "seed": 0, "training": "sgd", "batch_size": 4, "iterations_done": 3}


@given(st.sampled_from(["completed", "diverged", "failed"]), st.sampled_from(["grid", "theory(1)"]), *[VALUES] * 4)
def test_the_line_of_a_trial(status, stepsize, eta, first, last, seconds):
    row = ROW | {"status": status, "stepsize": stepsize, "eta": eta, "loss_init": first, "loss_final": last}
    said = progress.trial_line(row | {"seconds": seconds, "error": "ValueError: [/] no"}).plain
    assert right(said).startswith("mlp width 8, seed 0, ")


@given(VALUES, VALUES, VALUES, st.integers(0, 5))
def test_the_lines_of_what_runs(loss, seconds, left, ended):
    job = {"name": "cell", "seconds": seconds, "iteration": 3, "iterations": 10, "loss": loss}
    right(progress.running_line(job))
    record = {"ended": ended, "running": [job], "stage": "trials", "total": 5, "failed": 0, "diverged": 0}
    right(progress.summary_line(record | {"seconds_left": left, "grows": False, "cluster": ""}))


@given(FLOATS, FLOATS, FLOATS)
def test_words_of_numbers(low, high, rms):
    for text in (number(low), bounds(low, high), scatter(rms)):
        right(text)
    assert (bounds(low, high) == "") == (math.isnan(low) or math.isnan(high))


@given(st.lists(st.tuples(*[FLOATS] * 8), min_size=2, max_size=4))
@example([(math.nan,) * 8] * 2)
def test_sentences_about_width(rows):
    table = pd.DataFrame(
        [(8 * 2**k, 3, *row[:6], 10, *row[6:]) for k, row in enumerate(rows)], columns=list(widths.COLUMNS)
    )
    for sentence in widths.sentences(table):
        assert "goes" in right(sentence)


@given(FLOATS, FLOATS, SIZE, SIZE, st.booleans())
def test_formulas(gamma, k_op, b, more, replacement):
    n = b + more - 1
    made = b_star(gamma, k_op)
    assert math.isnan(made) or made == gamma / k_op
    assert math.isnan(made) or k_op > 0
    for policy in (fixed(0.1), fixed_fraction(), theory(), *grid([1.0], relative=True)):
        eta = stepsize(policy, b, n, gamma, k_op, replacement=replacement, base=k_op)
        assert isinstance(eta, float)
        assert math.isnan(eta) or eta >= 0 or policy.policy == "grid_relative"
    limit = recursion.stable_below({"k_op": k_op}, b, "epochs")
    assert math.isnan(limit) if not k_op > 0 else limit == 2 / k_op
    assert math.isnan(exponent(gamma, k_op, b)) or (gamma > 0 and k_op > 0)
    found = adaptive.TrialResult.of({"status": "completed", "eta": gamma, "eta_limit": k_op}, [0, 1], [1.0, 0.5])
    assert isinstance(found.below(1.0), bool)
    assert math.isnan(found.eta_over_limit) or k_op > 0


@given(FLOATS, FLOATS, st.integers(1, 64))
def test_the_interpolated_exponent(one, last, b):
    made = h_interpolated(b, one, last)
    assert math.isnan(made) == (not (0 < one < math.inf and 0 < last < math.inf))


@given(st.lists(st.lists(FLOATS, min_size=5, max_size=5), min_size=1, max_size=3), st.sampled_from("hN"))
@settings(max_examples=60)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_critical_batch_size_is_a_number_or_a_reason(values, quantity):
    fit = critical_batch(np.array([1, 4, 16, 64, 256]), np.array(values), quantity)
    if math.isnan(fit.value):
        assert right(fit.reason)
    else:
        assert 0 < fit.value < math.inf
        assert fit.low <= fit.high


@given(st.lists(FLOATS, min_size=2, max_size=6), FLOATS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_steps_to_a_target(losses, target):
    if not 0 < target < math.inf:
        return
    steps = steps_to_target(np.arange(len(losses)), np.array(losses), target)
    assert math.isnan(steps) or 0 <= steps <= len(losses)
    levels = choose_targets(np.array(losses), np.array(losses[::-1]))
    assert all(0 < level < math.inf for level in levels)


BLANKS = ("gamma", "k_op", "b_star", "b_star_thm33", "noise_scale", "eta_limit", "beta", "eta_beta")
BLANKS += ("h", "loss_init", "loss_final", "steps_per_second", "seconds", "eta")


@pytest.fixture(scope="module")
def measured():
    return tables(full())


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(BLANKS), ABSENT, min_size=1), st.sampled_from(["all", "some"]))
@settings(max_examples=8, phases=(Phase.explicit, Phase.generate))  # a smaller example is not worth the drawing
@example({"gamma": 0.0, "k_op": 0.0, "b_star": None}, "all")
@example({"b_star": math.inf}, "all")
@example({"b_star": 0.0}, "some")
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")
def test_an_analysis_and_its_figures_of_rows_that_lack_any_number(measured, blank, which):
    trials, curves = measured
    rows = trials.index if which == "all" else trials.index[::3]
    trials = trials.astype(dict.fromkeys(blank, float)).copy()
    for name, value in blank.items():
        trials.loc[rows, name] = math.nan if value is None else value
    analysis = analyze(trials, curves)
    right(printed(analysis, width=200))
    for plate in plots.render_figures(trials, curves, analysis):
        plate.figure.draw_without_rendering()
