"""Checks of the fields of a sweep.

A check takes the field's name and the value, raises `InputError` if the value is not allowed, and returns it as the
sweep keeps it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from raysat.errors import InputError, among, listed, positive, whole
from raysat.spec.branches import Branches
from raysat.spec.cells import LOSS_NAMES, Model
from raysat.spec.engines import AUTO, ENGINES
from raysat.spec.goals import TRAIN_LOSS, Target
from raysat.spec.references import is_reference
from raysat.spec.stepsizes import Stepsize
from raysat.spec.training import Training

Check = Callable[[str, Any], Any]


def anything(_name: str, value: Any) -> Any:
    """Any value."""
    return value


def at_least(least: int) -> Check:
    """Return a check of a whole number of at least `least`."""

    def check(name: str, value: Any) -> int:
        return whole(name, value, least)

    return check


def optional(inner: Check) -> Check:
    """Return a check that takes None, or what another check takes."""

    def check(name: str, value: Any) -> Any:
        return None if value is None else inner(name, value)

    return check


def as_given(inner: Check) -> Check:
    """Return a check that keeps the value as it was given, since 1 and 1.0 make different ids."""

    def check(name: str, value: Any) -> Any:
        inner(name, value)
        return value

    return check


def one_of(names: Iterable[str]) -> Check:
    """Return a check of a name among several."""

    def check(name: str, value: Any) -> str:
        return among(name, value, names)

    return check


def several(inner: Check, single: tuple[type, ...] = (str,)) -> Check:
    """Return a check of a list whose entries another check takes; cf. `raysat.errors.listed`."""

    def check(name: str, value: Any) -> tuple:
        return tuple(inner(name, one) for one in listed(name, value, single))

    return check


NUMBER = as_given(positive)
"""A positive and finite number."""


def engine(name: str, value: Any) -> str:
    """An engine's name, or `auto`."""
    return among(name, value, (AUTO, *ENGINES))


def folder_name(name: str, value: Any) -> str:
    """The name of a folder."""
    if not (isinstance(value, str) and re.fullmatch(r"\w[\w.-]*", value)):
        raise InputError(f"{name}={value!r}: use letters, digits, '-', '_' and '.': it names a folder.")
    return value


def data_set(name: str, value: Any) -> str:
    """A data set's name, or an import path."""
    if not (isinstance(value, str) and value):
        raise InputError(f"{name}={value!r}: give a data set's name or 'module:function'.")
    return value


def loss(name: str, value: Any) -> str:
    """A loss's name, or an import path."""
    if isinstance(value, str) and is_reference(value):
        return value
    return among(name, value, (*LOSS_NAMES, "'module:function'"))


def models(name: str, value: Any) -> tuple[Model, ...]:
    """Architectures."""
    return tuple(_model(name, one) for one in listed(name, value, (str, Model)))


def _model(name: str, value: Any) -> Model:
    if isinstance(value, Model):
        return value
    if isinstance(value, str) and is_reference(value):
        return Model(value)
    raise InputError(
        f"{name} has {value!r}: use an architecture of raysat's, such as mlp(...), or an import path 'module:function'."
    )


def stepsizes(name: str, value: Any) -> tuple[Stepsize, ...]:
    """Stepsize policies; a grid's may be a nested list or stand among the others."""
    policies = tuple(_flattened(listed(name, value, (str, Stepsize))))
    for one in policies:
        if not isinstance(one, Stepsize):
            raise InputError(f"{name} has {one!r}: use fixed(eta), fixed_fraction(c), theory(c) or grid().")
    return policies


def _flattened(values: Iterable) -> Iterator:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flattened(value)
        else:
            yield value


def trainings(name: str, value: Any) -> tuple[Training, ...]:
    """Trainings."""
    ways = tuple(listed(name, value, (str, Training)))
    for one in ways:
        if not isinstance(one, Training):
            raise InputError(f"{name} has {one!r}: use Training(...) or asynchronous(learners=...).")
    return ways


def branches(name: str, value: Any) -> Branches:
    """Branches."""
    if not isinstance(value, Branches):
        raise InputError(f"{name}={value!r}: use Branches(at=[...], samples=...).")
    return value


def seeds(name: str, value: Any) -> tuple[int, ...]:
    """Seeds, or their number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return tuple(range(whole(name, value, 1)))
    return several(at_least(0))(name, value)


def iterations(name: str, value: Any) -> tuple[int, ...]:
    """Iterations, ascending."""
    return tuple(sorted(several(at_least(0))(name, value)))


def target(name: str, value: Any) -> str:
    """A target of any metric, as its text."""
    return str(Target.of(name, value))


def level(name: str, value: Any) -> float | str:
    """A target of any metric: a training loss as a number, others as their text."""
    found = Target.of(name, value)
    return float(found.level) if found.metric == TRAIN_LOSS else str(found)


def gpus(name: str, value: Any) -> float | None:
    """A number of GPUs, a fraction of one, or None."""
    if value is not None and not (isinstance(value, int | float) and 0 <= value < math.inf):
        raise InputError(f"{name}={value!r}: give 0, a fraction of a GPU, or whole GPUs.")
    return value


def above_one(name: str, value: Any) -> float:
    """A number above 1."""
    if positive(name, value) <= 1:
        raise InputError(f"{name}={value!r}: give a number above 1.")
    return value
