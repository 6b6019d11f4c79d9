import math
import re
from itertools import combinations, pairwise

import numpy as np
import pytest
from analysis.test_analysis import SIZES, analyzed, full, grid_of, refused_ntk, tables, trial, without_statistics
from analysis.test_efficiency import timed
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from raysat.analysis import analyze
from raysat.plots import CAPTIONS, costs, exponents, loss_curves, render_figures, save, steps
from raysat.plots.description import PALETTE, SMOOTH
from raysat.plots.panels import FIT, INK, SOFT, STAR, label_ends
from raysat.report.html import asset

MADE = full() + full("fixed(0.1)", b_c=0.07)


def panels(figure):
    return {panel.get_title(): panel for panel in figure.axes}


def texts(panel):
    return "\n".join(text.get_text() for text in panel.texts)


def lines(panel, style):
    return [line for line in panel.lines if line.get_linestyle() == style and len(line.get_xdata()) == SMOOTH]


@pytest.fixture(scope="module")
def analysis():
    return analyzed(MADE)


def test_loss_curves_have_a_named_line_for_each_batch_size():
    figure = loss_curves(*tables(MADE))
    assert set(panels(figure)) == {"width 64, theory(1)", "width 64, fixed(0.1)"}
    panel = panels(figure)["width 64, theory(1)"]
    assert {text.get_text() for text in panel.texts} == {f"b = {b}" for b in SIZES}
    assert panel.get_xlabel() == "iteration t"
    assert "mean squared residual" in figure.axes[0].get_ylabel()
    assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
    curves = [line for line in panel.lines if len(line.get_xdata()) > 10]
    assert len(curves) == len(SIZES)
    assert curves[0].get_ydata()[-1] == pytest.approx(math.exp(-300 * 0.02 / 13))
    assert len({line.get_marker() for line in curves}) == len(SIZES)  # told apart without colour
    assert figure.get_suptitle() == "toy, mlp"


def test_names_of_lines_that_end_together_stay_apart_and_inside():
    figure = loss_curves(*tables(full("fixed(0.1)", b_c=1e-3)))
    figure.draw_without_rendering()
    drawn = sorted((text.get_window_extent() for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert all(above.y0 >= below.y1 - 1 for below, above in pairwise(drawn))
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in drawn)
    heights = {text.get_text(): text.get_position()[1] for text in figure.axes[0].texts}
    assert heights["b = 1"] > heights["b = 2"] > heights["b = 128"]


def test_labels_are_moved_only_where_they_are_crowded():
    panel = Figure().subplots()
    panel.set(xlim=(0, 1), ylim=(0, 1))
    ends = [(1, 0.99, "a", "k", "o"), (1, 0.985, "b", "k", "o"), (1, 0.98, "c", "k", "o"), (1, 0.2, "alone", "k", "o")]
    label_ends(panel, ends)
    heights = {text.get_text(): text.get_position()[1] for text in panel.texts}
    assert heights["alone"] == pytest.approx(0.2)
    assert 1 >= heights["a"] > heights["b"] > heights["c"] > 0.8


@pytest.mark.parametrize("lengths", [(30, 3000), (3000, 30)])
def test_panels_of_different_lengths_show_all_of_their_curves(lengths):
    made = [one for k, t in enumerate(lengths) for one in full(f"fixed(0.{k + 1})", iterations=t)]
    for title, panel in panels(loss_curves(*tables(made))).items():
        last = max(line.get_xdata()[-1] for line in panel.lines if len(line.get_xdata()) > 10)
        assert panel.get_xlim()[1] >= last, title
        assert panel.get_xlim()[1] >= 3000


def test_loss_curves_of_a_grid_are_those_of_the_best_stepsize():
    figure = loss_curves(*tables(grid_of()))
    panel = panels(figure)["width 64, grid"]
    ends = [line.get_ydata()[-1] for line in panel.lines if len(line.get_xdata()) > 10]
    assert ends[0] == pytest.approx(math.exp(-300 * 0.005))
    assert ends[1] == pytest.approx(math.exp(-300 * 0.01))


def test_the_band_of_loss_curves_spans_the_seeds():
    made = [trial(b, seed, rate=0.001 * (1 + seed)) for seed in range(3) for b in SIZES]
    panel = loss_curves(*tables(made)).axes[0]
    band = panel.collections[0].get_paths()[0].get_extents()
    assert band.ymin == pytest.approx(math.exp(-300 * 0.003))
    median = next(line for line in panel.lines if len(line.get_xdata()) > 10)
    assert median.get_ydata()[-1] == pytest.approx(math.exp(-300 * 0.002))


def test_exponents_have_the_interpolated_curve_units_and_the_range_in_words(analysis):
    figure = exponents(analysis.points, analysis.fits)
    panel = panels(figure)["width 64, theory(1)"]
    assert panel.get_xlabel() == "batch size b (samples)"
    assert figure.axes[0].get_ylabel() == "exponent h (1/iterations)"
    (curve,) = lines(panel, "--")
    assert curve.get_ydata()[0] == pytest.approx(0.02 / 13)
    assert panel.get_ylim()[0] == 0  # a small range is to look small
    assert "h varies by a factor of 11.9" in texts(panel)
    assert "h(128) stands in for h(n)" in texts(panel)
    assert "h varies by a factor of 1.07" in texts(panels(figure)["width 64, fixed(0.1)"])


def test_exponents_without_h_of_1_say_that_there_is_no_interpolation():
    analysis = analyzed([trial(b) for b in SIZES[1:]])
    panel = exponents(analysis.points, analysis.fits).axes[0]
    assert lines(panel, "--") == []
    assert "no interpolation" in texts(panel)


def test_steps_have_fit_perfect_scaling_and_both_critical_batches(analysis):
    figure = steps(analysis.points, analysis.fits)
    panel = panels(figure)["width 64, theory(1)"]
    assert figure.axes[0].get_ylabel() == "iterations N to the target loss"
    assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
    (perfect,) = lines(panel, ":")
    assert perfect.get_ydata()[0] / perfect.get_ydata()[-1] == pytest.approx(128)
    fitted = lines(panel, "-")
    assert len(fitted) == 3  # one a target
    measured = analysis.points.query("quantity == 'N' and stepsize == 'theory(1)' and batch_size == 1")["value"]
    assert {round(line.get_ydata()[0]) for line in fitted} == {round(value) for value in measured}
    upright = sorted(
        line.get_xdata()[0] for line in panel.lines if np.ptp(line.get_xdata()) == 0 and len(line.get_xdata()) == 2
    )
    assert upright == pytest.approx([12, 13], rel=1e-2)
    assert "b_N = 12\nb_star = 13" in texts(panel)
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"perfect scaling N(1)/b", "b_N, fitted", "b_star, predicted"} <= legend


def test_steps_to_a_missed_target_point_to_the_table():
    analysis = analyzed([*full(), trial(256, 1, rate=1e-4)], targets=[0.7])
    panel = steps(analysis.points, analysis.fits).axes[0]
    assert "no b_N: see the table" in texts(panel)
    assert lines(panel, "-") == []


def test_costs_are_relative_to_their_least_with_intervals_and_the_least_in_words():
    made = [timed(b, seed, b_c=b_c) for seed, b_c in enumerate((9.0, 12.0, 16.0)) for b in SIZES]
    figure = costs(analyzed(made, [0.8, 0.9]).costs)
    (panel,) = figure.axes
    assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
    curves = [line for line in panel.lines if len(line.get_xdata()) == len(SIZES) and line.get_linestyle() != "None"]
    assert len(curves) == 3
    assert [min(line.get_ydata()) for line in curves] == pytest.approx([1, 1, 1])
    assert curves[0].get_ydata()[-1] > 5  # samples rise, seconds fall and rise again
    assert curves[1].get_ydata()[0] > 2
    words = texts(panel)
    assert "L ≤ 0.8" in words
    for cost in ("samples at b = 1", "seconds at b = 16", "device-hours at b = 16"):
        assert re.search(rf"least: [\d.e-]+ {cost}", words)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["samples", "seconds", "device-hours", "20 % above the least"]
    trials, curves = tables(made)
    devices = trials.assign(device=["A100" if b < 8 else "H200" for b in trials["batch_size"]])
    priced = costs(analyze(devices, curves, [0.8], prices=(("A100", 1.0), ("H200", 3.5))).costs)
    assert [text.get_text() for text in priced.legends[0].get_texts()][2:4] == ["device-hours", "money"]
    untimed = costs(analyzed(full(), [0.7]).costs)
    assert [text.get_text() for text in untimed.legends[0].get_texts()] == ["samples", "20 % above the least"]


def test_without_statistics_there_is_no_b_star_to_mark():
    trials, curves = tables(without_statistics())
    analysis = analyze(trials, curves, ntk=refused_ntk())
    (panel,) = steps(analysis.points, analysis.fits).axes
    assert "b_star" not in texts(panel)
    assert [plate.kind for plate in render_figures(trials, curves, analysis)] == list(CAPTIONS)


def test_what_cannot_be_drawn_is_none():
    analysis = analyzed(full(status="failed"))
    assert loss_curves(*tables(full(status="failed"))) is None
    assert exponents(analysis.points, analysis.fits) is None
    assert steps(analysis.points, analysis.fits) is None
    assert costs(analysis.costs) is None
    assert render_figures(*tables([]), analyzed([])) == []


def test_a_missing_combination_of_width_and_stepsize_leaves_a_gap():
    made = full() + full("fixed(0.1)", width=128, b_c=2.0)
    analysis = analyzed(made)
    assert set(panels(exponents(analysis.points, analysis.fits))) == {"width 64, theory(1)", "width 128, fixed(0.1)"}


def test_settings_and_many_widths_make_several_figures():
    made = [pair for width in (16, 32, 64, 128) for pair in full(width=width, seeds=1)] + full(n=500, seeds=1)
    drawn = render_figures(*tables(made), analyzed(made))
    assert [plate.name for plate in drawn] == [f"{kind}-{k}" for kind in CAPTIONS for k in (1, 2, 3)]
    by_name = {plate.name: plate for plate in drawn}
    assert "n = 500" in by_name["steps-1"].title
    assert {drawn.figure.get_suptitle() for drawn in by_name.values()} == {"toy, mlp, n = 500", "toy, mlp, n = 1000"}
    assert len(by_name["steps-2"].figure.axes) == 3
    assert len(by_name["steps-3"].figure.axes) == 1


def test_a_grid_takes_two_columns_of_a_figure():
    made = grid_of() + full("fixed(0.1)", b_c=2.0) + full()
    drawn = {plate.name: plate for plate in render_figures(*tables(made), analyzed(made))}
    assert set(panels(drawn["steps-1"].figure)) == {
        "width 64, fixed(0.1)",
        "width 64, grid (free)",
        "width 64, grid (stable)",
    }
    assert set(panels(drawn["steps-2"].figure)) == {"width 64, theory(1)"}


def test_files_are_written_and_old_ones_go(tmp_path, analysis):
    (tmp_path / "steps-7.png").write_bytes(b"of an earlier call")
    mine = {"mine.png", "steps-of-mine.png", "steps-2-annotated.pdf"}
    for name in mine:
        (tmp_path / name).write_bytes(b"not ours")
    drawn = render_figures(*tables(MADE), analysis)
    assert all(isinstance(plate.figure, Figure) for plate in drawn)
    save(drawn, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"{kind}.{suffix}" for kind in CAPTIONS for suffix in ("png", "pdf")),
        *mine,
    }
    assert (tmp_path / "steps.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "steps.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "exponents.png").stat().st_size > 10_000


APART, CONTRAST, RAMP_CONTRAST = 20, 4.5, 3.0
"""The floors: of the distance of two colours (CIELAB, Delta E of 1976, of which 2.3 is just noticed), and of the
contrast with the page: of text (WCAG 1.4.3), and of graphics (1.4.11)."""

SIGHT = {
    "normal": np.eye(3),
    # Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]])


def linear(colour):
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    t = XYZ @ np.clip(rgb, 0, 1) / XYZ.sum(axis=1)
    x, y, z = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one, other):
    low, high = sorted(XYZ[1] @ linear(colour) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def palettes():
    """The colours of the page by theme, and those of the static figures."""
    light, dark = asset("page.css").split("prefers-color-scheme: dark")
    for theme, text in (("light", light), ("dark", dark.split("* {")[0])):
        named = dict(re.findall(r"--([\w-]+): (#\w{6})", text))
        yield f"{theme} series", [named[tone] for tone in (*PALETTE, "soft")], named["page"], CONTRAST
        yield f"{theme} ramp", [named[f"ramp-{k}"] for k in range(5)], named["page"], RAMP_CONTRAST
    yield "static", [INK, FIT, STAR, SOFT], "white", RAMP_CONTRAST


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("palette", list(palettes()), ids=lambda palette: palette[0])
def test_any_two_colours_are_told_apart_by_all_eyes_and_seen_on_the_page(palette, sight):
    _, colours, page, least = palette
    seen = {colour: lab(np.array(SIGHT[sight]) @ linear(colour)) for colour in colours}
    apart = {pair: float(np.linalg.norm(seen[pair[0]] - seen[pair[1]])) for pair in combinations(colours, 2)}
    assert {pair: distance for pair, distance in apart.items() if distance < APART} == {}
    assert all(contrast(colour, page) >= least for colour in colours)
