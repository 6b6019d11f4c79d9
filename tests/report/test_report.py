import io
import json
import math
import re
from html import unescape
from html.parser import HTMLParser

import matplotlib
import pytest
from analysis.test_analysis import (
    SIZES,
    analyzed,
    full,
    grid_of,
    refused_ntk,
    results,
    tables,
    trial,
    under_a_budget,
    without_statistics,
)
from analysis.test_efficiency import timed
from rich.console import Console

from raysat.analysis import THEORY_CAVEAT, number, setting, summary, what_to_use
from raysat.analysis.ladder import Ladder
from raysat.errors import InputError
from raysat.plots.views import NO_INTERVALS
from raysat.report import compare, finish
from raysat.report.__main__ import main
from raysat.report.answer import answers
from raysat.report.figures import CHOICES, payload
from raysat.report.prediction import LATER, predictions
from raysat.report.sections import LISTED, SYMBOLS, advice, progress
from raysat.report.series import INFINITE, numbers
from raysat.spec.cells import Model
from raysat.spec.stepsizes import fixed, grid, theory
from raysat.spec.training import PLAIN, Training
from raysat.storage.store import Store

pytestmark = pytest.mark.usefixtures("few_rungs")


class Page(HTMLParser):
    """Checks that tags are closed in order; keeps texts, tags, attributes and the figures' data."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.words, self.data = [], [], [], ""
        self.feed(html)
        self.close()
        self.figures = {figure["name"]: figure for figure in json.loads(self.data)["figures"]}

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" in self.open:
            self.data = self.data or data
        elif "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def finished(root, make=finish):
    console = Console(file=io.StringIO(), width=100)
    html = make(root, console).read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    return html, page, console.file.getvalue()


def said(made, targets=()):
    return answers(summary(analyzed(made, targets).fits))


def drawn(made):
    analysis = analyzed(made)
    return payload(*tables(made), analysis, Ladder.own(analysis), summary(analysis.fits).iloc[0])


def at_first(view):
    """What a view shows at the target where it starts."""
    own = view["by"][view["start"]]
    return view | own | {name: [*own.get(name, []), *view.get(name, [])] for name in ("marks", "notes")}


def test_the_page_is_one_file_with_the_answer_first(tmp_path):
    made = [*full(), *full("fixed(0.1)", b_c=0.07), trial(256, status="diverged")]
    root = results(tmp_path / "toy", made, stepsizes=(theory(1.0), fixed(0.1)))
    html, page, printed = finished(root)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 4  # for readers without scripts
    assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in images)
    links = {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"}
    assert {"answer", "figures", "predictions", "symbols", "lost", "configuration", "note-1-1"} <= links
    assert links <= {attributes.get("id") for _, attributes in page.tags}
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)  # nothing is fetched
    order = [
        "does not measure a critical batch size",
        "Loss along training",
        "the batch size, in samples",
        "They are in no fit",
        "raysat 0.1",
    ]
    places = [page.text.index(words) for words in order]
    assert places == sorted(places)
    assert THEORY_CAVEAT in page.text
    assert "1 diverged, 0 failed" in page.text
    assert "models=[mlp(depth=2)]" in page.text
    assert "raysat 0.1" in page.text
    assert all(symbol in page.text and meaning in page.text for symbol, meaning in SYMBOLS)
    for path in (root / "report.html", root / "figures", root):
        assert str(path) in printed
    assert "b_N" in printed
    assert (root / "analysis.parquet").exists()
    assert (root / "figures" / "steps.pdf").exists()


def test_what_users_wrote_is_escaped(tmp_path):
    script = "</script><script>alert('x')</script>&"
    made = [*full(dataset=script), trial(256, status="failed", error=script, dataset=script)]
    html, page, _ = finished(results(tmp_path / "toy", made, dataset=script))
    assert html.count("<script") == html.count("</script") == 2  # the data and our own
    assert page.text.count(script) >= 3  # setting, error, configuration


def test_figures_are_drawn_as_in_a_process_of_their_own(tmp_path):
    root = results(tmp_path / "toy", full(seeds=1)[:2])
    with matplotlib.rc_context({"text.usetex": True, "font.size": -1}):
        _, _, said = finished(root)
        assert matplotlib.rcParams["text.usetex"]
    assert "could not be made" not in said


def test_an_unfinished_sweep_has_a_page(tmp_path):
    root = results(tmp_path / "toy", full(seeds=1)[:2])
    _html, page, _ = finished(root)
    assert "2 of 16 cells have ended" in page.text
    assert "a fit needs 3" in page.text
    assert list(page.figures) == ["steps", "costs", "exponents", "loss-curves"]  # what answers first
    assert "not measured" in page.text  # and beside it what theory predicted
    assert [mark["name"] for mark in at_first(page.figures["steps"]["views"][0])["marks"]] == ["b_star = 12, predicted"]


def test_an_empty_one_too(tmp_path):
    _html, page, printed = finished(results(tmp_path / "toy", []))
    assert "No trial has ended yet" in page.text
    assert "No trial has ended yet" in printed
    assert "0 of 16 cells have ended" in page.text
    assert "img" not in {tag for tag, _ in page.tags}


def test_and_one_whose_trials_all_failed(tmp_path):
    made = full(status="failed", error="out of memory")
    _html, page, _ = finished(results(tmp_path / "toy", made))
    assert "all of them failed or diverged" in page.text
    assert page.text.count("out of memory") == 2, "one error, one row, and named in the answer"
    assert f"out of memory {len(made)}" in page.text
    assert f"{len(made)} of {len(made)} cells failed: out of memory. The next run" in page.text
    assert page.figures == {}


def test_cells_are_counted_as_the_sweep_lays_them_out(tmp_path):
    models = (Model("mlp", (("depth", 2),)), Model("linear", (), has_width=False))
    root = results(tmp_path / "toy", full(seeds=1), models=models, widths=(64, 128), seeds=3)
    store = Store(root)
    assert progress(store.record(), store.read("trials")).startswith(f"8 of {3 * 3 * len(SIZES)} cells")


def test_each_way_of_training_is_counted(tmp_path):
    ways = PLAIN, Training(optimizer="momentum")
    root = results(tmp_path / "toy", full(seeds=1), trainings=ways, seeds=1)
    store = Store(root)
    assert progress(store.record(), store.read("trials")).startswith(f"8 of {2 * len(SIZES)} cells")


def test_a_training_that_is_not_plain_sgd_is_said_to_be_beyond_the_prediction(tmp_path):
    made = [({**row, "training": "momentum 0.9"}, curve) for row, curve in grid_of()]
    _html, page, printed = finished(results(tmp_path / "toy", made))
    for text in (page.text, " ".join(printed.split())):
        assert "momentum 0.9 (the prediction is for plain SGD)" in text
        assert "Theory predicted" not in text
        assert "stable in theory" not in text


def test_why_an_adaptive_sweep_stopped_is_said(tmp_path):
    root = results(tmp_path / "toy", grid_of(), adaptive=True)
    _html, page, _ = finished(root)
    assert "Why the sweep stopped" not in page.text
    why = "mlp width 64, grid: b_N = 12 [11, 13]; run at b = 1, 4, 16, 64"
    Store(root).write_status({"at": "2026-01-01T00:00:00+00:00", "done": [why]})
    _html, page, _ = finished(root)
    assert f"Why the sweep stopped {why}" in page.text


def test_where_there_are_no_statistics_the_page_says_why(tmp_path):
    ntk = refused_ntk().dropna(axis=1, how="all").to_dict("records")
    _html, page, _ = finished(results(tmp_path / "toy", without_statistics(), ntk, stepsizes=grid([0.05, 0.1])))
    why = "bn (BatchNorm1d) mixes the samples of a batch"
    assert f"Theory predicts no b_star here: {why}." in page.text
    assert f"No prediction: {why}." in page.text
    assert page.text.count(why) == 3, "in the answer, in the notes, and where the statistics are vouched for"
    assert "b_star = -" not in page.text
    assert not any("stable" in view["at"][2] for view in page.figures["steps"]["views"])


def test_under_a_budget_of_samples_t_is_a_range_and_nothing_is_interpolated(tmp_path):
    _html, page, _ = finished(results(tmp_path / "toy", under_a_budget(), batch_sizes=(1, 4, 16, 64), seeds=3))
    assert "here T = 10 to 640; b_N does not" in page.text
    (view,) = page.figures["exponents"]["views"]
    assert [series["name"] for series in view["series"]] == ["measured h, 95 % interval"]
    assert "No interpolation: T differs between batch sizes." in view["notes"]
    assert any("h depends on T" in note for note in view["notes"])


def test_a_long_list_of_lost_cells_is_cut_and_counted(tmp_path):
    made = [trial(b, seed, status="diverged") for seed in range(10) for b in SIZES]
    _html, page, _ = finished(results(tmp_path / "toy", made, seeds=10))
    assert f"And {len(made) - LISTED} more" in page.text


def test_failed_cells_are_grouped_by_error_and_each_traceback_is_there_once(tmp_path):
    trace = "Traceback (most recent call last):\n  File 'nets.py', line {}\nRuntimeError: {}\n"
    errors = [trace.format(7, "a < b"), "raysat.errors.InputError: model x draws other weights: mend it.\n"]
    made = [trial(b, seed, status="failed", error=errors[b == 1]) for seed in range(3) for b in SIZES]
    html, _page, _ = finished(results(tmp_path / "toy", made, seeds=3))
    (lost,) = re.findall(r'<section id="lost".*?</section>', html, re.DOTALL)
    assert re.findall(r"<tr><td class=\"text\">([^<]*).*?</td><td>(\d+)</td>", lost, re.DOTALL) == [
        ("RuntimeError: a &lt; b", str(3 * (len(SIZES) - 1))),
        ("model x draws other weights: mend it", "3"),
    ]
    assert lost.count("line 7") == 1
    assert f"{len(made)} of {len(made)} cells failed: RuntimeError: a < b (21); model x draws other" in _page.text


def test_certificates_are_tabulated_and_approximations_said(tmp_path):
    checks = {"gamma_check": 2e-7, "k_op_check": 3e-6, "noise_check": 1e-8, "k_op_upper": 1.1, "k_op": 1.0}
    about = {"method": "jacobian", "way": "double reverse", "statistics_dtype": "float32", "off": "drop"}
    ntk = [
        row | checks | about | {"gamma_check": (1 + k) * 2e-7}
        for k, row in enumerate(refused_ntk().dropna(axis=1, how="all").to_dict("records"))
    ]
    made = [(row | {"off": "drop", "statistics_dtype": "float32"}, curve) for row, curve in full()]
    _html, page, printed = finished(results(tmp_path / "toy", made, ntk))
    for text in ("per-sample Jacobians", "double reverse", "4e-07", "3e-06", "1.1"):
        assert text in page.text
    said = "The prediction is an approximation: statistics with random layers turned off: drop."
    assert page.text.count(said) == 2, "in the answer and below the numbers"
    assert "random layers turned off" in printed


def test_what_to_use_is_said_and_tabulated():
    analysis = analyzed(full())
    section = advice(analysis.choices)
    (sentence,) = what_to_use(analysis.choices)[1]
    assert sentence in unescape(section.html)
    assert "least samples to the target" in section.html
    both = analyzed(full() + full(n=500))
    html = unescape(advice(both.choices).html)
    places = [html.index(words) for name, said in zip((500, 1000), what_to_use(both.choices)[1], strict=True)
              for words in (f"n = {name:,}", said)]  # fmt: skip
    assert len(places) == 4
    assert advice(analysis.choices[:0]).html == ""


NO_NTK = refused_ntk()[:0]


def compared(made, targets=()):
    """The section of predictions, and what it is made of."""
    analysis = analyzed(made, targets)
    return predictions(analysis.comparison, summary(analysis.fits), NO_NTK), analysis


def test_every_predictor_stands_beside_what_was_measured():
    section, analysis = compared(full("fixed(0.1)"))
    html = unescape(section.html)
    shown = analysis.comparison[analysis.comparison["headline"] & analysis.comparison["value"].notna()]
    assert len(shown) == 8  # b_h and b_N, by four predictors
    assert html.count("<tr>") == 1 + 2
    for row in shown.to_dict("records"):
        assert number(row["value"]) in html
        assert row["predictor"] == "forecast" or f"({number(row['ratio'])})" in html
        assert row["remark"] in html
    assert "6.5<br>0.5</td>" in html  # gamma and k_op, means over seeds
    assert all(note in html for note in summary(analysis.fits)["notes"].iloc[0])
    assert compared([])[0].html == ""


def test_a_note_stands_at_the_quantity_that_it_is_of():
    section, _ = compared([*full("fixed(0.1)", b_c=0.07), trial(256, status="diverged")], [0.99])
    rows = re.findall(r"<tr><td.*?</tr>", section.html)
    notes = dict(re.findall(r'<li id="note-1-(\d+)">(.*?)</li>', section.html))
    said = {re.search("b_[Nh]", row)[0]: [notes[k] for k in re.findall(r"#note-1-(\d+)", row)] for row in rows}
    assert list(said) == ["b_N", "b_h"]
    for quantity, own in said.items():
        assert any(note.startswith(f"{quantity}:") for note in own)
        other = {"b_N": "b_h", "b_h": "b_N"}[quantity]
        assert not any(note.startswith(f"{other}:") for note in own)


def test_what_was_refused_is_listed_with_its_reason_beside_the_predictions():
    section, _ = compared(full(), [1e-9])
    page = Page(f'<div>{section.html}</div><script>{{"figures": []}}</script>')
    assert "b_N, L ≤ 1e-09 not measured 13 52 30 - 6.5 0.5" in page.text
    assert "b_N: 16 of 16 trials do not reach L <= 1e-09." in page.text
    assert page.text.count(THEORY_CAVEAT) == 1
    assert "eta is made from beta(b), so that" not in page.text  # the same in other words


def test_what_was_predicted_stands_there_before_a_trial_has_ended(tmp_path):
    known = {"gamma": 6.0, "k_op": 0.5, "b_star": 12.0, "b_star_thm33": 48.0, "noise_scale": 30.0, "method": "gram"}
    ntk = [{**row, **known, "method_reason": ""} for row in refused_ntk().dropna(axis=1, how="all").to_dict("records")]
    ntk += [{**row, "width": 128, "init_id": f"{row['init_id']}-128", "b_star": 20.0} for row in ntk]
    _html, page, _ = finished(results(tmp_path / "toy", [], ntk))
    assert "64 any b_N, b_h not measured 12 48 30 - 6 0.5" in page.text
    assert "128 any b_N, b_h not measured 20 48 30 - 6 0.5" in page.text
    assert LATER in page.text
    _html, page, _ = finished(results(tmp_path / "half", full(), ntk))
    assert "64 any" not in page.text
    assert "128 any b_N, b_h not measured 20 48 30 -" in page.text


class TestAnswer:
    def test_is_the_stable_reading_of_a_grid_and_the_free_one_stands_beside_it(self):
        (answer,) = said(grid_of() + full(b_c=3.0) + full("fixed(0.1)", b_c=2.0), [0.7])
        fits = analyzed(grid_of(), [0.7]).fits.query("quantity == 'b_N'").set_index("tuning")["value"]
        first, second = answer.sentences
        assert f"Among stepsizes that are stable in theory the critical batch size is {fits['stable']:.3g} [" in first
        assert "to loss 0.7" in first
        assert "grid (stable)" in first
        assert "Theory predicted b_star = 13 " in second
        assert any("tuned freely" in words and f"b_N is {fits['free']:.3g} [" in words for words in answer.caveats)
        assert THEORY_CAVEAT not in answer.caveats

    def test_says_how_far_the_prediction_is_from_the_measurement(self):
        made = [trial(b, seed, "grid", 1.0, b_c=5.0 + 0.1 * seed) for seed in range(3) for b in SIZES]
        (answer,) = said(made)
        assert re.search(r"2\.\d+ times the measured value, outside its interval", answer.sentences[1])

    def test_has_no_evidence_without_tuned_stepsizes(self):
        (answer,) = said(full() + full("fixed(0.1)", b_c=2.0))
        assert "does not measure a critical batch size" in answer.sentences[0]
        assert "b_star = 13" in answer.sentences[1]
        assert "b_N" not in " ".join(answer.sentences)
        (caveat,) = answer.caveats
        assert "b_N = 12 [12, 12]" in caveat
        assert caveat.endswith(THEORY_CAVEAT)

    def test_the_widest_network_speaks(self):
        (answer,) = said([*grid_of(), *(trial(b, s, "grid", 1.0, b_c=20.0, width=256) for s in (0, 1) for b in SIZES)])
        assert "width 256" in answer.sentences[0]
        assert "b_N = 20 " in answer.sentences[0]

    def test_why_a_better_reading_is_passed_over_is_said(self):
        """The widest network diverged at b = 1: the next one speaks, and says why the widest does not."""
        wide = [trial(b, s, "grid", 1.0, width=256, status="diverged" if b == 1 else "completed")
                for s in (0, 1) for b in SIZES]  # fmt: skip
        (answer,) = said([*grid_of(), *wide])
        assert "width 64, grid (stable)" in answer.sentences[0]
        passed = [caveat for caveat in answer.caveats if "width 256, grid (stable)" in caveat]
        assert len(passed) == 1
        assert passed[0].startswith("No critical batch size can be given for width 256, grid (stable). b_N: at b = 1")

    def test_a_refusal_gives_its_reason(self):
        (answer,) = said(grid_of(), [1e-9])
        assert answer.sentences[0].startswith("No critical batch size can be given")
        assert "trials do not reach L <= 1e-09" in answer.sentences[0]

    def test_there_is_one_a_setting(self):
        assert [answer.setting for answer in said(full() + full(n=500))] == [
            setting(made[0][0]) for made in (full(n=500), full())
        ]


class TestFigures:
    def test_have_a_view_for_each_model_width_and_reading(self):
        made = grid_of() + [trial(b, s, width=128, rate=0.08 / (1 + 12 / b)) for s in (0, 1) for b in SIZES]
        made += full(model_options='{"depth": 3}', depth=3)
        data = drawn(made)
        assert len(CHOICES) == len(data["start"])
        names = "toy, mlp, depth = 2", "toy, mlp, depth = 3"
        wanted = [
            [names[0], "64", "grid (free)"],
            [names[0], "64", "grid (stable)"],
            [names[0], "128", "theory(1)"],
            [names[1], "64", "theory(1)"],
        ]
        for figure in data["figures"]:
            assert sorted(view["at"] for view in figure["views"]) == sorted(wanted)

    def test_loss_curves_are_medians_with_the_seeds_range_against_four_axes(self):
        made = [trial(b, seed, rate=0.001 * (1 + seed)) for seed in range(3) for b in SIZES]
        figure = {figure["name"]: figure for figure in drawn(made)["figures"]}["loss-curves"]
        assert [axis["key"] for axis in figure["x"]] == ["iteration", "samples", "seconds", "device_seconds"]
        (view,) = figure["views"]
        assert [series["name"] for series in view["series"]] == [f"b = {b}" for b in SIZES]
        series = view["series"][0]
        at = series["x"]["iteration"].index(300)
        ends = [series[name][at] for name in ("high", "y", "low")]
        assert ends == pytest.approx([math.exp(-0.3 * k) for k in (1, 2, 3)], rel=1e-4)

    def test_a_grids_loss_curves_are_of_the_best_stepsize_of_the_reading(self):
        figure = {figure["name"]: figure for figure in drawn(grid_of())["figures"]}["loss-curves"]
        last = {view["at"][2]: view["series"][-1]["y"][-1] for view in figure["views"]}
        assert last["grid (free)"] == pytest.approx(math.exp(-300 * 0.01 * 9), rel=1e-4)
        assert last["grid (stable)"] == pytest.approx(math.exp(-300 * 0.01 * 3), rel=1e-4)  # 3 k_op = 1.5 < 2

    def test_exponents_have_the_predicted_curve_and_the_range_in_words(self):
        figure = {figure["name"]: figure for figure in drawn(full())["figures"]}["exponents"]
        measured, predicted = figure["views"][0]["series"]
        assert measured["y"] == pytest.approx([0.02 / (1 + 12 / b) for b in SIZES], rel=1e-4)
        assert predicted["y"][0] == pytest.approx(measured["y"][0], rel=1e-3)
        one, full_batch = measured["y"][0], measured["y"][-1]  # h(128) stands in for h(n)
        assert 1 / predicted["y"][-1] == pytest.approx(1 / 128 / one + 127 / 128 / full_batch, rel=1e-3)
        assert "h varies by a factor of 11.9." in figure["views"][0]["notes"]

    def test_steps_have_a_fit_perfect_scaling_and_both_critical_batches(self):
        figure = {figure["name"]: figure for figure in drawn(full())["figures"]}["steps"]
        (view,) = map(at_first, figure["views"])
        first, perfect = view["series"]
        assert first["fit"]["y"][0] == pytest.approx(first["y"][0], rel=1e-2)
        assert perfect["y"][0] / perfect["y"][-1] == pytest.approx(128, rel=1e-3)
        marks = {mark["name"].split()[0]: mark["at"] for mark in view["marks"]}
        assert marks == pytest.approx({"b_N": 12, "b_star": 13}, rel=1e-2)
        assert THEORY_CAVEAT in view["notes"]
        assert "Fit: b_N = 12 samples, scatter < 1 %." in view["notes"]

    def test_an_open_end_of_an_interval_is_infinite_not_missing(self):
        assert numbers([0.0, 12.3456789, math.inf, math.nan]) == [0.0, 12.346, INFINITE, None]

    def test_costs_have_a_view_for_each_with_the_least_and_b_20_marked(self):
        made = [timed(b, seed) for seed in (0, 1) for b in SIZES]
        analysis = analyzed(made, [0.7, 0.9])
        data = payload(*tables(made), analysis, Ladder.own(analysis), summary(analysis.fits).iloc[0])
        figure = {figure["name"]: figure for figure in data["figures"]}["costs"]
        views = {view["of"]: view for view in figure["views"]}
        assert list(views) == [one["key"] for one in figure["of"]] == ["samples", "seconds", "device_hours"]
        for cost, view in views.items():
            assert view["y"]["label"].startswith(cost.replace("_", "-"))
            assert [series["name"] for series in view["series"]] == ["to L ≤ 0.7", "to L ≤ 0.9"]
            rows = analysis.costs[(analysis.costs["cost"] == cost) & (analysis.costs["target"] == 0.7)]
            assert view["series"][0]["y"] == pytest.approx(rows["value"].tolist(), rel=1e-4)
            assert view["series"][0]["low"] == pytest.approx(rows["low"].tolist(), rel=1e-4)
        assert [mark["at"] for mark in views["samples"]["marks"]] == pytest.approx([1, 3.6])
        assert [mark["name"] for mark in views["seconds"]["marks"]] == ["least at b = 16 [16, 16]"]
        (single,) = {one["name"]: one for one in drawn([trial(b) for b in SIZES[:2]])["figures"]}["costs"]["views"]
        assert NO_INTERVALS in single["notes"]
        untimed = {figure["name"]: figure for figure in drawn(full())["figures"]}["costs"]
        assert [view["of"] for view in untimed["views"]] == ["samples"]


class TestComparison:
    @pytest.fixture
    def folder(self, tmp_path):
        stepsizes = grid([0.5, 1.0, 2.0, 3.0, 5.0, 9.0])
        finished(results(tmp_path / "tuned", grid_of(), name="tuned", stepsizes=stepsizes))
        results(tmp_path / "wide", full(width=64) + full(width=128), name="wide", widths=(64, 128))
        return tmp_path

    def test_has_every_sweep_and_links_to_its_page(self, folder):
        html, page, _ = finished(folder, compare)
        assert 'href="tuned/report.html"' in html
        assert "wide/report.html" not in html  # it has no page yet
        assert "2 sweeps compared." in page.text
        (star,) = (view for view in page.figures["b_N-width"]["views"] if view["at"] == ["theory(1)"])
        series = {one["name"]: one for one in star["series"]}
        assert series["wide (toy, mlp): b_N"]["x"]["width"] == [64, 128]
        assert series["wide (toy, mlp): b_N"]["y"] == pytest.approx([12, 12], rel=1e-2)
        assert series["wide (toy, mlp): b_star"]["y"] == pytest.approx([13, 13])
        assert set(page.figures) == {"b_N-width", "b_h-width", "b_N-b_star"}

    def test_the_tuned_and_stable_reading_is_shown_first(self, folder):
        _, page, _ = finished(folder, compare)
        assert json.loads(page.data)["start"] == ["grid (stable)"]

    def test_each_answer_has_its_caveats_and_the_targets_of_its_sweep(self, folder):
        results(folder / "aimed", grid_of(), name="aimed", targets=(0.7,), stepsizes=grid([0.5, 1.0, 2.0, 3.0]))
        _, page, _ = finished(folder, compare)
        (answer,) = said(grid_of(), [0.7])
        assert answer.caveats
        assert all(caveat in page.text for caveat in (*answer.sentences, *answer.caveats))
        assert THEORY_CAVEAT in page.text  # of the sweep that has theory() alone

    def test_a_sweep_that_cannot_be_read_is_named_and_left_out(self, folder):
        record = json.loads((folder / "wide" / "sweep.json").read_text())
        (folder / "wide" / "sweep.json").write_text(json.dumps(record | {"schema": 0}))
        _, page, _ = finished(folder, compare)
        assert "1 sweep compared, 1 left out." in page.text
        assert "schema version 0" in page.text

    def test_sweeps_without_trials_are_named(self, tmp_path):
        results(tmp_path / "toy", [])
        _, page, _ = finished(tmp_path, compare)
        assert "No trial has ended yet" in page.text


class TestCommand:
    def test_writes_the_page(self, tmp_path, capsys):
        root = results(tmp_path / "toy", [])
        assert main([str(root)]) == 0
        assert (root / "report.html").exists()
        assert "report.html" in capsys.readouterr().out

    def test_a_target_takes_the_place_of_the_sweeps(self, tmp_path, capsys):
        root = results(tmp_path / "toy", full(), targets=(0.7,))
        assert main([str(root), "--target", "0.9"]) == 0
        assert "To reach loss 0.9" in Page((root / "report.html").read_text(encoding="utf-8")).text
        assert main([str(tmp_path), "--target", "0.9"]) == 2
        assert "--target is for one sweep" in capsys.readouterr().err

    def test_of_a_parent_compares_its_sweeps(self, tmp_path, capsys):
        results(tmp_path / "toy", full())
        assert main([str(tmp_path)]) == 0
        assert "1 sweep compared." in (tmp_path / "report.html").read_text()
        assert not (tmp_path / "toy" / "report.html").exists()
        assert "toy" in capsys.readouterr().out

    def test_another_folder_is_refused_in_one_line(self, tmp_path, capsys):
        assert main([str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "holds neither a sweep" in error
        assert "give a results folder" in error
        with pytest.raises(InputError):
            finish(tmp_path, Console(file=io.StringIO()))
