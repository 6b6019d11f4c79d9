"""Figures drawn to files by several processes: matplotlib uses one core, and a sweep may have dozens of figures.

Measured with 4 figures on 2 cores at a load of 6: no gain, 0.9 and 1.0 times the speed of one process (ratios of
medians of three). The gain on idle cores is not measured.
"""

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
"""Seconds that a forked process may take longer than this one for as many figures. Default: 60, which bounds the cost
of a process that hangs, as one forked while another thread holds a lock may."""


def draw(figures: Mapping[str, Figure], folder: Path, attempt: Attempt = plainly) -> None:
    """Draw figures as PNG and PDF.

    On Linux there is one process for each core, with its share of the figures. They are forked, because a forked
    process has the figures in its memory, without pickling. What it fails to draw is drawn here.

    Args:
        figures: The figures, by file name without suffix.
        folder: The folder of the files.
        attempt: Calls the function that draws each figure; a failed one leaves no file. Default: errors are raised.
    """
    names, processes = list(figures), _processes()
    # every k-th figure: neighbours are of one kind and cost alike, so that the shares do too
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
                process.join()  # otherwise it might still write the files drawn next
                _draw(share, folder, attempt)
    finally:
        for process in forked:
            if process.is_alive():
                process.kill()
                process.join()


def _processes() -> int:
    """Return the number of processes; 1 if a fork is not safe (not on Linux) or not allowed (in a daemon)."""
    return 1 if sys.platform != "linux" or current_process().daemon else len(os.sched_getaffinity(0))


def _draw_beside(figures: Mapping[str, Figure], folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the others
    try:
        _draw(figures, folder, plainly)
    except Exception:  # the parent draws these again, and reports the error
        sys.exit(1)


def _draw(figures: Mapping[str, Figure], folder: Path, attempt: Attempt) -> None:
    for name, figure in figures.items():
        attempt(f"Figure {name}", partial(_draw_one, figure, folder, name))


def _draw_one(figure: Figure, folder: Path, name: str) -> None:
    files = [folder / f"{name}.{suffix}" for suffix in FORMATS]
    try:
        if (engine := figure.get_layout_engine()) is not None:  # None after an attempt that failed after the layout
            engine.execute(figure)
        figure.set_layout_engine(None)  # one layout serves both files; with an engine each would be drawn twice
        for file in files:
            figure.savefig(file, dpi=DPI)
    except BaseException:  # no half-written file stays, not even after Ctrl-C
        for file in files:
            file.unlink(missing_ok=True)
        raise
