"""What the label of a training (`raysat.spec.training.Training.label`) says of its prediction, as rows have it."""

from __future__ import annotations

import re

AUGMENTED = "augmented by "
"""The beginning of the part of a label that names a transform of batches."""

_PLAIN = re.compile(r"sgd|(linear|sqrt) scaling from \d+|regime of \d+")


def transform_in(label: str) -> str:
    """Return the transform of batches that a label names; empty if there is none."""
    named = (part.removeprefix(AUGMENTED) for part in label.split(", ") if part.startswith(AUGMENTED))
    return next(named, "")


def beyond_theory(label: str) -> str:
    """Return why the theory makes no prediction; empty for fixed-stepsize SGD on samples that stay as they are.

    Example:
        >>> beyond_theory("sqrt scaling from 32"), beyond_theory("adamw")
        ('', 'the theory is of fixed-stepsize SGD')
        >>> beyond_theory("augmented by data:flip")
        'the theory is of fixed training samples, and data:flip changes them at each step'
    """
    if not all(_PLAIN.fullmatch(part) for part in label.split(", ") if not part.startswith(AUGMENTED)):
        return "the theory is of fixed-stepsize SGD"
    if transform := transform_in(label):
        return f"the theory is of fixed training samples, and {transform} changes them at each step"
    return ""
