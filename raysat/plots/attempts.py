"""Making things of which each may fail without harm to the others: the parts of a page, and its figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, overload

from raysat.messages.credentials import hidden
from raysat.messages.failures import cause, traced

T = TypeVar("T")


class Attempt(Protocol):
    """Makes something, under a name for a person."""

    def __call__(self, what: str, make: Callable[[], T]) -> T | None:
        """Return what `make` returns; None where it failed, if that is let pass."""


def plainly(what: str, make: Callable[[], T]) -> T:
    """An `Attempt` that lets no error pass."""
    return make()


class Attempts:
    """An `Attempt` that remembers what failed.

    Attributes:
        failures: The traceback of each thing that could not be made, by its name.
    """

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}

    def __call__(self, what: str, make: Callable[[], T]) -> T | None:
        """Return what `make` returns; None where it failed."""
        try:
            return make()
        except Exception as error:  # whatever it is: it is said in its place, and the rest stands
            self.failures[what] = hidden(traced(error))
            return None

    @property
    def sentences(self) -> list[str]:
        """What failed and why, one sentence each."""
        return [f"{what} could not be made ({cause(error)})." for what, error in self.failures.items()]


class once(Generic[T]):
    """A property that is made when first asked for. Where that fails, it fails again in the same way, at no cost."""

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
