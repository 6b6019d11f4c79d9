"""Errors as text: whatever a user's code raises, bounded and escaped; and each kind once instead of thirty times.

What an error says is data. Its class, its `__str__` and what it was raised from are a user's own, and may raise, be
endless, or hold what no file and no terminal takes: nothing here raises because of them.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable

from raysat.errors import InputError
from raysat.text import line, plain

OWN = f"{InputError.__module__}.{InputError.__qualname__}: "
"""How a traceback names an error that is a sentence for the user."""


def traced(error: BaseException) -> str:
    """An error with its traceback, its causes and the members of a group, as text that can be stored and shown."""
    try:
        return plain("".join(traceback.format_exception(error)))
    except KeyboardInterrupt:
        raise
    except BaseException:  # a class with attributes that `traceback` does not expect
        return f"{_class(error)}: {said(error)}\n"


def said(error: BaseException) -> str:
    """What an error says, in one line: the last of its message that has words; its class where it has no message."""
    text = _message(error)
    return cause(text) if text.strip() else _class(error)


def named(error: BaseException) -> str:
    """Its class and what it says, in one line: `ValueError: no such value`."""
    words = said(error)
    return words if words.startswith(_class(error)) else f"{_class(error)}: {words}"


def first_sentence(error: BaseException) -> str:
    """Return what an error of a library says first, in at most 200 characters."""
    lines = _message(error).strip().splitlines() or [_class(error)]
    return plain(lines[0].split(". ")[0][:200])


def _message(error: BaseException) -> str:
    try:
        return "".join((str(error),))  # of a subclass of str, which may do anything, what it holds
    except KeyboardInterrupt:
        raise
    except BaseException as failure:
        return f"{_class(error)}, whose message cannot be had ({_class(failure)})"


def _class(error: BaseException) -> str:
    return line(type.__dict__["__name__"].__get__(type(error)))  # a metaclass may have one of its own


def cause(error: str) -> str:
    r"""Return what an error says: the last line of a traceback that has words, without a full stop.

    Example:
        >>> cause("Traceback ...\n  ...\nRuntimeError: out of memory\n")
        'RuntimeError: out of memory'
    """
    lines = [one.strip(" \t|") for one in error.splitlines() if any(map(str.isalnum, one))]
    return line(lines[-1].removeprefix(OWN).removesuffix(".")) if lines else "no message"


def by_cause(errors: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The names of what failed by what the error says, the most frequent first.

    Args:
        errors: The name of each thing that failed, and its error.
    """
    groups: dict[str, list[str]] = {}
    for name, error in errors:
        groups.setdefault(cause(error), []).append(name)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))
