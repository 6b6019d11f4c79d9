"""The terminal, to which texts of users and of libraries are data: no markup, and no control characters."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from raysat.text import printable


class Terminal(Console):
    """A console that shows every text as it is: markup where a caller says so, and colours from styles alone."""

    def __init__(self, **options: object) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield what is to be printed; all that is printed comes through here."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))
