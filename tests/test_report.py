import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console
from test_analysis import SIZES, analyzed, full, grid_of, results, trial

from raysat.analysis import THEORY_CAVEAT, summary
from raysat.report import LISTED, answer, finish, main, progress
from raysat.spec import InputError, Model, fixed, theory
from raysat.store import Store


class Page(HTMLParser):
    """Checks that tags are closed in order; keeps texts, tags and attributes."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def finished(root):
    console = Console(file=io.StringIO(), width=100)
    html = finish(root, console).read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    return html, page, console.file.getvalue()


def sentences(made, targets=()):
    return answer(summary(analyzed(made, targets).fits))


def test_the_page_is_one_file_with_the_answer_first(tmp_path):
    made = [*full(), *full("fixed(0.1)", b_c=0.07), trial(256, status="diverged")]
    root = results(tmp_path / "toy", made, stepsizes=(theory(1.0), fixed(0.1)))
    html, page, said = finished(root)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 3
    notes = {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"}
    assert notes
    assert notes <= {attributes.get("id") for _, attributes in page.tags}
    assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in images)
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)  # nothing is fetched
    assert page.text.index("critical batch size is b_N = 12") < page.text.index("Figures") < page.text.index("Failed")
    assert THEORY_CAVEAT in page.text
    assert "perfect scaling N(1)/b" in page.text  # in the caption
    assert "1 diverged, 0 failed" in page.text
    assert '"builder": "mlp"' in page.text
    assert "raysat 0.1" in page.text
    for rule in ("prefers-color-scheme: dark", "@media print", "width=device-width"):
        assert rule in html
    for path in (root / "report.html", root / "figures", root):
        assert str(path) in said
    assert "b_N" in said
    assert (root / "analysis.parquet").exists()
    assert (root / "figures" / "steps.pdf").exists()


def test_what_users_wrote_is_escaped(tmp_path):
    script = "<script>alert('x')</script>&"
    made = [*full(dataset=script), trial(256, status="failed", error=script, dataset=script)]
    html, page, _ = finished(results(tmp_path / "toy", made, dataset=script))
    assert "<script" not in html
    assert page.text.count(script) >= 3  # setting, error, configuration


def test_an_unfinished_sweep_has_a_page(tmp_path):
    root = results(tmp_path / "toy", full(seeds=1)[:2])
    _html, page, _ = finished(root)
    assert "2 of 16 cells have ended" in page.text
    assert "no critical batch size can be given" in page.text
    assert "a fit needs 3" in page.text


def test_an_empty_one_too(tmp_path):
    _html, page, said = finished(results(tmp_path / "toy", []))
    assert "No trial has ended yet" in page.text
    assert "No trial has ended yet" in said
    assert "0 of 16 cells have ended" in page.text
    assert "img" not in {tag for tag, _ in page.tags}


def test_cells_are_counted_as_the_sweep_lays_them_out(tmp_path):
    models = (Model("mlp", (("depth", 2),)), Model("linear", (), has_width=False))
    root = results(tmp_path / "toy", full(seeds=1), models=models, widths=(64, 128), seeds=3)
    store = Store(root)
    assert progress(store.record(), store.read("trials")).startswith(f"8 of {3 * 3 * len(SIZES)} cells")


def test_a_long_list_of_lost_cells_is_cut_and_counted(tmp_path):
    made = [trial(b, seed, status="failed", error="out of memory") for seed in range(10) for b in SIZES]
    _html, page, _ = finished(results(tmp_path / "toy", made, seeds=10))
    assert page.text.count("out of memory") == LISTED
    assert f"And {len(made) - LISTED} more" in page.text


class TestAnswer:
    def test_tuned_stepsizes_come_before_theory_and_theory_before_one_for_all(self):
        (tuned,) = sentences(grid_of() + full() + full("fixed(0.1)", b_c=2.0), [0.7])
        assert "under grid (free)" in tuned
        assert "Among stepsizes below 2/k_op, of which alone the theory speaks, it is " in tuned
        assert THEORY_CAVEAT not in tuned
        (untuned,) = sentences(full() + full("fixed(0.1)", b_c=2.0))
        assert "under theory(1) the critical batch size is b_N = 12 [12, 12] samples" in untuned
        assert "b_star = 13" in untuned
        assert THEORY_CAVEAT in untuned

    def test_the_widest_network_speaks(self):
        (sentence,) = sentences(full() + full(width=256, b_c=20.0))
        assert sentence.startswith("At width 256")
        assert "b_N = 20" in sentence

    def test_a_refusal_gives_its_reason(self):
        (sentence,) = sentences(full(), [1e-9])
        assert "no critical batch size can be given. b_N: 16 of 16 trials do not reach L <= 1e-09." in sentence

    def test_there_is_one_a_setting(self):
        assert len(sentences(full() + full(n=500))) == 2


class TestCommand:
    def test_writes_the_page(self, tmp_path, capsys):
        root = results(tmp_path / "toy", [])
        assert main([str(root)]) == 0
        assert (root / "report.html").exists()
        assert "report.html" in capsys.readouterr().out

    def test_another_folder_is_refused_in_one_line(self, tmp_path, capsys):
        assert main([str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "give a results folder" in error
        with pytest.raises(InputError):
            finish(tmp_path, Console(file=io.StringIO()))
