"""The batch schedule of a training: from some iterations on, batches of a multiple of the cell's batch size."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from raysat.errors import InputError, listed, whole
from raysat.text import shown


class Phase(NamedTuple):
    """A part of a run with one batch size.

    Attributes:
        start: Its first iteration.
        factor: Its batch size as a multiple of the cell's.
        draw: The samples of its steps are another draw for each number; 0 is the draw of a run without phases.
    """

    start: int
    factor: int
    draw: int = 0


Schedule = tuple[Phase, ...]
"""Phases in the order of their starts; before the first, factor and draw are 1 and 0."""

_EXAMPLE = "give pairs of an iteration and a whole factor, such as ((100, 4),)"


def as_schedule(value: Any) -> Schedule:
    """Return phases, given as (start, factor) or (start, factor, draw), without those that change nothing.

    Raises:
        InputError: A phase is none, or does not start after the one before it.
    """
    name, made = "batch_schedule", [Phase(0, 1)]
    for one in listed(name, value):
        given = listed(name, one)
        if len(given) not in (2, 3):
            raise InputError(f"{name} has {shown(one)}: {_EXAMPLE}.")
        phase = Phase(whole(name, given[0], 0), whole(name, given[1], 1), *(whole(name, k, 0) for k in given[2:]))
        if len(made) > 1 and phase.start <= made[-1].start:
            raise InputError(f"{name} has {phase.start} after {made[-1].start}: give iterations that rise.")
        made.append(phase)
    return tuple(phase for before, phase in pairwise(made) if phase[1:] != before[1:])


class Span(NamedTuple):
    """A phase at a batch size.

    Attributes:
        start: Its first iteration.
        b: Samples of a step.
        draw: As in `Phase`.
        samples: Samples of all steps before it.
    """

    start: int
    b: int
    draw: int
    samples: int


def spans(schedule: Iterable[Phase], b: int) -> list[Span]:
    """Return the parts of a run of batch size b.

    Example:
        >>> spans([Phase(100, 4)], 8)
        [Span(start=0, b=8, draw=0, samples=0), Span(start=100, b=32, draw=0, samples=800)]
    """
    made = [Span(0, b, 0, 0)]
    for start, factor, draw in schedule:
        last = made[-1]
        made.append(Span(start, factor * b, draw, last.samples + (start - last.start) * last.b))
    return made if len(made) == 1 or made[1].start else made[1:]


def span_at(parts: Sequence[Span], t: float) -> Span:
    """Return the part to which step t belongs."""
    return next(one for one in reversed(parts) if one.start <= t)


def samples_at(schedule: Iterable[Phase], b: int, t: float) -> float:
    """Return the samples of the first t steps, a whole number for whole t.

    Example:
        >>> samples_at([Phase(100, 4)], 8, 110)
        1120
    """
    at = span_at(spans(schedule, b), t)
    return at.samples + (t - at.start) * at.b


def steps_of(schedule: Iterable[Phase], b: int, samples: float) -> float:
    """Return after how many steps some samples are used up, the inverse of `samples_at`.

    Example:
        >>> steps_of([Phase(100, 4)], 8, 1120)
        110.0
    """
    at = next(one for one in reversed(spans(schedule, b)) if one.samples <= samples)
    return at.start + (samples - at.samples) / at.b


def worded(schedule: Iterable[Phase]) -> list[str]:
    """Return the phases as parts of a label: `4 x batch from 100`, with a draw `4 x batch from 100 drawn by 2`."""
    return [f"{factor} x batch from {start}" + f" drawn by {draw}" * bool(draw) for start, factor, draw in schedule]


_WORDED = re.compile(r"(\d+) x batch from (\d+)(?: drawn by (\d+))?")


def in_label(label: str) -> Schedule:
    """Return the batch schedule of a training, given its label; empty if it has none."""
    found = filter(None, map(_WORDED.fullmatch, label.split(", ")))
    return tuple(Phase(int(one[2]), int(one[1]), int(one[3] or 0)) for one in found)


def without_phases(label: str) -> str:
    """Return the label of a training without its batch schedule."""
    return ", ".join(part for part in label.split(", ") if not _WORDED.fullmatch(part)) or "sgd"


def branch_in(label: str) -> Phase | None:
    """Return the last phase of a training if it has a draw of its own, so that it branches there; else None."""
    schedule = in_label(label)
    return schedule[-1] if schedule and schedule[-1].draw else None
