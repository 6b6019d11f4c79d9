"""The report in a browser: every control is used and changes what is shown; nothing complains.

Pictures of the pages are kept in the folder that RAYSAT_SCREENSHOTS names, or beside the tests' temporary files.
"""

import csv
import io
import json
import os
import re
import runpy
from pathlib import Path

import chromium
import pandas as pd
import pytest
from analysis.test_analysis import full, grid_of, results, trial
from analysis.test_efficiency import timed
from analysis.test_recommendation import tuned
from rich.console import Console

from raysat.report import compare, finish
from raysat.report.sections import SYMBOLS
from raysat.spec.stepsizes import grid, theory

pytestmark = pytest.mark.skipif(chromium.PATH is None, reason="no Chromium on this machine")

SCRIPT = "</script><script>console.error('run')</script>"
LOSS, H, N, COST, AIM = (
    f'[data-figure="{name}"]' for name in ("loss-curves", "exponents", "steps", "costs", "targets")
)
A4, A4_HEIGHT = 718, 1047
"""What margins of a centimetre leave of a sheet, in pixels of 1/96 inch."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = chromium.Chromium(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    folder = Path(os.environ.get("RAYSAT_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A folder with a sweep of two models, two widths, a grid, lost cells, and a hostile name; and a page of both."""
    folder = tmp_path_factory.mktemp("results")
    made = [*grid_of(), *full(width=128), *full(model_options='{"depth": 3}', depth=3, dataset=SCRIPT)]
    made.append(trial(256, status="failed", error=f"{SCRIPT} {'x' * 200}"))
    for row, curve in made:
        for point in curve:
            point |= {"samples": point["iteration"] * row["batch_size"], "seconds": 1e-3 * point["iteration"] ** 1.1}
    stepsizes = theory(), *grid([0.5, 1.0, 2.0, 3.0, 5.0, 9.0])
    root = results(folder / "toy", made, widths=(64, 128), stepsizes=stepsizes)
    quiet = Console(file=io.StringIO())
    finish(root, quiet)
    compare(folder, quiet)
    return folder


@pytest.fixture(scope="module")
def page(parent):
    return parent / "toy" / "report.html"


@pytest.fixture(scope="module")
def shared(browser, page):
    """One tab for the tests that leave it as they found it."""
    return browser.open(page)


def text(tab, selector):
    return tab.js(f"document.querySelector({json.dumps(selector)}).textContent")


def count(tab, selector):
    return tab.js(f"document.querySelectorAll({json.dumps(selector)}).length")


def curves(tab, figure):
    return tab.js(f"[...document.querySelectorAll({json.dumps(figure + ' .series')})].map(one => one.dataset.name)")


def ticks(tab, figure):
    return tab.js(f"[...document.querySelectorAll({json.dumps(figure + ' svg.chart text')})].map(t => t.textContent)")


def choose(tab, figure, control, value):
    selector = json.dumps(f'{figure} select[data-control="{control}"]')
    tab.js(
        f"(select => {{ select.value = {json.dumps(value)}; select.dispatchEvent(new Event('change')); }})"
        f"(document.querySelector({selector}))"
    )


def toggle(tab, selector):
    """Open or close, and wait until it has told the page."""
    told = "new Promise(done => {one.addEventListener('toggle', done, {once: true}); one.open = !one.open})"
    tab.js(f"(one => {told}.then(() => null))(document.querySelector({json.dumps(selector)}))")


def click(tab, selector):
    tab.js(f"document.querySelector({json.dumps(selector)}).click()")


@pytest.mark.parametrize(
    ("name", "look"),
    [
        ("desktop", {"width": 1280}),
        ("dark", {"width": 1280, "dark": True}),
        ("phone", {"width": 390}),
        ("phone-dark", {"width": 390, "dark": True}),
        ("narrow", {"width": 360}),
        ("print", {"width": A4, "medium": "print"}),
    ],
)
@pytest.mark.parametrize("kind", ["sweep", "comparison"])
def test_pages_load_without_a_complaint_a_request_or_a_sideways_scroll(browser, parent, shots, kind, name, look):
    path = parent / "toy" / "report.html" if kind == "sweep" else parent / "report.html"
    tab = browser.open(path, **look)
    tab.shot(shots / f"{kind}-{name}.png")
    assert tab.complaints() == []
    assert tab.requests() == [path.resolve().as_uri()]
    assert tab.js("document.documentElement.scrollWidth") <= tab.width
    assert count(tab, "svg.chart") == (5 if kind == "sweep" else 3)
    assert (shots / f"{kind}-{name}.png").stat().st_size > 10_000


@pytest.mark.parametrize("look", [{}, {"dark": True}, {"width": 390}], ids=["light", "dark", "phone"])
@pytest.mark.parametrize("kind", ["sweep", "comparison"])
def test_axe_finds_no_serious_fault(browser, parent, kind, look):
    tab = browser.open(parent / "toy" / "report.html" if kind == "sweep" else parent / "report.html", **look)
    assert serious_faults(tab) == []


def serious_faults(tab):
    """What axe-core finds on a page whose tables are all open."""
    axe = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    tab.js((Path(axe.__file__).with_name("axe.min.js")).read_text(encoding="utf-8") + "; 0")
    for name in tab.js("[...document.querySelectorAll('figure')].map(one => one.id)"):
        toggle(tab, f"#{name} details")
    assert count(tab, "details table") == count(tab, "figure")
    found = tab.js("axe.run().then(({violations, passes}) => ({violations, passes: passes.map(one => one.id)}))")
    assert {"color-contrast", "button-name", "select-name", "image-alt"} - set(found["passes"]) <= {"image-alt"}
    serious = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
    return [(one["id"], [node["html"] for node in one["nodes"]]) for one in serious]


def test_without_scripts_the_pictures_are_shown(browser, page):
    tab = browser.open(page, scripts=False)
    document = tab.call("DOM.getDocument")["root"]["nodeId"]
    found = tab.call("DOM.querySelectorAll", nodeId=document, selector="noscript img")["nodeIds"]
    assert found
    assert all(tab.call("DOM.getBoxModel", nodeId=node)["model"]["width"] > 300 for node in found)


def test_the_headline_is_shown_first_and_a_choice_holds_for_all_figures(browser, page):
    tab = browser.open(page)

    def shown():
        return [text(tab, f"{figure} .shown") for figure in (LOSS, H, N)]

    assert all("grid (free)" in words for words in shown())
    before = tab.js(f"document.querySelector('{N} svg.chart').outerHTML")
    choose(tab, H, "Stepsizes", "grid (stable)")
    assert all("grid (stable)" in words for words in shown())
    assert tab.js(f"document.querySelector('{N} svg.chart').outerHTML") != before
    choose(tab, LOSS, "Width", "128")
    assert all("width: 128; stepsizes: theory(1)" in words for words in shown())  # width 128 has no grid
    models = tab.js(f"[...document.querySelector('{N} select').options].map(one => one.value)")
    choose(tab, N, "Data and model", next(model for model in models if "depth = 3" in model))
    assert all("depth = 3" in words for words in shown())
    assert "by construction" in text(tab, f"{N} .notes")
    assert tab.complaints() == []


def test_a_batch_size_is_hidden_and_shown_again(shared):
    button = f'{LOSS} button[data-series="b = 8"]'
    everything = curves(shared, LOSS)
    assert "b = 8" in everything
    click(shared, button)
    assert "b = 8" not in curves(shared, LOSS)
    assert shared.js(f"document.querySelector('{button}').getAttribute('aria-pressed')") == "false"
    click(shared, button)
    assert curves(shared, LOSS) == everything
    click(shared, f'{LOSS} [data-every="none"]')
    assert curves(shared, LOSS) == []
    assert "All curves are hidden." in ticks(shared, LOSS)
    click(shared, f'{LOSS} [data-every="all"]')
    assert curves(shared, LOSS) == everything


@pytest.mark.parametrize("figure", [LOSS, H, N, COST], ids=["loss", "h", "N", "cost"])
@pytest.mark.parametrize("axis", ["logX", "logY"])
def test_axes_switch_between_linear_and_logarithmic(shared, figure, axis):
    box = f'{figure} input[data-control="{axis}"]'
    before = ticks(shared, figure)
    click(shared, box)
    assert ticks(shared, figure) != before
    assert "NaN" not in shared.js(f"document.querySelector('{figure} svg.chart').outerHTML")
    click(shared, box)
    assert ticks(shared, figure) == before


def test_loss_is_shown_against_iterations_samples_seconds_or_device_seconds(shared):
    drawn = []
    labels = {"samples": "samples used, t b", "seconds": "seconds", "device_seconds": "device-seconds"}
    for key, label in (labels | {"iteration": "iteration t"}).items():
        choose(shared, LOSS, "x", key)
        assert any(words.startswith(label) for words in ticks(shared, LOSS))
        drawn.append(tuple(ticks(shared, LOSS)))
    assert len(set(drawn)) == 4
    assert len(curves(shared, LOSS)) == 8


def test_costs_are_shown_in_samples_seconds_or_device_hours(browser, tmp_path):
    made = [timed(b, seed) for seed in (0, 1) for b in (1, 2, 4, 8, 16, 32)]
    for row, curve in made:
        for point in curve:
            point |= {"samples": point["iteration"] * row["batch_size"], "seconds": 1e-3 * point["iteration"]}
    tab = browser.open(finish(results(tmp_path / "toy", made, targets=(0.7,)), Console(file=io.StringIO())))
    labels = {"samples": "samples to", "seconds": "seconds in SGD steps to", "device_hours": "device-hours to"}
    toggle(tab, f"{COST} details")
    values = []
    for key, label in labels.items():
        choose(tab, COST, "y", key)
        assert any(words.startswith(label) for words in ticks(tab, COST))
        heads, first = (
            tab.js(f"[...document.querySelectorAll('{COST} {row} > *')].map(one => one.textContent)")
            for row in ("thead tr", "tbody tr")
        )
        assert heads[2].startswith(label)
        assert heads[3:5] == ["low", "high"]
        values.append(float(first[2].replace(",", "")))
    samples, seconds, hours = values  # of b = 1: steps of 1/16 + 1 ms, on two cores
    assert seconds == pytest.approx(samples * 1.0625e-3, rel=0.01)
    assert hours == pytest.approx(2 * seconds / 3600, rel=0.01)
    assert [name.split(" at ")[0] for name in curves(tab, COST)] == ["least", "to L ≤ 0.7"]
    assert count(tab, "svg.chart") == 5
    assert tab.complaints() == []


def test_an_open_end_of_an_interval_is_infinite_and_drawn_to_the_frame(browser, tmp_path):
    """Three values of one seed, one of them off by a factor of 3: Student's t of one degree of freedom is 12.7."""
    made = [trial(b, 0, "grid", 1.0, rate=0.02 / (1 + 5 / b) / (3 if b == 16 else 1)) for b in (1, 16, 256)]
    quiet = Console(file=io.StringIO())
    tab = browser.open(finish(results(tmp_path / "toy", made, targets=(0.9,), stepsizes=grid([1.0]), seeds=1), quiet))
    assert "[0, ∞]" in text(tab, N)

    def box(what):
        return f"(box => [box.left, box.right])(document.querySelector('{N} {what}').getBoundingClientRect())"

    (left, right), (low, high) = tab.js(box(".grid")), tab.js(box("rect.band"))
    assert high == pytest.approx(right, abs=1)
    assert low == pytest.approx(left, abs=1)
    assert tab.complaints() == []

    tab = browser.open(compare(tmp_path, quiet))
    tab.js("document.querySelector('[data-figure=b_N-width] .plot').focus()")
    tab.press("Home")
    assert "95 % interval 0 to ∞" in text(tab, "[data-figure=b_N-width] .readout")
    whole = tab.js("document.querySelector('[data-figure=b_N-width] .bar').getAttribute('d')")
    assert whole
    assert whole.count("h6") == 0  # no cap where it goes on, here at both ends
    assert tab.complaints() == []


def test_pointing_at_a_value_reads_it_out(shared):
    shared.js(f"document.querySelector('{N} .plot').scrollIntoView({{block: 'center'}})")
    x, y = shared.js(
        f"(box => [box.left + box.width / 2, box.top + box.height / 2])"
        f"(document.querySelector('{N} .series .mark').getBoundingClientRect())"
    )
    shared.point(x, y)
    assert re.match(r"N to L ≤ .*: b = 1, N = [\d.,]+; 95 % interval .* to .*; seeds 2;", text(shared, f"{N} .readout"))
    assert count(shared, f"{N} .ring") == 1
    shared.point(1, 1)
    assert text(shared, f"{N} .readout") == ""
    assert count(shared, f"{N} .ring") == 0


def test_the_keyboard_reaches_everything_and_moves_through_the_values(browser, page):
    tab = browser.open(page)
    reached = []
    for _ in range(200):
        tab.press("Tab")
        at = tab.js(
            "(one => [one.className || one.tagName, getComputedStyle(one).outlineStyle])(document.activeElement)"
        )
        if at[0] == "BODY":
            break
        assert at[1] != "none"  # the focus is seen
        reached.append(at[0])
    assert {"A", "SELECT", "INPUT", "BUTTON", "SUMMARY", "plot"} <= set(reached)
    assert reached.count("plot") == 5
    assert "term" in reached
    tab.js(f"document.querySelector('{N} .plot').focus()")
    tab.press("Home")
    said = [text(tab, f"{N} .readout")]
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "Home"):
        tab.press(key)
        said.append(text(tab, f"{N} .readout"))
    sizes = [re.search(r"b = (\d+)", words)[1] for words in said]
    assert sizes == ["1", "2", "4", "2", "128", "1"]
    tab.press("Escape")
    assert text(tab, f"{N} .readout") == ""
    tab.js(f"document.querySelector('{LOSS} .plot').focus()")
    said = []
    for key in ("Home", "ArrowDown", "End", "ArrowUp"):
        tab.press(key)
        said.append(text(tab, f"{LOSS} .readout"))
    assert [words.split(":")[0] for words in said] == ["b = 1", "b = 2", "b = 2", "b = 1"]
    assert len(set(said)) == 4
    assert "Arrow keys" in tab.js(f"document.querySelector('{N} .plot').getAttribute('aria-label')")
    tab.js(f"document.querySelector('{LOSS} input').focus()")
    tab.press(" ")
    assert tab.js(f"document.querySelector('{LOSS} input').checked") is False


def test_the_table_has_the_values_of_the_figure(shared):
    toggle(shared, f"{H} details")
    heads = shared.js(f"[...document.querySelectorAll('{H} th')].map(one => one.textContent)")
    assert heads[:5] == ["curve", "batch size b (samples)", "exponent h (1/iterations)", "low", "high"]
    assert "predicted h" in heads
    sizes = shared.js(f"[...document.querySelectorAll('{H} tbody tr')].map(row => row.cells[1].textContent)")
    assert sizes == ["1", "2", "4", "8", "16", "32", "64", "128"]


def test_data_and_drawing_are_downloaded(browser, page, tmp_path):
    tab = browser.open(page)
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path), eventsEnabled=True)
    found = {}
    for kind in ("csv", "svg"):
        browser.events.clear()
        click(tab, f'{N if kind == "csv" else LOSS} [data-file="{kind}"]')
        while not any(
            event["method"] == "Browser.downloadProgress" and event["params"]["state"] == "completed"
            for event in browser.events
        ):
            browser.events.append(browser.receive())
        (path,) = tmp_path.glob(f"*.{kind}")
        found[kind] = path.read_text(encoding="utf-8")
        assert path.name.startswith("toy-steps-" if kind == "csv" else "toy-loss-curves-")
    rows = list(csv.DictReader(io.StringIO(found["csv"])))
    assert [int(row["batch size b (samples)"]) for row in rows[:8]] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert all(float(row["iterations N to the target loss"]) > 0 for row in rows)
    drawing = tmp_path / "drawing.svg"
    drawing.write_text(found["svg"], encoding="utf-8")
    tab = browser.open(drawing)
    assert tab.complaints() == []
    words = tab.js("[...document.querySelectorAll('text')].map(one => one.textContent)")
    assert {"b = 1", "b = 128", "iteration t"} <= set(words)  # it carries its legend
    assert not re.search(r"var\(|oklab", found["svg"])  # and colours that any program knows


@pytest.fixture(scope="module")
def aimed(tmp_path_factory):
    """The page of a sweep whose best stepsizes lie inside, at every target."""
    made = tuned(seeds=2)
    fields = {"targets": (0.7,), "stepsizes": grid([0.25, 0.5, 1.0, 2.0])}
    return finish(results(tmp_path_factory.mktemp("aimed") / "toy", made, **fields), Console(file=io.StringIO()))


def aim(tab, selector, place):
    """Move a slider, and tell the page."""
    tab.js(
        f"(one => {{ one.value = {place}; one.dispatchEvent(new Event('input')); }})"
        f"(document.querySelector({json.dumps(selector + ' input[type=range]')}))"
    )


def of_target(tab):
    """What the target moves: the sentence, whether the end is said, and two drawings."""
    end = tab.js("!document.querySelector('.answer [data-target] > p').hidden")
    drawn = [tab.js(f"document.querySelector('{figure} svg.chart').outerHTML") for figure in (N, AIM)]
    return text(tab, ".answer .said"), end, drawn


def test_the_target_moves_n_b_n_and_the_answer(browser, aimed):
    tab = browser.open(aimed)
    (slider,) = tab.js("JSON.parse(document.getElementById('payload').textContent).targets")
    start, last = slider["start"], len(slider["levels"]) - 1
    assert "L ≤ 0.7, the sweep's own" in text(tab, f"{N} .slider output")
    sentence, end, first = of_target(tab)
    assert (sentence, end) == (slider["said"][start], False)
    for moved, follows, place in ((".answer", N, last), (N, ".answer", last // 2), (AIM, N, start)):
        aim(tab, moved, place)
        said = f"L ≤ {slider['levels'][place]:.3g}"
        assert text(tab, f"{follows} .slider output").startswith(said)
        assert said in text(tab, f"{N} .legend")
        sentence, end, drawn = of_target(tab)
        assert (sentence, end) == (slider["said"][place], place == last)
        assert (drawn == first) == (place == start)
    assert tab.complaints() == []


def test_the_target_is_moved_by_keys_and_the_end_names_the_command(browser, aimed):
    tab = browser.open(aimed)
    tab.js("document.querySelector('.answer input[type=range]').focus()")
    tab.press("End")
    assert text(tab, ".answer [data-target] code").startswith("raysat run SWEEP.py --set iterations=600 ")
    assert tab.js("document.activeElement.getAttribute('aria-valuetext')") == text(tab, ".answer .slider output")
    tab.press("Home")
    assert tab.js("document.activeElement.value") == "0"
    assert tab.complaints() == []


def test_a_symbol_shows_its_meaning_to_pointer_and_keyboard(browser, aimed):
    tab = browser.open(aimed)
    heads = tab.js("[...document.querySelectorAll('#predictions th a.term')].map(one => one.textContent)")
    assert {"b_star", "4 gamma/k_op", "noise scale", "forecast", "gamma", "k_op"} <= set(heads)
    about, name = dict(SYMBOLS), text(tab, ".answer a.term")
    hidden = "document.querySelector('.meaning').hidden"
    assert tab.js(hidden)
    for how in ("focus()", "dispatchEvent(new Event('pointerenter'))"):
        tab.js(f"document.querySelector('.answer a.term').{how}")
        assert not tab.js(hidden)
        assert text(tab, ".meaning") == f"{name}: {about[name]}"
        tab.press("Escape")
        assert tab.js(hidden)
    described = tab.js("document.querySelector('.answer a.term').getAttribute('aria-describedby')")
    assert text(tab, f"#{described}") == about[name]
    assert tab.complaints() == []


@pytest.mark.parametrize("width", [1280, 390])
def test_b_n_is_seen_on_the_comparison_page_without_a_sideways_scroll(browser, parent, width):
    tab = browser.open(parent / "report.html", width=width)
    edges = tab.js("[...document.querySelectorAll('td[data-head=b_N]')].map(one => one.getBoundingClientRect().right)")
    assert len(edges) == 5, "a grid's two readings, and three of theory"
    assert all(0 < edge <= width for edge in edges)
    assert tab.js("(one => one.scrollWidth - one.clientWidth)(document.querySelector('#numbers .scroll'))") <= 0


def test_on_paper_two_figures_fit_a_page_and_nothing_is_cut_off(browser, parent):
    tab = browser.open(parent / "toy" / "report.html", width=A4, medium="print")
    heights = tab.js("[...document.querySelectorAll('figure')].map(one => one.getBoundingClientRect().height)")
    assert len(heights) == 5
    assert max(heights) <= A4_HEIGHT / 2
    assert tab.js(
        "[...document.querySelectorAll('table')].every(one => one.getBoundingClientRect().right <= innerWidth)"
    )
    hidden = "input, select, .files, .readout, details"
    shown = tab.js(f"[...document.querySelectorAll('{hidden}')].filter(one => one.getClientRects().length).length")
    assert shown == 0


@pytest.mark.parametrize("made", [[], full(status="failed", error="out of memory"), full(seeds=1)[:2]])
def test_a_page_of_little_loads_too(browser, tmp_path, made):
    tab = browser.open(finish(results(tmp_path / "toy", made), Console(file=io.StringIO())))
    assert tab.complaints() == []
    assert text(tab, "#answer")


def test_a_page_of_300_trials_is_small(browser, tmp_path):
    made = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "report.py"))
    made["write"](tmp_path / "made", 300)
    page = finish(tmp_path / "made", Console(file=io.StringIO()))
    assert len(pd.read_parquet(tmp_path / "made" / "trials")) == 300
    assert page.stat().st_size < 5e6
    tab = browser.open(page)
    assert tab.complaints() == []
    assert count(tab, "svg.chart") == 5
    assert "forecast" in text(tab, "#predictions")
    assert "spectrum=64" not in text(tab, "#predictions")  # the folder has spectra: the forecast is in its time
    assert serious_faults(tab) == []
