"""The critical batch along training, on the page and as a file that a trainer can read."""

from __future__ import annotations

from html import escape
from typing import Any

import pandas as pd

from raysat.analysis import number
from raysat.analysis.branches import ALIKE, sentences, warm_ups
from raysat.analysis.words import bounds
from raysat.report.html import Section, paragraphs, table

TITLE = "The critical batch along training"

COLUMNS = {
    **{"model": "model", "width": "width", "stepsizes": "stepsize", "training": "rule", "b": "batch_size"},
    **{"seed": "seed", "t": "iteration", "window": "window"},
}
"""The columns that describe a run: heads, and columns of `raysat.analysis.branches`."""

ABOUT = (
    "Branches leave a run of batch size b at iteration t and take batches of k b over a window of equally many "
    "samples: b_crit is the largest k b up to which none ends with a loss more than the tolerance above that of k = 1, "
    "in brackets its 95 % interval over draws of the samples. Noise scale and b_star are of the network at the same t."
)


def section(branches: pd.DataFrame) -> Section:
    """Make the section; empty if the sweep has no branches.

    Args:
        branches: The result of `raysat.analysis.branches.branches`.
    """
    if branches.empty:
        return Section("along", TITLE, "")
    heads = (*COLUMNS, "b_crit", "noise scale", "b_star", "reservation")
    rows = []
    for row in branches.to_dict("records"):
        found = f"{number(row['b_crit'])} {bounds(row['low'], row['high'])}".strip()
        cells = [str(row[name]) for name in COLUMNS.values()]
        cells += [found, number(row["noise_scale"]), number(row["b_star"]), row["reason"]]
        rows.append([escape(cell) for cell in cells])
    words = {"model", "stepsizes", "training", "reservation"}
    parts = [paragraphs(sentences(branches)), table(heads, rows, words, TITLE), paragraphs([ABOUT], "soft")]
    return Section("along", TITLE, "\n".join(parts))


def schedules(branches: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the batch-size warm-ups that follow the critical batch, for JSON.

    Each has what its runs share, and in `batch_sizes` pairs of an iteration and the batch size from there on.
    """
    made = []
    for own, schedule in warm_ups(branches):
        shared = own[[*ALIKE, "window"]].to_dict("records")[0]
        b = int(shared["batch_size"])
        phases = {0: b} | {phase.start: phase.factor * b for phase in schedule}
        made.append({**shared, "batch_sizes": [list(pair) for pair in phases.items()]})
    return made
