"""Attempts: the parts of a page and its figures are made one by one, so that a failure leaves the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, overload

from raysat.messages.credentials import hidden
from raysat.messages.failures import cause, traced

T = TypeVar("T")


class Attempt(Protocol):
    """A call of `make`, under a name for messages."""

    def __call__(self, what: str, make: Callable[[], T]) -> T | None:
        """Return what `make` returns; None if it failed and the attempt catches errors."""


def plainly(what: str, make: Callable[[], T]) -> T:
    """An `Attempt` that catches nothing: errors are raised."""
    return make()


class Attempts:
    """An `Attempt` that catches errors and records them.

    Attributes:
        failures: The traceback of each thing that could not be made, by its name.
    """

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}

    def __call__(self, what: str, make: Callable[[], T]) -> T | None:
        """Return what `make` returns; None if it failed."""
        try:
            return make()
        except Exception as error:  # of any kind: the page shows it in its place
            self.failures[what] = hidden(traced(error))
            return None

    @property
    def sentences(self) -> list[str]:
        """What failed and why, one sentence each."""
        return [f"{what} could not be made ({cause(error)})." for what, error in self.failures.items()]


class once(Generic[T]):
    """A property computed on first access. A failure is kept too, and raised again."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self.make, self.__doc__ = make, make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = f"_{name}_once"

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> once[T]: ...

    @overload
    def __get__(self, instance: object, owner: type | None = None) -> T: ...

    def __get__(self, instance: object, owner: type | None = None) -> once[T] | T:
        """Return what was made, or the error."""
        if instance is None:
            return self
        if self.name not in vars(instance):
            try:
                made = self.make(instance), None
            except Exception as error:
                made = None, error
            vars(instance)[self.name] = made
        value, error = vars(instance)[self.name]
        if error is not None:
            raise error
        return value
