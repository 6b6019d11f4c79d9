"""The figures of several sweeps in one."""

import pandas as pd
import pytest
from analysis.test_analysis import analyzed, grid_of, without_statistics

from raysat.analysis import summary
from raysat.report.comparison import payload


@pytest.fixture(scope="module")
def figures():
    tables = {name: summary(analyzed(made).fits) for name, made in (("a", grid_of()), ("b", without_statistics()))}
    made = payload(pd.concat([table.assign(sweep=name) for name, table in tables.items()], ignore_index=True))
    return {figure["name"]: {view["at"][0]: view for view in figure["views"]} for figure in made["figures"]}


def test_a_measurement_without_a_prediction_is_shown_against_width_and_not_against_b_star(figures):
    free = figures["b_N-width"]["grid (free)"]
    names = [one["name"] for one in free["series"]]
    assert sum(name.startswith("b ") and name.endswith(": b_N") for name in names) == 1
    assert not any(name.startswith("b ") and name.endswith(": b_star") for name in names)
    assert sum(name.startswith("a ") for name in names) == 2
    against = figures["b_N-b_star"]["grid (free)"]
    assert not any(one["name"].startswith("b ") for one in against["series"])


def test_the_summary_counts_what_is_shown(figures):
    assert "2 critical batch sizes of 2 sweeps." in figures["b_N-width"]["grid (free)"]["summary"]
    assert "1 critical batch sizes of 1 sweep." in figures["b_N-b_star"]["grid (free)"]["summary"]
