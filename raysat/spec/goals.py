"""Targets: to which value of which metric iterations are counted, such as `test_accuracy >= 0.9`.

All that counts iterations reads a metric as one that *falls*: a loss as it is, an accuracy as the error rate
1 - accuracy, and its target as `Target.eps`. First passage, interpolation, races and the search for stepsizes are then
the same for every metric.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from raysat.errors import InputError, positive
from raysat.text import shown

TRAIN_LOSS = "train_loss"

METRICS = {
    TRAIN_LOSS: "loss",
    "test_loss": "test loss",
    "train_accuracy": "training accuracy",
    "test_accuracy": "test accuracy",
}
"""The metrics, which are columns of `curves`, and the name of each for a reader."""

_WRITTEN = re.compile(r"\s*(\w+)\s*(<=|>=)\s*([-+.0-9a-zA-Z]+)\s*")

Value = TypeVar("Value", float, np.ndarray)


def rises(metric: str) -> bool:
    """Return whether more of a metric is better: an accuracy."""
    return metric.endswith("accuracy")


def on_test_samples(metric: str) -> bool:
    """Return whether a metric needs test samples."""
    return metric.startswith("test_")


def falling(metric: str, values: Value) -> Value:
    """Return the values of a metric as one that falls: an accuracy as the error rate.

    Example:
        >>> falling("test_accuracy", 0.75), falling("test_loss", 0.75)
        (0.25, 0.75)
    """
    return 1 - values if rises(metric) else values


def along(metric: str, curve: Iterable[Any]) -> list[float]:
    """Return the falling values of a metric from those of its column in `curves`; nan where there is none."""
    return [math.nan if value is None else float(falling(metric, float(value))) for value in curve]


@dataclass(frozen=True)
class Target:
    """A value of a metric that training is to reach.

    Attributes:
        metric: One of `METRICS`.
        level: The value, positive; of an accuracy at most 1.
    """

    metric: str
    level: float

    @classmethod
    def of(cls, name: str, value: object) -> Target:
        """Return a target as it is given: a text, or a number, which is a training loss.

        Args:
            name: The setting, for messages.
            value: A text such as `test_loss <= 0.3`, a number, or a `Target`.

        Raises:
            InputError: It is none of these, or cannot be a target of its metric.

        Example:
            >>> Target.of("target", "test_accuracy >= 0.9")
            Target(metric='test_accuracy', level=0.9)
            >>> str(Target.of("target", 0.3))
            'train_loss <= 0.3'
        """
        if isinstance(value, Target):
            return value
        if not isinstance(value, str):
            return cls(TRAIN_LOSS, positive(name, value))
        written = _WRITTEN.fullmatch(value)
        if not written or written[1] not in METRICS:
            raise InputError(
                f"{name}={shown(value)}: write a metric and its level, such as 'test_accuracy >= 0.9' or 'test_loss <= "
                f"0.3'; the metrics are {', '.join(METRICS)}."
            )
        metric, sign, number = written.groups()
        level = _level(name, value, number)
        if sign != cls(metric, level).sign:
            way, right = ("an accuracy rises", ">=") if rises(metric) else ("a loss falls", "<=")
            raise InputError(f"{name}={shown(value)}: {way}: write '{metric} {right} {number}'.")
        if rises(metric) and level > 1:
            raise InputError(f"{name}={shown(value)}: an accuracy is at most 1: give a level above 0 and up to 1.")
        return cls(metric, level if metric == TRAIN_LOSS else float(level))

    @classmethod
    def in_row(cls, row: Any) -> Target:
        """Return the target of a row of the analysis, a mapping with its columns `metric` and `target`."""
        return cls(row["metric"], row["target"])

    @property
    def sign(self) -> str:
        """The direction in which it holds."""
        return ">=" if rises(self.metric) else "<="

    @property
    def eps(self) -> float:
        """The level of the falling metric; 0 for an accuracy of 1."""
        return falling(self.metric, self.level)

    @property
    def words(self) -> str:
        """For a sentence: `loss 0.3`, `test accuracy 0.9`."""
        return f"{METRICS[self.metric]} {self.level:g}"

    @property
    def inequality(self) -> str:
        """For a table: `L <= 0.3`, `test accuracy >= 0.9`."""
        return f"{symbol(self.metric)} {self.level:g}"

    def reached(self, measured: Mapping[str, Any]) -> bool:
        """Return whether a row of `curves` is at the target."""
        value = measured[self.metric]
        return value is not None and falling(self.metric, value) <= self.eps

    def __str__(self) -> str:
        return f"{self.metric} {self.sign} {self.level!r}"


def symbol(metric: str) -> str:
    """What stands before a target's level: `L <=`, `test accuracy >=`."""
    return f"{'L' if metric == TRAIN_LOSS else METRICS[metric]} {'>=' if rises(metric) else '<='}"


def _level(name: str, value: str, number: str) -> float:
    """A level as a number, a whole one as such: `target_loss=1` and `train_loss <= 1` have the same ids."""
    for kind in (int, float):
        try:
            level = kind(number)
        except ValueError:
            continue
        positive(name, level)
        return level
    raise InputError(f"{name}={shown(value)}: {number} is no number: write it like 0.3.")


def end(target: str | None, target_loss: float | None) -> Target | None:
    """Return the target at which a trial ends, from the fields of a sweep or a cell; None if it runs all iterations."""
    if target is not None:
        return Target.of("target", target)
    return None if target_loss is None else Target(TRAIN_LOSS, target_loss)


def asked(sweep: Mapping[str, Any]) -> tuple[Target, ...]:
    """Return the targets that a sweep names for its analysis; the metric of the first is that of the headline.

    That is the metric at whose target trials end, if they do. If `targets` has none of that metric, that target itself
    is measured. A sweep that names training losses alone may name none: the analysis then chooses them.

    Args:
        sweep: The fields of a sweep, as in `sweep.json`.
    """
    named = [Target.of("targets", one) for one in sweep.get("targets") or ()]
    last = end(sweep.get("target"), sweep.get("target_loss"))
    if last is None:
        return by_metric(named)
    same, others = ([one for one in named if (one.metric == last.metric) is of] for of in (True, False))
    if not (same or others) and last.metric == TRAIN_LOSS:
        return ()
    return by_metric([*(same or [last]), *others])


def by_metric(targets: Iterable[Target]) -> tuple[Target, ...]:
    """Return targets, each once, those of a metric together; metrics in the order of their first targets."""
    once = list(dict.fromkeys(targets))
    order = list(dict.fromkeys(one.metric for one in once))
    return tuple(sorted(once, key=lambda one: order.index(one.metric)))
