"""Formatting of text and numbers for a reader. It imports only the standard library: every worker imports it."""

from __future__ import annotations

import math
import re
from numbers import Real

LONGEST = 20_000
"""Characters kept of a text from a user's code: enough for a deep traceback, and no message of 100 MB."""

LINE = 300
"""Characters of such a text that are shown on one line."""

HUGE = 1e12
"""The smallest number that is written with an exponent."""

STORED = 12 * LONGEST
"""Characters of a text in a table: a text of up to `LONGEST` characters is never longer with its escapes."""

_LEFT_OUT = re.compile(r" \.\.\. (\d{1,3}(?:,\d{3}){0,6}) characters left out \.\.\. ")
_ROOM = 52
"""Characters that this note takes at most."""

_UNSAID = re.compile(
    r"[^\n\t -~\xa0-\ud7ff\ue000-\ufdcf\ufdf0-\ufffd\U00010000-\U0010ffff]"
    r"|[\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)
"""Characters that are escaped: control characters, including those of terminals, what UTF-8 cannot encode, and what
changes the direction of the surrounding text."""


def plain(text: str, most: int = LONGEST) -> str:
    r"""Make any text fit to be stored and shown: of bounded length, valid UTF-8, without control codes.

    Line ends and tabs stay. The beginning and the end of a text that is too long are kept.

    Args:
        text: Any text, such as the message of an error raised by a user's code.
        most: Its largest length, escapes not counted.

    Example:
        >>> plain("\x1b[31mred\udcff"), plain(1_000 * "ha", most=60)
        ('\\x1b[31mred\\udcff', 'haha ... 1,992 characters left out ... haha')
    """
    text = "".join((text,))  # the plain str in a subclass, whose methods may do anything
    if len(text) > most:
        half = (most - _ROOM) // 2
        # a text cut twice: count the characters that an earlier note stands for, not those of the note
        cut_before = _LEFT_OUT.finditer(text, half, len(text) - half)
        missing = len(text) - 2 * half + sum(int(cut[1].replace(",", "")) - len(cut[0]) for cut in cut_before)
        text = f"{text[:half]} ... {missing:,} characters left out ... {text[-half:]}"
    return printable(text.replace("\r\n", "\n"))


def printable(text: str) -> str:
    r"""Escape characters that must not be shown as they are, such as those that control a terminal.

    Example:
        >>> printable("loss \x1b[31mred")
        'loss \\x1b[31mred'
    """
    return text if text.isprintable() else _UNSAID.sub(_escaped, text)


def _escaped(found: re.Match) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def line(text: str, most: int = LINE) -> str:
    """Make any text fit to be stored and shown, like `plain`, on one line."""
    return plain(" ".join(plain(text).split()), most)


def shown(value: object, most: int = LINE) -> str:
    """Return the `repr` of any value on one line; a class's own `repr` may raise, or be endless."""
    try:
        return line(repr(value), most)
    except KeyboardInterrupt:
        raise
    except BaseException:  # a class's `repr` may raise anything
        return f"<{type(value).__name__}>"


def number(value: object, digits: int = 3) -> str:
    """Format a number for a reader: `0.609`, `24.9`, `1,234`, `∞`; a dash if there is none.

    Args:
        value: Any number, including NumPy's, None or nan.
        digits: Significant digits of a number below 1,000.
    """
    if value is None or not isinstance(value, Real) or math.isnan(value):  # pandas' NA is no number
        return "-"
    real = float(value)
    if math.isinf(real):
        return "∞" if real > 0 else "-∞"
    if abs(real) >= HUGE:
        return f"{real:.{digits}g}"
    return f"{real:,.0f}" if abs(real) >= 1000 else f"{real:.{digits}g}"


def percent(share: object) -> str:
    """Format a relative change in percent, with two digits: `5 %`, `0.33 %`, `120 %`; from 1,000 %, `a factor of 11`.

    A dash if there is none.
    """
    if isinstance(share, Real) and float(share) >= 10:
        return f"a factor of {number(1 + float(share), 2)}"
    return f"{number(100 * float(share) if isinstance(share, Real) else None, 2)} %"


def duration(seconds: float | None) -> str:
    """Format a duration: `0.4 s`, `42 s`, `3 min 20 s`, `5 h 10 min`, `3 d 4 h`; a dash if it is not known."""
    if not isinstance(seconds, Real) or not math.isfinite(seconds):
        return number(seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    if seconds < 172_800:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds // 86_400} d {seconds % 86_400 // 3600} h"
