import math

import numpy as np
import pandas as pd
import pytest

from raysat import InputError, communication
from raysat.allreduce import Link
from raysat.communication import Verdict, Work, prediction, verdict, work_of

WORK = Work(n_inf=100, b_n=64, launch=1e-3, sample=1e-4, size=4_000_000, largest=60_000)
FAST, SLOW = Link(alpha=1e-5, bandwidth=1e10), Link(alpha=1e-3, bandwidth=1e8)


def test_time_cost_and_speed_up_are_their_formulas():
    table = prediction(WORK, SLOW, [1, 4, 256], b=128)
    assert table["workers"].tolist() == [1, 4]  # of 256 workers some would have no sample
    iterations = 100 * (1 + 64 / 128)
    alone = iterations * (1e-3 + 128 * 1e-4)
    reduced = 6 * (1e-3 + 1e6 / 1e8)
    four = iterations * (1e-3 + 32 * 1e-4 + reduced)
    assert table["iterations"].tolist() == [iterations] * 2
    assert table["seconds"].tolist() == pytest.approx([alone, four])
    assert table["speed_up"].tolist() == pytest.approx([1, alone / four])
    assert table["efficiency"].tolist() == pytest.approx([1, alone / four / 4])
    assert table["cost"].tolist() == pytest.approx([alone, 4 * four])
    assert table["communication"].tolist() == pytest.approx([0, reduced / (four / iterations)])


@pytest.mark.parametrize("link", [FAST, SLOW])
@pytest.mark.parametrize("p", [1, 8, 4096])
def test_the_best_batch_is_the_best_of_all(link, p):
    candidates = np.geomspace(p, WORK.largest, 2000)
    best = candidates[np.argmin([WORK.seconds(b, p, link) for b in candidates])]
    assert WORK.best_batch(p, link) == pytest.approx(best, rel=0.02)


def test_where_it_stops_paying():
    """One worker's efficiency is 1 by definition; with a costly link the second worker may lose at once."""
    powers = [2**k for k in range(12)]
    fast, slow = (prediction(WORK, link, powers) for link in (FAST, SLOW))
    told = verdict(fast)
    assert (fast.loc[fast["workers"] <= told.worth, "efficiency"] >= 0.5).all()
    assert fast.loc[fast["workers"] == 2 * told.worth, "efficiency"].item() < 0.5
    assert fast["seconds"].min() == fast.loc[fast["workers"] == told.fastest, "seconds"].item()
    assert verdict(slow).worth < told.worth
    never = prediction(WORK, Link(1.0, 1e3), powers)
    assert verdict(never) == Verdict(fastest=1, worth=1)


def test_a_sweeps_work_is_its_fit_and_its_pace(monkeypatch):
    """Steps timed as launch + b sample give both; N(b) and b_N come from the analysis."""
    sizes = [1, 8, 64]
    trials = pd.DataFrame(
        {
            "batch_size": sizes,
            "steps_per_second": [1 / (1e-3 + b * 1e-4) for b in sizes],
            **{"width": 16, "dtype": "float32", "parameters": 1000, "n": 500},
        }
    )
    fits = pd.DataFrame(
        {"quantity": ["b_N"], "headline": [True], "value": [9.0], "asymptote": [40.0], "width": [16]},
    )
    analysis = type("Analysis", (), {"fits": fits})
    monkeypatch.setattr(communication, "analyze", lambda trials, curves: analysis)
    work = work_of(trials, pd.DataFrame())
    assert (work.n_inf, work.b_n, work.size, work.largest) == (40.0, 9.0, 4000, 500)
    assert (work.launch, work.sample) == (pytest.approx(1e-3), pytest.approx(1e-4))
    analysis.fits = fits.assign(value=math.nan)
    with pytest.raises(InputError, match="no b_N yet"):
        work_of(trials, pd.DataFrame())


def test_the_figure_has_a_line_for_each_batch_and_the_best():
    drawn = communication.figure(WORK, FAST, [1, 2, 4, 8], [16, 64])
    left, right = drawn.axes
    assert [line.get_label() for line in right.lines] == ["b = 16", "b = 64", "best b of each p"]
    base = WORK.seconds(WORK.best_batch(1, FAST), 1, FAST)
    expected = [base / WORK.seconds(64, p, FAST) for p in (1, 2, 4, 8)]
    assert left.lines[1].get_ydata() == pytest.approx(expected)
