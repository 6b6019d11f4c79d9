"""A terminal that shows texts of users and of libraries as data: without markup and control characters."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from raysat.text import printable


class Terminal(Console):
    """A console that shows every text as it is: markup only if a caller asks for it, and colours from styles alone."""

    def __init__(self, **options: object) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments to be printed, escaped; all output passes through here."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))
