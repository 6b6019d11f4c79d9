import math
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_analysis import SIZES, analyzed, full, grid_of, tables, trial

from raysat.plots import CAPTIONS, exponents, loss_curves, plates, save, steps

MADE = full() + full("fixed(0.1)", b_c=0.07)


def panels(figure):
    return {panel.get_title(): panel for panel in figure.axes}


def texts(panel):
    return "\n".join(text.get_text() for text in panel.texts)


def lines(panel, style):
    return [line for line in panel.lines if line.get_linestyle() == style and len(line.get_xdata()) == 200]


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
    assert "toy (center, n = 1,000)" in figure.get_suptitle()


def test_names_of_lines_that_end_together_stay_apart_and_inside():
    figure = loss_curves(*tables(full("fixed(0.1)", b_c=1e-3)))
    figure.draw_without_rendering()
    drawn = sorted((text.get_window_extent() for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert all(above.y0 >= below.y1 - 1 for below, above in pairwise(drawn))
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in drawn)
    heights = {text.get_text(): text.get_position()[1] for text in figure.axes[0].texts}
    assert heights["b = 1"] > heights["b = 2"] > heights["b = 128"]


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


def test_what_cannot_be_drawn_is_none():
    analysis = analyzed(full(status="failed"))
    assert loss_curves(*tables(full(status="failed"))) is None
    assert exponents(analysis.points, analysis.fits) is None
    assert steps(analysis.points, analysis.fits) is None
    assert plates(*tables([]), analyzed([])) == []


def test_a_missing_combination_of_width_and_stepsize_leaves_a_gap():
    made = full() + full("fixed(0.1)", width=128, b_c=2.0)
    analysis = analyzed(made)
    assert set(panels(exponents(analysis.points, analysis.fits))) == {"width 64, theory(1)", "width 128, fixed(0.1)"}


def test_settings_and_many_widths_make_several_figures():
    made = [pair for width in (16, 32, 64, 128) for pair in full(width=width, seeds=1)] + full(n=500, seeds=1)
    drawn = plates(*tables(made), analyzed(made))
    assert [plate.name for plate in drawn] == [f"{kind}-{k}" for kind in CAPTIONS for k in (1, 2, 3)]
    by_name = {plate.name: plate for plate in drawn}
    assert "n = 500" in by_name["steps-1"].title
    assert len(by_name["steps-2"].figure.axes) == 3
    assert len(by_name["steps-3"].figure.axes) == 1


def test_a_grid_takes_two_columns_of_a_figure():
    made = grid_of() + full("fixed(0.1)", b_c=2.0) + full()
    drawn = {plate.name: plate for plate in plates(*tables(made), analyzed(made))}
    assert set(panels(drawn["steps-1"].figure)) == {
        "width 64, fixed(0.1)",
        "width 64, grid (free)",
        "width 64, grid (stable)",
    }
    assert set(panels(drawn["steps-2"].figure)) == {"width 64, theory(1)"}


def test_files_are_written_and_old_ones_go(tmp_path, analysis):
    (tmp_path / "steps-7.png").write_bytes(b"of an earlier call")
    (tmp_path / "mine.png").write_bytes(b"not ours")
    drawn = plates(*tables(MADE), analysis)
    assert all(isinstance(plate.figure, Figure) for plate in drawn)
    save(drawn, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"{kind}.{suffix}" for kind in CAPTIONS for suffix in ("png", "pdf")),
        "mine.png",
    }
    assert (tmp_path / "steps.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "steps.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "exponents.png").stat().st_size > 10_000
