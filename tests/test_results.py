import io
import re
import subprocess
import sys
from html import unescape

import pandas as pd
import pytest
from analysis.test_analysis import SIZES, full, grid_of, results, trial
from analysis.test_recommendation import tuned
from matplotlib.figure import Figure
from rich.console import Console

import raysat
from raysat.analysis import number
from raysat.analysis.words import bounds
from raysat.report import finish
from raysat.spec.stepsizes import grid


@pytest.fixture
def folder(tmp_path):
    return results(tmp_path / "toy", full())


def test_the_tables_are_read_once_and_when_asked_for(folder):
    loaded = raysat.load(folder)
    assert len(loaded.trials) == len(full())
    assert loaded.trials is loaded.trials
    assert set(loaded.curves["cell_id"]) == set(loaded.trials["cell_id"])
    assert loaded.ntk.empty
    assert loaded.record["sweep"]["name"] == "toy"


def test_another_load_sees_what_came_since(folder):
    before = raysat.load(folder)
    assert len(before.trials) == 16
    results(folder, [trial(256)], batch_sizes=(*SIZES, 256))
    assert len(before.trials) == 16
    assert len(raysat.load(folder).trials) == 17


def test_fits_are_those_of_the_targets_asked_for(folder):
    loaded = raysat.load(str(folder))
    analysis = loaded.fit([0.7])
    assert analysis.fits.query("quantity == 'b_N'")["target"].tolist() == [0.7]
    assert analysis.fits.query("headline")["value"].to_numpy() == pytest.approx(12, rel=1e-2)
    assert set(loaded.fit().points["quantity"]) == {"h", "N"}


def test_the_targets_of_the_sweep_are_the_default(tmp_path):
    loaded = raysat.load(results(tmp_path / "toy", full(), targets=(0.6,)))
    assert loaded.fit().fits.query("quantity == 'b_N'")["target"].tolist() == [0.6]


@pytest.mark.parametrize("kind", ["loss_curves", "exponents", "steps", "costs"])
def test_figures_are_matplotlibs(folder, kind):
    (figure,) = getattr(raysat.load(folder), f"plot_{kind}")()
    assert isinstance(figure, Figure)


def test_a_notebook_shows_the_answer_and_the_table(tmp_path):
    loaded = raysat.load(results(tmp_path / "toy", grid_of(), dataset="<toy>"))
    shown = loaded._repr_html_()
    assert "critical batch size is " in shown
    assert "<table>" in shown
    assert not re.search(r"<script|<toy>", shown)
    assert "<" not in repr(loaded)
    assert "sweep toy, 96 cells have ended" in repr(loaded)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(raysat.InputError, match="holds no sweep"):
        raysat.load(tmp_path)


def test_workers_that_import_raysat_import_neither_what_draws_nor_what_stores():
    others = "matplotlib", "pandas", "pooch", "pyarrow", "ray", "rich", "scipy", "sklearn"
    code = f"import raysat, sys; print(set({others}) & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_one_number_for_one_quantity_wherever_it_is_shown(tmp_path):
    """The critical batch size in the terminal, the page, its figure, the table of fits, a notebook and from Python."""
    made = [({**row, "steps_per_second": 100.0}, curve) for row, curve in tuned(b_c=9.0)]
    root = results(tmp_path / "toy", made, targets=(0.7,), stepsizes=grid([0.25, 0.5, 1.0, 2.0]), seeds=3)
    console = Console(file=io.StringIO(), width=100)
    page = unescape(finish(root, console).read_text(encoding="utf-8"))
    loaded = raysat.load(root)
    (one,) = loaded.recommendation
    stored = pd.read_parquet(root / "analysis.parquet")
    fit = stored.query("quantity == 'b_N' and headline and tuning == 'free' and predictor == 'b_star'").iloc[0]

    assert fit["value"] == pytest.approx(9, rel=0.01)
    named = f"b_N = {number(fit['value'])} {bounds(fit['low'], fit['high'])}"
    assert named in one.sentence
    assert (one.low, one.high) == (fit["low"], fit["high"])
    for text in (console.file.getvalue(), page, unescape(loaded._repr_html_())):
        assert one.sentence in " ".join(text.split())
    assert f"Fit: b_N = {number(fit['value'])} samples" in page  # below the figure
    figures = [text for plot in loaded.plot_steps() for axes in plot.axes for text in axes.texts]
    assert any(f"b_N = {number(fit['value'])}" in text.get_text() for text in figures)
    row = loaded.fit().fits.query("quantity == 'b_N' and headline and tuning == 'free'").iloc[0]
    assert (row["value"], row["low"], row["high"]) == (fit["value"], fit["low"], fit["high"])
