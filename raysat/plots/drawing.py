"""Figures to files, by several processes: matplotlib draws on one core, and a sweep may have dozens of figures."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from functools import partial
from multiprocessing import current_process, get_context
from pathlib import Path

from matplotlib.backends import backend_agg, backend_pdf  # noqa: F401  else loaded by the first drawing of each process
from matplotlib.figure import Figure

from raysat.plots.attempts import Attempt, plainly

DPI = 150

FORMATS = "png", "pdf"

PATIENCE = 60.0
"""Seconds that another process may take longer than this one for as many figures. Default: a minute, which bounds what
a process costs that hangs, as one forked while a thread holds a lock may."""


def draw(figures: Mapping[str, Figure], folder: Path, attempt: Attempt = plainly) -> None:
    """Draw figures as PNG and PDF.

    On Linux each core draws its share in a process that is forked, for it finds the figures in its memory. What such a
    process fails to draw is drawn here.

    Args:
        figures: By file name without suffix.
        folder: Where the files are made.
        attempt: Draws each figure; of one that fails there is no file. Default: an error is raised.
    """
    names, processes = list(figures), _processes()
    mine, *others = [{name: figures[name] for name in names[k::processes]} for k in range(processes)]
    fork = get_context("fork" if processes > 1 else None)
    forked = {fork.Process(target=_draw_beside, args=(share, folder), daemon=True): share for share in others if share}
    try:
        for process in forked:
            process.start()
        _draw(mine, folder, attempt)
        for process, share in forked.items():
            process.join(PATIENCE)
            if process.exitcode != 0:
                process.kill()
                process.join()  # it may write the same files
                _draw(share, folder, attempt)
    finally:
        for process in forked:
            if process.is_alive():
                process.kill()
                process.join()


def _processes() -> int:
    """Return how many processes draw; one where a process cannot be forked safely, or may not have others."""
    return 1 if sys.platform != "linux" or current_process().daemon else len(os.sched_getaffinity(0))


def _draw_beside(figures: Mapping[str, Figure], folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C comes to all processes; the first one ends the others
    try:
        _draw(figures, folder, plainly)
    except Exception:  # the first process draws these again, and reports it
        sys.exit(1)


def _draw(figures: Mapping[str, Figure], folder: Path, attempt: Attempt) -> None:
    for name, figure in figures.items():
        attempt(f"Figure {name}", partial(_draw_one, figure, folder, name))


def _draw_one(figure: Figure, folder: Path, name: str) -> None:
    files = [folder / f"{name}.{suffix}" for suffix in FORMATS]
    try:
        if (engine := figure.get_layout_engine()) is not None:  # else it was laid out by an attempt that failed
            engine.execute(figure)
        figure.set_layout_engine(None)  # laid out once for both files; with an engine each is drawn twice
        for file in files:
            figure.savefig(file, dpi=DPI)
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise
