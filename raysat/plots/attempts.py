"""Attempts: calls that make the parts of a page and its figures one by one, so that a failure costs one part only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, overload

from raysat.messages.credentials import hidden
from raysat.messages.failures import cause, traced

T = TypeVar("T")


class Attempt(Protocol):
    """A way to call `make`, with a name for messages."""

    def __call__(self, what: str, make: Callable[[], T]) -> T | None:
        """Return the result of `make`; None if it fails and the attempt catches errors."""


def plainly(what: str, make: Callable[[], T]) -> T:
    """Call `make` without catching errors: the default `Attempt`."""
    return make()


class Attempts:
    """An `Attempt` that catches errors and records them.

    Attributes:
        failures: The tracebacks of failed calls, by name.
    """

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}

    def __call__(self, what: str, make: Callable[[], T]) -> T | None:
        """Return the result of `make`; None if it fails."""
        try:
            return make()
        except Exception as error:  # of any kind: no failure costs the page, which shows it in place of the part
            self.failures[what] = hidden(traced(error))  # a page is shared: no credentials
            return None

    @property
    def sentences(self) -> list[str]:
        """The failed calls and their causes, one sentence each."""
        return [f"{what} could not be made ({cause(error)})." for what, error in self.failures.items()]


class once(Generic[T]):
    """A property computed at first access and then kept.

    Unlike `functools.cached_property` it keeps a failure too, and raises it at each access: an analysis that fails is
    not repeated for every part of the page that needs it.
    """

    def __init__(self, make: Callable[[Any], T]) -> None:
        self.make, self.__doc__ = make, make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = f"_{name}_once"

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> once[T]: ...

    @overload
    def __get__(self, instance: object, owner: type | None = None) -> T: ...

    def __get__(self, instance: object, owner: type | None = None) -> once[T] | T:
        """Return the value, or raise the error that was kept."""
        if instance is None:
            return self
        if self.name not in vars(instance):
            try:
                made = self.make(instance), None
            except Exception as error:  # an interruption, which is no Exception, is not kept
                made = None, error
            vars(instance)[self.name] = made
        value, error = vars(instance)[self.name]
        if error is not None:
            raise error
        return value
