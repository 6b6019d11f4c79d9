"""The `main` of a command: bad input is reported in one sentence, and failed output never costs stored results."""

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
    """Decorate the `main` of a command: bad input becomes one sentence on stderr and exit code 2.

    All output is expendable (`raysat.messages.expendable`). Called without arguments, it takes those of the process,
    and the process ends with it.
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
    """Return how the user ran a command, for its usage message: `python -m raysat.status` or `raysat status`."""
    return sys.argv[0] if sys.argv[0].startswith("raysat ") else f"python -m {module}"
