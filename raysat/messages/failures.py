"""Errors as text: anything that a user's code raises, bounded and escaped; and errors grouped by cause.

An error's text is data. Its class, its `__str__` and its cause are a user's own, and may raise, be endless, or contain
characters that no file or terminal accepts: nothing here raises because of them.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from raysat.errors import InputError
from raysat.text import line, plain

OWN = f"{InputError.__module__}.{InputError.__qualname__}: "
"""How a traceback names an `InputError`, whose message is a sentence for the user."""


def traced(error: BaseException) -> str:
    """Format an error with its traceback, its causes and the members of a group, fit to be stored and shown."""
    try:
        return plain("".join(traceback.format_exception(error)))
    except KeyboardInterrupt:
        raise
    except BaseException:  # a class with attributes that `traceback` does not expect
        return f"{_class(error)}: {said(error)}\n"


def said(error: BaseException) -> str:
    """Return an error's message on one line: its last line that has words; the class if there is no message."""
    text = _message(error)
    return cause(text) if text.strip() else _class(error)


def named(error: BaseException) -> str:
    """Return an error's class and message on one line: `ValueError: no such value`."""
    words = said(error)
    return words if words.startswith(_class(error)) else f"{_class(error)}: {words}"


@contextmanager
def in_words(sentence: Callable[[str], str], kind: type[InputError] = InputError) -> Iterator[None]:
    """Turn what a user's own code raises within the context into one sentence, but for Ctrl-C.

    Args:
        sentence: Makes it from the error's class and message (`named`).
        kind: The error that is raised in its place. An InputError stays as it is.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:  # also the SystemExit of a user's sys.exit
        raise kind(sentence(named(error))) from error


def first_sentence(error: BaseException) -> str:
    """Return the first sentence of a library's error, in at most 200 characters."""
    lines = _message(error).strip().splitlines() or [_class(error)]
    return plain(lines[0].split(". ")[0][:200])


def _message(error: BaseException) -> str:
    try:
        return "".join((str(error),))  # the plain str in a subclass, whose methods may do anything
    except KeyboardInterrupt:
        raise
    except BaseException as failure:
        return f"{_class(error)}, whose message cannot be had ({_class(failure)})"


def _class(error: BaseException) -> str:
    return line(type.__dict__["__name__"].__get__(type(error)))  # a metaclass may have one of its own


def cause(error: str) -> str:
    r"""Return the message in a traceback: its last line that has words, without a full stop.

    Example:
        >>> cause("Traceback ...\n  ...\nRuntimeError: out of memory\n")
        'RuntimeError: out of memory'
    """
    lines = [one.strip(" \t|") for one in error.splitlines() if any(map(str.isalnum, one))]
    return line(lines[-1].removeprefix(OWN).removesuffix(".")) if lines else "no message"


def by_cause(errors: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Group the names of things that failed by the message of the error, the most frequent first.

    Args:
        errors: The name of each thing that failed, and its error.
    """
    groups: dict[str, list[str]] = {}
    for name, error in errors:
        groups.setdefault(cause(error), []).append(name)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))
