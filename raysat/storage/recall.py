"""Ids made again from what is stored: of an initialization from its row, of a cell from its row and `sweep.json`.

An id is the hash of all that can change a result (`raysat.spec.cells.identity`); a row that does not make its own id is
not what was computed. Rows have less than a cell: of what they lack the sweep's values are tried.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from itertools import product
from typing import Any

from raysat.spec.cells import Cell, Initialization, Model
from raysat.spec.stepsizes import Stepsize
from raysat.spec.sweep import FEWEST_EVALUATIONS, Sweep
from raysat.spec.training import Training

Row = Mapping


def sweep_of(record: Mapping) -> Sweep | None:
    """The sweep that `sweep.json` has; None where it is not one of this raysat's."""
    try:
        stored = {field.name: record["sweep"][field.name] for field in fields(Sweep) if field.name in record["sweep"]}
        models = [Model(one["builder"], _pairs(one["options"]), one["has_width"]) for one in stored["models"]]
        stepsizes = [Stepsize(**one) for one in stored["stepsizes"]]
        trainings = [_training(one) for one in stored.get("trainings", [{}])]
        return Sweep(**{**stored, "models": models, "stepsizes": stepsizes, "trainings": trainings})
    except (LookupError, TypeError, ValueError, AttributeError):
        return None


def _training(stored: Mapping) -> Training:
    values: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in stored.items()}
    return Training(**values)


def _pairs(options: Iterable) -> tuple[tuple[str, Any], ...]:
    return tuple((name, value) for name, value in options)


class Recall:
    """Makes the ids of a sweep's rows again, where it has no code of a user's, of which the ids depend too.

    Args:
        sweep: The sweep.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.evaluations: dict[tuple, int] = {}  # that were found, by what they depend on

    def initialization(self, row: Row) -> Initialization:
        """The initialization that a row of `trials` or `ntk` is of, from its columns."""
        n = int(row["n"])
        model = Model(row["model"], _pairs(json.loads(row["model_options"]).items()), bool(row["width"]))
        samples = int(row["evaluation_samples"])
        columns: dict[str, Any] = {name: row[name] for name in ("dataset", "preprocessing", "dtype", "loss")}
        init = self.sweep.initialization(model, int(row["width"]), int(row["seed"]), n, int(row["n_test"]))
        return replace(init, **columns, evaluation_samples=0 if samples >= n else samples)

    def asks_for(self, row: Row) -> bool:
        """Return whether a row of `trials` is of a point of the sweep's axes, so that its id can be made again."""
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
        """Return whether a row of `trials` makes its own id."""
        return any(cell.cell_id == row["cell_id"] for cell in self._cells(row))

    def _cells(self, row: Row) -> Iterator[Cell]:
        """Yield what the row may be of."""
        sweep, init, b, t = self.sweep, self.initialization(row), int(row["batch_size"]), int(row["iterations"])
        key = init.model, init.width, b, t, row["training"]
        few = self.evaluations.get(key)
        counts = range(min(FEWEST_EVALUATIONS, sweep.evaluations), sweep.evaluations + 1) if few is None else [few]
        stepsizes = [one for one in sweep.stepsizes if one.label == row["stepsize"]]
        trainings = [one for one in sweep.trainings if one.label == row["training"]]
        for stepsize, training, evaluations in product(stepsizes, trainings, counts):
            cell = replace(sweep.cell(init, b, stepsize, training, t), evaluations=evaluations)
            yield cell
            if cell.cell_id == row["cell_id"]:
                self.evaluations[key] = evaluations

    def longest(self, n: int) -> int:
        """The most iterations that a cell has."""
        sizes = product(self.sweep.batch_sizes, self.sweep.trainings)
        return max(self.sweep.iterations_at(b, n, training) for b, training in sizes)
