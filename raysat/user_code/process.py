"""Restoring the state of a process, so that every job starts from the same one.

User code may change any setting while it is imported, builds a network, loads data or trains. No change may reach
another job of the process, whose result would then depend on what ran there before. The global state of a process
(`raysat.user_code.states`) is recorded, and changes are undone, at three points:

- at the end of a job, and of a plan: everything;
- after each network that is built, and each data set that is loaded: a builder may choose settings for its own network,
  and the next one starts from the same state as it did;
- after each import of a user's module, which happens once a job, while networks are built several times.

At the latter two, the states in `LASTING` are kept until the end of the job: later code relies on them.

If only raysat's own code runs, nothing is recorded: it sets all the state that it uses itself, and recording costs a
millisecond.

States that cannot be restored are remembered: Ray's process then runs no other job, and the driver's own says so.
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
"""The states that an import or a builder may set for the rest of its job."""

FROM_A_FILE = (SEARCH_PATH, ENVIRONMENT)
"""The states that a sweep file may set for all of its jobs, in any process."""

_for_good: list[str] = []


def for_good() -> tuple[str, ...]:
    """The names of the states that have changed in this process and could not be restored."""
    return tuple(_for_good)


@contextmanager
def undisturbed(but: Iterable[str] = ()) -> Iterator[None]:
    """Restore, when the block ends, all states of the process that have changed.

    Args:
        but: The names of states that are not restored.

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
    """Restore, when the block ends, the random generators of PyTorch, NumPy and Python, and nothing else."""
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
