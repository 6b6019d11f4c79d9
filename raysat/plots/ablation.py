"""The figure of an ablation: the distance that the weights travel, and loss and accuracy against time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import color_sequences
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from raysat.analysis.ablation import WAY, counted, model_labels


def figure(trials: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Draw the distance from w_0 against log t, train loss and test accuracy against time: medians over seeds.

    Each line is a row of the table (`raysat.analysis.ablation`): its color identifies the training, its dashes the
    model, width, stepsize and batch size. For asynchronous learners time is replaced by samples, because the time of
    their simulation is not theirs.
    """
    kept = counted(trials).sort_values(list(WAY))
    kept = kept.assign(model=model_labels(kept))
    rest = [name for name in ("model", "width", "stepsize") if kept[name].nunique() > 1] + ["batch_size"]
    kept = kept.assign(rest=_joined(kept, rest))
    across = "samples" if (kept["learners"] > 1).any() else "seconds"
    joined = kept[["cell_id", "training", "rest"]].merge(curves, on="cell_id")
    joined = joined[joined["iteration"] > 0]  # w_0 has no place on a log axis
    trainings = kept["training"].unique()
    # ten well-separated colors if they suffice; if not even twenty do, colors repeat
    palette = color_sequences["tab10" if len(trainings) <= 10 else "tab20"]
    colors = dict(zip(trainings, palette * len(trainings), strict=False))
    dashes = dict(zip(kept["rest"].unique(), DASHES * len(kept), strict=False))
    drawn = Figure(figsize=(13, 5), layout="constrained")
    panels = drawn.subplots(1, 3)
    for (training, other), rows in joined.groupby(["training", "rest"], sort=False):
        path = rows.groupby("iteration")[["distance_from_init", "train_loss", "test_accuracy", across]].median()
        look = {"color": colors[training], "linestyle": dashes[other], "linewidth": 1}
        panels[0].plot(path.index, path["distance_from_init"], **look)
        panels[1].plot(path[across], path["train_loss"], **look)
        panels[2].plot(path[across], path["test_accuracy"], **look)
    names = ("distance ||w_t - w_0||", "training loss", "test accuracy")
    time = "seconds in steps" if across == "seconds" else "samples"
    for panel, y, x in zip(panels, names, ("iteration t", time, time), strict=True):
        panel.set(xscale=_scale(line.get_xdata() for line in panel.lines), xlabel=x, ylabel=y)
        panel.grid(visible=True, color="0.9", linewidth=0.6)
    panels[1].set_yscale(_scale(line.get_ydata() for line in panels[1].lines))
    marks = [Line2D([], [], color=color, label=name) for name, color in colors.items()]
    marks += [Line2D([], [], color="black", linewidth=1, linestyle=dash, label=name) for name, dash in dashes.items()]
    legend = drawn.legend(handles=marks, loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # names of a user may contain `$`
    return drawn


DASHES = ["-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (1, 4)), (0, (5, 1))]
"""Dashes of lines, those easiest to distinguish first; they repeat if there are more lines."""


def _scale(values: Iterable[np.ndarray]) -> str:
    """Return the scale of an axis: logarithmic if any of its values has a logarithm."""
    return "log" if any(np.any((of > 0) & np.isfinite(of)) for of in values) else "linear"


def _joined(kept: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    """Return labels of rows from the columns that distinguish them: `mlp(ghost=4), b = 16`."""
    words = {"width": "width {}", "batch_size": "b = {}"}
    parts: list[Any] = [kept[name].map(words.get(name, "{}").format) for name in names]
    return parts[0].str.cat(parts[1:], sep=", ") if len(parts) > 1 else parts[0]
