import io
import json
import math
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


def test_a_figure_is_drawn_on_axes_of_ones_own_for_a_target_and_under_a_title(tmp_path):
    """As in a paper: the reading of the recommendation, alone."""
    made = [*tuned(b_c=9.0), *tuned(b_c=9.0, width=128)]
    loaded = raysat.load(results(tmp_path / "toy", made, stepsizes=grid([0.25, 0.5, 1.0, 2.0]), widths=(64, 128)))
    figure = Figure(figsize=(9, 3))
    steps, exponents, losses = figure.subplots(1, 3)
    assert loaded.plot_steps(steps, target=0.8, title="Iterations") == [figure]
    loaded.plot_exponents(exponents)
    loaded.plot_loss_curves(losses, target=0.8)
    assert [axes.get_title() for axes in figure.axes] == ["Iterations", "width 128, grid (free)", "width 128, grid"]
    assert figure.get_suptitle() == ""
    assert [axes.get_xlabel() for axes in figure.axes] == [*["batch size b (samples)"] * 2, "iteration t"]
    measured = steps.containers[0].lines[0]
    n = [math.log(1 / 0.8) / (0.02 / (1 + 9 / b)) for b in SIZES]
    assert measured.get_ydata() == pytest.approx(n, rel=0.01)
    assert steps.get_legend() is not None
    assert [line.get_ydata()[0] for line in losses.lines if line.get_linestyle() == ":"] == [0.8]
    (own,) = loaded.plot_steps(title="Figure 1")
    assert own.get_suptitle() == "Figure 1"


def test_a_notebook_shows_the_answer_and_the_table(tmp_path):
    loaded = raysat.load(results(tmp_path / "toy", grid_of(), dataset="<toy>"))
    shown = loaded._repr_html_()
    assert "critical batch size is " in shown
    assert '<table class="cards">' in shown
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


@pytest.mark.slow
def test_one_number_for_one_quantity_wherever_it_is_shown(tmp_path):
    """The critical batch size in the terminal, the page, its figures, table and slider, a notebook and from Python."""
    made = [({**row, "steps_per_second": 100.0}, curve) for row, curve in tuned(b_c=9.0)]
    root = results(tmp_path / "toy", made, targets=(0.7,), stepsizes=grid([0.25, 0.5, 1.0, 2.0]), seeds=3)
    console = Console(file=io.StringIO(), width=100)
    html = finish(root, console).read_text(encoding="utf-8")
    page, drawn = unescape(html), json.loads(re.search('id="payload">(.*?)</script>', html)[1])
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
    for text in (html, loaded._repr_html_()):  # the cell of the table
        assert f">{number(fit['value'])}<br>{bounds(fit['low'], fit['high'])}<br>" in text
    (slider,) = drawn["targets"]
    assert slider["said"][slider["start"]] == one.sentence
    views = {name["name"]: name["views"][0] for name in drawn["figures"]}
    at = views["targets"]["series"][0]["x"]["target"].index(0.7)
    ends = [views["targets"]["series"][0][name][at] for name in ("y", "low", "high")]
    marks = views["steps"]["by"][slider["start"]]["marks"]
    (mark,) = [mark for mark in marks if "measured" in mark["name"]]
    assert [mark[name] for name in ("at", "low", "high")] == ends
    assert ends == [float(f"{fit[name]:.5g}") for name in ("value", "low", "high")]
    figures = [text for plot in loaded.plot_steps() for axes in plot.axes for text in axes.texts]
    assert any(f"b_N = {number(fit['value'])}" in text.get_text() for text in figures)
    row = loaded.fit().fits.query("quantity == 'b_N' and headline and tuning == 'free'").iloc[0]
    assert (row["value"], row["low"], row["high"]) == (fit["value"], fit["low"], fit["high"])


@pytest.mark.parametrize("target", ["1.1", [1.0, 2.0], 0, -1.0, math.nan, math.inf, True])
def test_a_target_that_is_no_loss_is_refused_in_a_sentence(folder, target):
    for ask in (lambda: raysat.load(folder).plot_steps(target=target), lambda: raysat.load(folder).fit([target])):
        with pytest.raises(raysat.InputError, match="target"):
            ask()
