"""Recomputing ids from what is stored: an initialization's from its row, a cell's from its row and `sweep.json`.

An id is the hash of all that can change a result (`raysat.spec.cells.identity`); a row that does not reproduce its own
id is not what was computed under it. Rows lack some fields of a cell: for these the sweep's values are tried.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from itertools import product
from typing import Any

from raysat.spec.branches import Branches
from raysat.spec.cells import Cell, Initialization, Model
from raysat.spec.stepsizes import Stepsize
from raysat.spec.sweep import FEWEST_EVALUATIONS, Sweep
from raysat.spec.training import Training

Row = Mapping


def sweep_of(record: Mapping) -> Sweep | None:
    """The sweep stored in `sweep.json`; None if this version of raysat cannot read it."""
    try:
        stored = {field.name: record["sweep"][field.name] for field in fields(Sweep) if field.name in record["sweep"]}
        models = [Model(one["builder"], _pairs(one["options"]), one["has_width"]) for one in stored["models"]]
        stepsizes = [Stepsize(**one) for one in stored["stepsizes"]]
        trainings = [_training(one) for one in stored.get("trainings", [{}])]
        own = {"models": models, "stepsizes": stepsizes, "trainings": trainings}
        if stored.get("branches"):
            own["branches"] = Branches(**stored["branches"])
        return Sweep(**{**stored, **own})
    except (LookupError, TypeError, ValueError, AttributeError):
        return None


def _training(stored: Mapping) -> Training:
    values: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in stored.items()}
    return Training(**values)


def _pairs(options: Iterable) -> tuple[tuple[str, Any], ...]:
    return tuple((name, value) for name, value in options)


class Recall:
    """Recomputes the ids of a sweep's rows, if it uses no code of a user's own, on which the ids depend too.

    Args:
        sweep: The sweep.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.evaluations: dict[tuple, int] = {}  # `Cell.evaluations` as found, by what it depends on

    def initialization(self, row: Row) -> Initialization:
        """The initialization of a row of `trials` or `ntk`, from its columns."""
        n = int(row["n"])
        model = Model(row["model"], _pairs(json.loads(row["model_options"]).items()), bool(row["width"]))
        samples = int(row["evaluation_samples"])
        columns: dict[str, Any] = {name: row[name] for name in ("dataset", "preprocessing", "dtype", "loss")}
        init = self.sweep.initialization(model, int(row["width"]), int(row["seed"]), n, int(row["n_test"]))
        return replace(init, **columns, evaluation_samples=0 if samples >= n else samples)

    def asks_for(self, row: Row) -> bool:
        """Return whether a row of `trials` lies on the sweep's axes, so that its id can be recomputed."""
        sweep = self.sweep
        return (
            not sweep.grows
            and row["seed"] in sweep.each_seed
            and row["batch_size"] in sweep.batch_sizes
            and (row["width"] in sweep.widths or not row["width"])
            and row["stepsize"] in {one.label for one in sweep.stepsizes}
            and row["training"] in {one.label for one in sweep.trainings}
        )

    def makes(self, row: Row) -> bool:
        """Return whether a row of `trials` reproduces its own id."""
        return any(cell.cell_id == row["cell_id"] for cell in self._cells(row))

    def _cells(self, row: Row) -> Iterator[Cell]:
        """Yield the cells that the row may belong to."""
        sweep, init, b, t = self.sweep, self.initialization(row), int(row["batch_size"]), int(row["iterations"])
        key = init.model, init.width, b, t, row["training"]
        few = self.evaluations.get(key)  # rows do not store it: at first all numbers that the sweep allows are tried
        counts = range(min(FEWEST_EVALUATIONS, sweep.evaluations), sweep.evaluations + 1) if few is None else [few]
        stepsizes = [one for one in sweep.stepsizes if one.label == row["stepsize"]]
        trainings = [one for one in sweep.trainings if one.label == row["training"]]
        for stepsize, training, evaluations in product(stepsizes, trainings, counts):
            cell = replace(sweep.cell(init, b, stepsize, training, t), evaluations=evaluations)
            yield cell
            if cell.cell_id == row["cell_id"]:
                self.evaluations[key] = evaluations

    def longest(self, n: int) -> int:
        """The largest T of the sweep's cells."""
        sizes = product(self.sweep.batch_sizes, self.sweep.trainings)
        return max(self.sweep.iterations_at(b, n, training) for b, training in sizes)
