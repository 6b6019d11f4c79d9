"""Trials that end at a target of any metric."""

from dataclasses import replace

import pytest

from raysat.spec.cells import Cell
from raysat.spec.goals import Target
from raysat.trial.initial import compute_statistics
from raysat.trial.job import Job
from raysat.trial.train import run_trial

EVERY = 600
"""Evaluations of 60 iterations that leave none out."""


def run(cell: Cell):
    job = Job(sweep="s", init=cell.init, cell=cell)
    row, curve, _ = run_trial(replace(job, statistics=compute_statistics(job)))
    return row, [
        {name: value for name, value in point.items() if name not in ("cell_id", "seconds")} for point in curve
    ]


@pytest.mark.parametrize(
    ("metric", "better"),
    [("train_loss", min), ("test_loss", min), ("train_accuracy", max), ("test_accuracy", max)],
)
@pytest.mark.parametrize("evaluations", [8, EVERY])
def test_a_trial_ends_at_the_first_evaluation_at_its_target(make_cell, metric, better, evaluations):
    """Where that is, a loop over the curve of the same trial without a target says."""
    cell = make_cell(iterations=60, evaluations=evaluations)
    row, whole = run(cell)
    assert row["status"] == "completed"
    level = better(point[metric] for point in whole[: len(whole) * 2 // 3])  # exactly a value of the curve
    first = None
    for k, point in enumerate(whole):
        if first is None and (point[metric] >= level if better is max else point[metric] <= level):
            first = k
    assert 0 < first < len(whole) - 1
    target = Target(metric, level)
    fields = {"target_loss": level} if metric == "train_loss" else {"target": str(target)}
    ended, curve = run(replace(cell, **fields))
    assert curve == whole[: first + 1]
    assert (ended["status"], ended["iterations_done"]) == ("target_reached", whole[first]["iteration"])
    assert ended[{"train_loss": "loss_final"}.get(metric, metric)] == whole[first][metric]


def test_divergence_and_h_are_of_the_training_loss(make_cell):
    cell = replace(make_cell(iterations=60), target="test_accuracy >= 1.0")
    (row, curve), (other, same) = run(cell), run(replace(cell, target=None))
    assert curve == same
    assert (row["status"], row["h"]) == (other["status"], other["h"])
