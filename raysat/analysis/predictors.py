"""Comparison of predictions made before training with measurements: one row for each predictor of each fit.

The predictors are statistics of the initialization (`raysat.storage.initial.PREDICTING`) and the forecast
(`raysat.analysis.foreseen`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from raysat.analysis.foreseen import PredictedCurves, forecast
from raysat.analysis.measure import FITS, Measurement
from raysat.analysis.reading import policy
from raysat.spec.goals import TRAIN_LOSS
from raysat.storage.initial import PREDICTING

_OF_FITS_ALONE = (*PREDICTING, "unpredicted", "approximated")

COMPARISON = (
    *(name for name in FITS if name.removesuffix("_min").removesuffix("_max") not in _OF_FITS_ALONE),
    *("predictor", "predicted", "predicted_min", "predicted_max", "ratio", "remark"),
)

BY_CONSTRUCTION = "eta is made from beta(b), so that N(b) follows it nearly by construction: this checks the code"


@dataclass(frozen=True)
class Predictor:
    """A predictor of critical batch sizes.

    Attributes:
        label: Its name for a reader.
        predict: Takes a measurement, the trials that were measured, the forecast of their group, and the smallest
            target of all measurements of these trials; returns the columns `predicted`, `predicted_min` and
            `predicted_max`, in samples and nan if absent, and `remark`, which says why.
    """

    label: str
    predict: Callable[[Measurement, pd.DataFrame, PredictedCurves, float], dict[str, Any]]


def _statistic(
    measured: Measurement, _reading: pd.DataFrame, _foreseen: PredictedCurves, _deepest: float, *, name: str
) -> dict[str, Any]:
    """Return the prediction by a statistic of the initialization: its own value, over the seeds."""
    ends = {f"predicted{end}": measured.fit[name + end] for end in ("", "_min", "_max")}
    return ends | {"remark": measured.fit["unpredicted"]}


PREDICTORS: dict[str, Predictor] = {
    **{name: Predictor(label, partial(_statistic, name=name)) for name, label in PREDICTING.items()},
    "forecast": Predictor("forecast", forecast),
}
"""The predictors by their name in the column `predictor`; the page has a column for each."""


def compare(
    measured: Measurement, reading: pd.DataFrame, foreseen: PredictedCurves, deepest: float = math.inf
) -> Iterator[dict]:
    """Yield a row for each predictor of a measured critical batch size, with the columns `COMPARISON`.

    Args:
        measured: The measurement.
        reading: The trials that were measured.
        foreseen: The forecast of the reading's group.
        deepest: The smallest target of all measurements of the reading.
    """
    fit = measured.fit
    shared = {name: fit[name] for name in COMPARISON if name in fit}
    of_loss = fit["quantity"] == "b_N" and fit["metric"] == TRAIN_LOSS
    by_construction = policy(fit["stepsize"]) == "theory" and of_loss
    for name, predictor in PREDICTORS.items():
        predicted = predictor.predict(measured, reading, foreseen, deepest)
        remarks = [BY_CONSTRUCTION] * by_construction + [predicted["remark"]] * bool(predicted["remark"])
        # nan if either is absent
        ratio = predicted["predicted"] / fit["value"]
        yield {**shared, "predictor": name, **predicted, "ratio": ratio, "remark": "; ".join(remarks)}
