"""Figures drawn by several processes."""

import os
import signal
from multiprocessing import active_children, get_context

import pytest
from matplotlib.figure import Figure

from raysat.plots import drawing
from raysat.plots.drawing import draw

HERE = os.getpid()


def line(kind=Figure):
    figure = kind(figsize=(2, 2), layout="constrained")
    figure.subplots().plot([1, 2, 4], label="N")
    return figure


class Elsewhere(Figure):
    """Drawn in another process only."""

    def savefig(self, *arguments, **options):
        assert os.getpid() != HERE
        super().savefig(*arguments, **options)


class Fails(Figure):
    """Drawn in this process only."""

    def savefig(self, *arguments, **options):
        if os.getpid() != HERE:
            os._exit(1)
        super().savefig(*arguments, **options)


class Halts(Figure):
    """Drawn in this process only; another one waits for ever."""

    def savefig(self, *arguments, **options):
        if os.getpid() != HERE:
            signal.pause()
        super().savefig(*arguments, **options)


class Interrupted(Figure):
    """Ctrl-C while it is drawn."""

    def savefig(self, *arguments, **options):
        raise KeyboardInterrupt


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(drawing, "_processes", lambda: 2)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_several_processes_draw_what_one_draws(tmp_path, monkeypatch):
    drawn = []
    for processes in (1, 3):
        monkeypatch.setattr(drawing, "_processes", lambda processes=processes: processes)
        folder = tmp_path / str(processes)
        folder.mkdir()
        draw({name: line() for name in "abcde"}, folder)
        assert {path.name for path in folder.iterdir()} == {
            f"{name}.{end}" for name in "abcde" for end in ("png", "pdf")
        }
        drawn.append(contents(folder))
    assert drawn[0] == drawn[1]
    assert all(content.startswith(b"\x89PNG") for content in drawn[0].values())


def test_every_second_figure_is_drawn_in_the_second_process(tmp_path, two):
    draw({"a": line(), "b": line(Elsewhere), "c": line(), "d": line(Elsewhere)}, tmp_path)
    assert len(contents(tmp_path)) == 4


@pytest.mark.parametrize("kind", [Fails, Halts])
def test_what_another_process_does_not_draw_is_drawn_here(tmp_path, monkeypatch, two, kind):
    monkeypatch.setattr(drawing, "PATIENCE", 0.01)
    draw({"a": line(), "b": line(kind), "c": line(), "d": line(kind)}, tmp_path)
    assert len(contents(tmp_path)) == 4


def test_other_processes_end_with_this_ones_drawing(tmp_path, two):
    with pytest.raises(KeyboardInterrupt):
        draw({"a": line(Interrupted), "b": line(Halts)}, tmp_path)
    assert not active_children()


def test_one_figure_and_none_need_no_other_process(tmp_path, two):
    draw({"a": line(Fails)}, tmp_path)
    draw({}, tmp_path)
    assert list(contents(tmp_path)) == ["a.png"]


def test_a_process_that_may_have_none_of_its_own_draws_alone(tmp_path):
    process = get_context("fork").Process(target=draw, args=({"a": line(), "b": line()}, tmp_path), daemon=True)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert set(contents(tmp_path)) == {"a.png", "b.png"}
