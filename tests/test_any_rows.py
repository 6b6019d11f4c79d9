"""The report is made of any subset of valid rows; a part that fails says so in its place, and the rest stands."""

import io
import math
import re
import shutil
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report.test_report import Page
from rich.console import Console

import raysat
from raysat import ablation, plots
from raysat.analysis import print_summary
from raysat.analysis.widths import sentences
from raysat.plots import drawing
from raysat.plots.attempts import Attempts, once
from raysat.report import compare, finish, render, sections
from raysat.report.material import Material
from raysat.storage.schema import DIVERGED, FAILED, REFUSED
from raysat.storage.store import Store

pytestmark = [pytest.mark.filterwarnings("ignore::RuntimeWarning"), pytest.mark.usefixtures("few_rungs")]

AXES = ("stepsize", "width", "seed", "batch_size", "status", "training")
OF_TRIALS = (
    *("gamma", "k_op", "b_star", "b_star_thm33", "noise_scale", "beta", "eta_beta", "eta_limit", "h", "eta"),
    *("loss_init", "loss_final", "steps_per_second", "seconds", "gpus", "distance_from_init", "test_loss"),
)
OF_CURVES = ("train_loss", "seconds", "distance_from_init", "test_loss", "test_accuracy")
ODD = (math.nan, 0.0, math.inf)


@pytest.fixture(scope="module")
def whole(swept_once):
    """Of two ways of training: the rows of the second are those of the first, under other ids."""
    material = Material.of(Store(swept_once.parent / "results" / "swept"))
    tables = {name: getattr(material, name) for name in ("trials", "curves")}
    other = {name: table.assign(cell_id=table["cell_id"] + "m") for name, table in tables.items()}
    other["trials"]["training"] = "momentum 0.9"
    return of(material, **{name: pd.concat([tables[name], other[name]]) for name in tables})


@pytest.fixture(scope="module")
def few(whole):
    """Of one width and one way of training."""
    trials = whole.trials
    return of(whole, trials=trials[(trials["width"] == 4) & (trials["training"] == "sgd")])


def of(material, **tables):
    """The same sweep with other tables."""
    given = {name: getattr(material, name) for name in ("record", "trials", "curves", "ntk", "done")}
    return Material(**{**given, **{name: table.reset_index(drop=True) for name, table in tables.items()}})


def lost(trials, rows, status):
    """The trials, of which some have failed or diverged."""
    nothing = ["h"] if status == DIVERGED else ["h", "eta", "loss_final", "beta", "eta_beta", "eta_limit", "seconds"]
    trials = trials.assign(status=trials["status"].mask(rows, status))
    trials["error"] = trials["error"].mask(rows & (status == FAILED), "Traceback\n ...\nOSError: gone")
    return trials.assign(**{name: trials[name].mask(rows) for name in nothing})


def refused(ntk):
    reals = ntk.select_dtypes("float").columns
    return ntk.assign(**dict.fromkeys(reals, math.nan), method=REFUSED, method_reason="bn mixes the samples")


def page_of(material, images=(), attempt=None):
    """The page, which has all its parts, and is valid."""
    attempt = attempt or Attempts()
    html = render(material, images, attempt)
    assert attempt.failures == {}
    assert 'class="failed"' not in html
    page = Page(html)
    assert page.open == []
    assert "Configuration, versions, machine" in page.text
    assert material.record["versions"]["torch"] in page.text
    return page


@st.composite
def some(draw, whole):
    """A subset of the rows, some of their values missing, zero or infinite."""
    trials, curves, ntk = whole.trials, whole.curves, whole.ntk
    random = Random(draw(st.integers(0, 2**32)))

    def chosen(table, share):
        return np.array([random.random() < share for _ in range(len(table))], bool)

    for axis in draw(st.lists(st.sampled_from(AXES), unique=True, max_size=3)):
        values = sorted(set(trials[axis]))
        trials = trials[trials[axis].isin(draw(st.sets(st.sampled_from(values), min_size=1)))] if values else trials
    shares = st.sampled_from((1, 1, 0.8, 0.3, 0))
    trials, curves, ntk = (table[chosen(table, draw(shares))] for table in (trials, curves, ntk))
    if draw(st.booleans()):
        curves = curves[curves["cell_id"].isin(random.sample(sorted(set(trials["cell_id"])), len(trials) // 2))]
    for status in draw(st.lists(st.sampled_from((FAILED, DIVERGED)), max_size=2)):
        trials = lost(trials, chosen(trials, draw(shares)), status)
    ntk = refused(ntk) if draw(st.integers(0, 4)) == 0 else ntk
    for name, value in draw(st.dictionaries(st.sampled_from(OF_TRIALS), st.sampled_from(ODD), max_size=3)).items():
        trials = trials.assign(**{name: trials[name].astype(float).mask(chosen(trials, draw(shares)), value)})
    for name, value in draw(st.dictionaries(st.sampled_from(OF_CURVES), st.sampled_from(ODD), max_size=1)).items():
        curves = curves.assign(**{name: curves[name].astype(float).mask(chosen(curves, draw(shares)), value)})
    return of(whole, trials=trials, curves=curves, ntk=ntk)


@settings(max_examples=8)
@given(data=st.data())
def test_a_page_is_made_of_any_rows(whole, data):
    material = data.draw(some(whole))
    attempt = Attempts()
    made = plots.render_figures(material.trials, material.curves, material.analysis, attempt)
    assert attempt.failures == {}
    assert len({plate.name for plate in made}) == len(made)
    page_of(material)
    print_summary(material.analysis, Console(file=io.StringIO(), width=80))
    assert sentences(material.widths) is not None


def without(curves, trials):
    return curves[~curves["cell_id"].isin(trials["cell_id"])]


CASES = {
    "one policy without an h": lambda t, c, n: (t.assign(h=t["h"].mask(t["stepsize"] == "fixed(1e-09)", 0.0)), c, n),
    "only that policy": lambda t, c, n: (t[t["stepsize"] == "fixed(1e-09)"].assign(h=0.0), c, n),
    "no curves": lambda t, c, n: (t, c[:0], n),
    "no curves of a group": lambda t, c, n: (
        t,
        c[~c["cell_id"].isin(t.loc[t["stepsize"] == "theory(1)", "cell_id"])],
        n,
    ),
    "curves without rows": lambda t, c, n: (t[:3], c, n),
    "nothing": lambda t, c, n: (t[:0], c[:0], n[:0]),
    "one row": lambda t, c, n: (t[:1], c, n),
    "one seed": lambda t, c, n: (t[t["seed"] == 1], c, n),
    "one batch size": lambda t, c, n: (t[t["batch_size"] == 8], c, n),
    "everything diverged": lambda t, c, n: (lost(t, t["seed"] >= 0, DIVERGED), c, n),
    "everything failed": lambda t, c, n: (lost(t, t["seed"] >= 0, FAILED), c[:0], n),
    "no ntk": lambda t, c, n: (t, c, n[:0]),
    "ntk refused": lambda t, c, n: (t.assign(**dict.fromkeys(OF_TRIALS[:8], math.nan)), c, refused(n)),
    "a target that one panel does not reach": lambda t, c, n: (
        t[(t["stepsize"] != "theory(1)") | (t["seed"] == 0)],
        c,
        n,
    ),
    "no loss above zero": lambda t, c, n: (t, c.assign(train_loss=0.0), n),
    "statistics of zero": lambda t, c, n: (t.assign(**dict.fromkeys(OF_TRIALS[:5], 0.0)), c, n),
    "infinite statistics": lambda t, c, n: (t.assign(**dict.fromkeys(OF_TRIALS[:5], math.inf)), c, n),
    "no time": lambda t, c, n: (t.assign(steps_per_second=math.inf, seconds=0.0), c, n),
}


@pytest.mark.parametrize("case", CASES)
def test_and_its_pictures_are_drawn(few, case, tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "DPI", 20)
    monkeypatch.setattr(drawing, "FORMATS", ("png",))
    trials, curves, ntk = CASES[case](few.trials, few.curves, few.ntk)
    material, attempt = of(few, trials=trials, curves=curves, ntk=ntk), Attempts()
    made = plots.render_figures(material.trials, material.curves, material.analysis, attempt)
    plots.save(made, tmp_path, attempt)
    page_of(material, [(plate, (tmp_path / f"{plate.name}.png").read_bytes()) for plate in made], attempt)


def test_ways_of_training_without_their_curves_have_a_table(whole):
    table = ablation.ablation(whole.trials, whole.curves[:0])
    assert table["slope"].isna().all()
    assert (table["seeds"] > 0).any()


def test_one_group_without_curves_leaves_the_others_theirs(whole):
    """All curves of a group were unreadable: there was no page."""
    of_group = whole.trials[whole.trials["stepsize"] == "theory(1)"]
    page = page_of(of(whole, curves=without(whole.curves, of_group)))
    labels = {view["at"][2] for view in page.figures["loss-curves"]["views"]}
    assert "theory(1)" not in labels
    assert "fixed(1e-09)" in labels


@pytest.mark.parametrize("part", ["answer", "advice", "symbols", "lost", "provenance", "progress", "figures"])
def test_a_part_that_fails_says_so_in_its_place_and_the_rest_stands(few, monkeypatch, part):
    def fails(*_):
        raise ArithmeticError("planted <b>")

    monkeypatch.setattr(sections, part, fails)
    html = render(few, [], Attempts())
    page = Page(html)
    assert page.open == []
    assert html.count('class="failed"') == 1
    assert "could not be made (ArithmeticError: planted <b>)." in page.text
    assert re.search(r"<details><summary>traceback</summary><pre>Traceback [^<]*line \d+, in fails", html)
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", html) == [
        *("Answer", "Figures", "What to use", "Measured and predicted", "Symbols", "Certificates of the statistics"),
        *("Failed and diverged cells", "Configuration, versions, machine"),
    ]


def test_where_the_analysis_fails_each_part_that_needs_it_says_so_and_the_others_stand(swept, monkeypatch):
    def fails(*_):
        raise ArithmeticError("planted")

    monkeypatch.setattr("raysat.report.material.analyze", fails)
    console = Console(file=io.StringIO(), width=200)
    page = Page(finish(swept, console).read_text())
    assert page.text.count("This part could not be made (ArithmeticError: planted).") == 3  # of nine
    assert "They are in no fit" in page.text
    assert "The analysis could not be made (ArithmeticError: planted)." in console.file.getvalue()
    assert page.figures == {}


def test_a_figure_that_fails_says_so_and_the_others_stand(swept, monkeypatch):
    def fails(*_):
        raise ArithmeticError("planted")

    monkeypatch.setattr(plots, "steps", fails)
    monkeypatch.setattr("raysat.report.figures.exponents", fails)
    monkeypatch.setattr(drawing, "DPI", 20)
    for path in (swept / "trials").glob("[0-8]*"):
        path.unlink()
    page = Page(finish(swept, Console(file=io.StringIO())).read_text())
    assert "Figure steps could not be made (ArithmeticError: planted)." in page.text
    assert "Convergence exponent against batch size, digits, mlp" in page.text
    assert set(page.figures) == {"loss-curves", "steps", "targets", "costs"}
    assert not list((swept / "figures").glob("steps*"))
    assert list((swept / "figures").glob("loss-curves*.pdf"))


def test_of_several_sweeps_one_whose_analysis_fails_is_named(swept, monkeypatch):
    shutil.copytree(swept, swept.parent / "other")
    real = compare.__globals__["analyze_folder"]

    def fails_for_one(root, *tables):
        if root.name == "other":
            raise ArithmeticError("planted")
        return real(root, *tables)

    monkeypatch.setitem(compare.__globals__, "analyze_folder", fails_for_one)
    page = Page(compare(swept.parent, Console(file=io.StringIO())).read_text())
    assert "other could not be made (ArithmeticError: planted)." in page.text
    assert "1 sweep compared, 1 left out." in page.text


def test_a_notebook_draws_and_fits_them_too(swept):
    for path in (swept / "curves").glob("[!s]*.parquet"):
        path.unlink()
    loaded = raysat.load(swept)
    assert loaded.curves.empty
    assert not loaded.fit().fits.empty
    assert loaded.plot_loss_curves() == []
    assert len(loaded.plot_exponents()) > 0
    assert "<h3>swept</h3>" in loaded._repr_html_()


def test_what_is_made_once_fails_in_the_same_way_again():
    class Thing:
        asked = 0

        @once
        def made(self):
            """Something."""
            self.asked += 1
            raise ArithmeticError(self.asked)

    thing = Thing()
    for _ in range(3):
        with pytest.raises(ArithmeticError, match="1"):
            _ = thing.made
    assert Thing.made.__doc__ == "Something."
