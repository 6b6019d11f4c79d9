"""The `main` of a command: bad input is one sentence, and nothing that is shown costs what is stored."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from raysat.errors import InputError
from raysat.messages.expendable import expendable
from raysat.text import LONGEST, line

Arguments = ParamSpec("Arguments")


def command(main: Callable[Arguments, int]) -> Callable[Arguments, int]:
    """The `main` of a command, for which bad input is that one sentence on stderr and exit code 2.

    Whatever it shows is expendable (`raysat.messages.expendable`). Without arguments it takes those of the process,
    which ends with it.
    """

    @wraps(main)
    def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
        with expendable(for_good=not args and not kwargs):
            try:
                return main(*args, **kwargs)
            except InputError as error:
                print(f"raysat: {line(str(error), LONGEST)}", file=sys.stderr)
                return 2

    return checked


def program(module: str) -> str:
    """Return what a user typed to run a command, for its usage: `python -m raysat.status`, or `raysat status`."""
    return sys.argv[0] if sys.argv[0].startswith("raysat ") else f"python -m {module}"
