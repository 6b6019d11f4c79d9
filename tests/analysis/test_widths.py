import json

import numpy as np
import pandas as pd
import pytest

from raysat.analysis.widths import by_width, sentences


@pytest.fixture
def tables():
    """Networks whose drift and error of the linearization fall exactly like width^-1/2."""
    trials, ntk = [], []
    for width in (64, 256, 1024):
        for seed in (0, 1):
            for b in (1, 16):
                h = 0.01 * b**0.1
                common = {"width": width, "seed": seed, "batch_size": b, "stepsize": "theory(1)", "b_star": 8 + seed}
                error = (1 + seed) / width**0.5
                trials += [
                    {**common, "h": h * (1 + error), "model_options": "{}"},
                    {**common, "h": h, "model_options": json.dumps({"linearized": True})},
                ]
                for t in (10, 100):
                    ntk.append({"width": width, "iteration": t, "kernel_drift": t / 100 / width**0.5})
        ntk.append({"width": width, "iteration": 0, "kernel_drift": None})
    return pd.DataFrame(trials), pd.DataFrame(ntk)


def test_a_row_a_width(tables):
    table = by_width(*tables)
    assert table["width"].tolist() == [64, 256, 1024]
    assert table["seeds"].tolist() == [2, 2, 2]
    assert table[["b_star", "b_star_min", "b_star_max"]].to_numpy().tolist() == [[8.5, 8, 9]] * 3
    assert table["drift_iteration"].tolist() == [100] * 3
    np.testing.assert_allclose(table["drift"], 1 / table["width"] ** 0.5)
    np.testing.assert_allclose(table["h_error"], 1.5 / table["width"] ** 0.5)
    np.testing.assert_allclose(table["h_error_max"], 2 / table["width"] ** 0.5)


def test_the_power_of_the_width_is_said(tables):
    said = sentences(by_width(*tables))
    assert "b_star goes from 8.5 at width 64 to 8.5 at width 1024" in said[0]
    assert "from 12 % to 3.1 %, like width^-0.50" in said[1]
    assert "from 19 % to 4.7 %, like width^-0.50" in said[2]


def test_nothing_is_said_of_one_width_or_without_drift_and_linearization(tables):
    trials, ntk = tables
    one = by_width(trials[trials["width"] == 64], ntk)
    plain = by_width(trials[trials["model_options"] == "{}"], ntk[ntk["iteration"] == 0])
    assert one.empty
    assert plain.empty
    assert sentences(plain) == []


def test_drift_alone_is_enough(tables):
    trials, ntk = tables
    table = by_width(trials[trials["model_options"] == "{}"], ntk)
    assert table["drift"].notna().all()
    assert table["h_error"].isna().all()
    assert len(sentences(table)) == 2
