import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from analysis.test_analysis import SIZES, analyzed, full, grid_of, tables, trial
from analysis.test_recommendation import tuned

from raysat.analysis.ladder import FEWEST_RUNGS, MEASURED, RUNGS, Ladder, ladder
from raysat.analysis.measure import best_by_steps
from raysat.spec.goals import Target


def laddered(made, targets=(), rungs=5):
    return ladder(*tables(made), analyzed(made, targets), rungs=rungs)


def levels(found, tuning="free"):
    return sorted(found.fits.loc[found.fits["tuning"] == tuning, "target"], reverse=True)


def rows_of(table, **values):
    for name, value in values.items():
        table = table[table[name] == value]
    return table


def bent(b, seed, eta, rates, ended):
    """A trial whose loss falls by a factor of 2 at one rate, and from there on at another; ended at 0.5 or not."""
    half = math.log(2) / rates[0]
    times = np.unique(np.r_[0, np.geomspace(1, 600, 200)].round()).tolist()
    losses = [math.exp(-rates[0] * min(t, half) - rates[1] * max(t - half, 0)) for t in times]
    row, _ = trial(b, seed, "grid", eta, rate=rates[0], status="target_reached" if ended else "completed")
    end = next(k for k, loss in enumerate(losses) if loss <= 0.5) + 1 if ended else len(times)
    curve = [
        {"cell_id": row["cell_id"], "iteration": int(t), "train_loss": loss}
        for t, loss in list(zip(times, losses, strict=True))[:end]
    ]
    return row, curve


def of_two(slow_ended, slow=0.3):
    """Of each batch size a stepsize that is first at 0.5 and hardly moves from there, and one that goes on."""
    makes = (1.0, (0.05, 5e-4), True), (2.0, (0.05 * slow, 0.05 * slow), slow_ended)
    return [
        bent(b, seed, eta, tuple(rate * b / (b + 9) for rate in rates), ended)
        for seed in range(2)
        for b in SIZES[:6]
        for eta, rates, ended in makes
    ]


def test_levels_are_evenly_spaced_in_log_loss_down_to_what_every_batch_size_reaches():
    found = laddered(tuned(seeds=1), [0.8], RUNGS)
    deepest = math.exp(-300 * 0.02 / 13)  # of b = 1 at its best stepsize
    made = [level for level in levels(found) if level != 0.8]
    assert len(made) == RUNGS
    assert deepest <= made[-1] < 1.01 * deepest
    steps = [math.log(above / below) for above, below in pairwise([1.0, *made])]
    assert steps == pytest.approx([math.log(1 / deepest) / RUNGS] * RUNGS, rel=0.3)  # of three digits
    assert found.fits.loc[found.fits["own"], "target"].unique().tolist() == [0.8]
    assert set(found.fits.loc[found.fits["headline"], "target"]) == {0.8}
    (end,) = found.ends.to_dict("records")
    assert (end["deepest"], end["early"]) == (made[-1], False)


def test_the_law_is_found_at_every_level():
    fits = laddered(tuned()).fits.query("tuning == 'free'")
    assert len(fits) > 5
    near = fits[fits["target"] < 0.95]  # nearer to w_0 the target is within an iteration
    assert near["value"].to_numpy() == pytest.approx(12, rel=0.02)


def test_a_rung_is_what_the_analysis_finds_at_that_target():
    made = tuned(seeds=2)
    found = laddered(made, [0.9])
    level = levels(found)[len(levels(found)) // 2]
    asked = analyzed(made, [level])
    for tuning in ("free", "stable"):
        at = {"target": level, "tuning": tuning}
        rung, fit = (rows_of(fits, quantity="b_N", **at).iloc[0] for fits in (found.fits, asked.fits))
        names = ["value", "low", "high", "q", "reason"]
        assert rung[names].tolist() == fit[names].tolist()
        on_rung, points = (
            rows_of(table, quantity="N", **at)["value"].tolist() for table in (found.points, asked.points)
        )
        assert on_rung == points


def test_it_ends_where_a_trial_that_was_ended_may_win():
    """At 0.5 all that were ended are there; below, one that was first at 0.5 may be first again."""
    found = laddered(of_two(slow_ended=False), [0.5])
    assert levels(found)[-1] == 0.5
    (end,) = found.ends.to_dict("records")
    assert (end["deepest"], end["early"]) == (0.5, True)
    assert found.fits.query("target == 0.5")["value"].notna().all()


def test_it_goes_on_where_a_trial_that_was_ended_had_run_for_longer_than_the_winner():
    """The one that goes on is the faster one throughout: what was ended was slower still."""
    found = laddered(of_two(slow_ended=False, slow=3.0), [0.5], RUNGS)
    assert levels(found)[-1] < 0.5
    assert found.ends["early"].tolist() == [True]


def test_other_widths_have_their_own_targets_and_many_settings_fewer_levels():
    found = laddered([*tuned(seeds=1), *tuned(seeds=1, width=32), *full(seeds=1)], [0.9, 0.8])
    sizes = found.fits.groupby(["width", "stepsize", "tuning"])["target"].nunique().to_dict()
    assert sizes[64, "grid", "free"] == sizes[64, "grid", "stable"] > 5
    assert {sizes[key] for key in sizes if key[0] == 32 or key[1] == "theory(1)"} == {2}
    several = [one for n in (300, 400, 500, 600) for one in tuned(n=n, seeds=1)]
    of_each = (
        laddered(several, [0.8], RUNGS).fits.query("tuning == 'free' and not own").groupby("n")["target"].nunique()
    )
    assert of_each.tolist() == [max(FEWEST_RUNGS, MEASURED // 4)] * 4


@pytest.mark.parametrize("made", [[], full(status="failed"), full(seeds=1)[:1]])
def test_of_little_there_is_what_the_analysis_has(made):
    found = laddered(made)
    assert len(found.fits) >= len(Ladder.own(analyzed(made)).fits)
    assert list(found.fits) == list(Ladder.own(analyzed(made)).fits)
    assert found.points["quantity"].isin(["N"]).all()


def test_stepsizes_at_the_end_of_the_grid_are_said_at_the_level_where_they_are():
    made = grid_of()
    reasons = laddered(made).fits.query("tuning == 'free' and target < 0.9")["reason"]
    assert reasons.str.contains("widen the grid").all()


def test_a_trial_that_ended_before_the_best_one_was_seen_at_the_target_could_have_won():
    """It is compared by evaluations, as the winner is, and not by N, from which their distance is taken off."""
    trials = pd.DataFrame({"cell_id": ["first", "early"], "status": ["completed", "target_reached"], "eta": [0.1, 0.2]})
    trials = trials.assign(seed=0, batch_size=8)

    def undecided(last):
        # every second evaluation alone has the passage at 117 or at 100: N is corrected to below 100
        times, losses = np.array([0, 50, 60, 70, 80, 100, 120]), np.array([1.0, 0.5, 0.6, 0.3, 0.4, 0.1, 0.09])
        paths = {"first": (times, losses), "early": (np.array([0, last]), np.array([1.0, 0.2]))}
        (row,) = best_by_steps(trials, paths, Target("train_loss", 0.1)).to_dict("records")
        assert row["value"] < 99
        assert row["first"] == 100
        return row["undecided"]

    assert undecided(99)
    assert not undecided(100)
