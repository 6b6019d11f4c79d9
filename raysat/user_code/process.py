"""A process as it was found: what outlives a job is put back, so that every job begins as all others do.

User code may set whatever it likes while it is imported, builds a network, loads data or trains. None of that is to
reach another job of the process, whose result would depend on what had run there before. What a process has once
(`raysat.user_code.states`) is recorded, and what has changed is put back, at three ends:

- of a job, and of a plan: everything;
- of each network that is built, and of each data set that is loaded: a network is as its builder built it, whichever
  settings it chose for that, and the next one begins as it did;
- of each import of a user's module, which takes place once a job, while networks are built several times.

At the latter two, what is `LASTING` stays until the end of the job: by it code finds what it needs later.

Where only raysat's own code runs nothing is recorded: it sets what it finds anew, and a millisecond is saved.

What cannot be put back is remembered: a process of Ray's runs no other job, and one's own says so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from raysat.errors import InputError
from raysat.messages import ending
from raysat.messages.failures import named
from raysat.user_code.states import ENVIRONMENT, LIBRARIES, SEARCH_PATH, State, generators, set_generators, states

log = logging.getLogger(__name__)

LASTING = (SEARCH_PATH, ENVIRONMENT, LIBRARIES)
"""The states that an import or a builder may set for what comes later in its job."""

FROM_A_FILE = (SEARCH_PATH, ENVIRONMENT)
"""Those that a sweep file may set for all of its jobs, in whichever process they run."""

_for_good: list[str] = []


def for_good() -> tuple[str, ...]:
    """The names of the states that have changed in this process and could not be put back."""
    return tuple(_for_good)


@contextmanager
def undisturbed(but: Iterable[str] = ()) -> Iterator[None]:
    """Put back, when the block ends, what has changed of the process's state.

    Args:
        but: The names of states that are left alone.

    Raises:
        InputError: A user's code has raised KeyboardInterrupt, which would end the sweep as Ctrl-C does.
    """
    recorded = [(state, _value(state)) for state in states() if state.name not in but]
    try:
        yield
    except KeyboardInterrupt as error:
        if ending.is_of_a_signal():
            raise
        raise InputError(f"the sweep's own code raised {named(error)}, and nobody pressed Ctrl-C: fix it.") from error
    finally:
        for state, before in recorded:
            _put_back(state, before)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Put back the random generators of PyTorch, NumPy and Python alone."""
    before = generators()
    try:
        yield
    finally:
        set_generators(before)


def _value(state: State) -> object:
    try:
        return state.read()
    except (OSError, RuntimeError) as error:  # such as a working folder that has been deleted
        return type(error)


def _put_back(state: State, before: object) -> None:
    if _value(state) == before:
        return
    with suppress(Exception):
        state.write(before)
    if _value(state) != before and state.name not in _for_good:
        _for_good.append(state.name)
        log.warning(
            "%s: changed by the sweep's own code, and cannot be put back; what runs in this process from now on may "
            "differ from what runs elsewhere.",
            state.name,
        )
