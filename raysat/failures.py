"""Errors, for a person: each kind once, with how often it occurred, instead of one traceback thirty times."""

from __future__ import annotations

from collections.abc import Iterable

OWN = "raysat.validation.InputError: "
"""How a traceback names an error that is a sentence for the user."""


def cause(error: str) -> str:
    r"""What an error says: the last line of a traceback that has words, without a full stop.

    Example:
        >>> cause("Traceback ...\n  ...\nRuntimeError: out of memory\n")
        'RuntimeError: out of memory'
    """
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return lines[-1].removeprefix(OWN).removesuffix(".") if lines else "no message"


def by_cause(errors: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The names of what failed by what the error says, the most frequent first.

    Args:
        errors: The name of each thing that failed, and its error.
    """
    groups: dict[str, list[str]] = {}
    for name, error in errors:
        groups.setdefault(cause(error), []).append(name)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))
