"""Formatting of text and numbers for users, by the standard library alone: every worker imports it."""

from __future__ import annotations

import math
import re
from numbers import Real

LONGEST = 20_000
"""Characters kept of a text from user code: enough for a deep traceback, and a bound on messages of 100 MB."""

LINE = 300
"""Characters of it that are shown in one line."""

HUGE = 1e12
"""From here on numbers are written with an exponent."""

STORED = 12 * LONGEST
"""The most characters of a text in a table: a text of `LONGEST` characters has no more with its escapes."""

_LEFT_OUT = re.compile(r" \.\.\. (\d{1,3}(?:,\d{3}){0,6}) characters left out \.\.\. ")
_ROOM = 52
"""The most characters that the note on omitted characters takes."""

_UNSAID = re.compile(
    r"[^\n\t -~\xa0-\ud7ff\ue000-\ufdcf\ufdf0-\ufffd\U00010000-\U0010ffff]"
    r"|[\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)
"""Characters not allowed in a text: control characters, including those of terminals, those that UTF-8 cannot encode,
and those that change the direction of the surrounding text."""


def plain(text: str, most: int = LONGEST) -> str:
    r"""Return a text from elsewhere in a form to store and show: bounded length, valid UTF-8, no control codes.

    Line ends and tabs stay. If it is too long, its beginning and its end are kept.

    Args:
        text: Any text, such as the message of an error that a user's code has raised.
        most: The largest length, escapes not counted.

    Example:
        >>> plain("\x1b[31mred\udcff"), plain(1_000 * "ha", most=60)
        ('\\x1b[31mred\\udcff', 'haha ... 1,992 characters left out ... haha')
    """
    text = "".join((text,))  # a plain str: methods of a subclass may do anything
    if len(text) > most:
        half = (most - _ROOM) // 2
        cut_before = _LEFT_OUT.finditer(text, half, len(text) - half)
        missing = len(text) - 2 * half + sum(int(cut[1].replace(",", "")) - len(cut[0]) for cut in cut_before)
        text = f"{text[:half]} ... {missing:,} characters left out ... {text[-half:]}"
    return printable(text.replace("\r\n", "\n"))


def printable(text: str) -> str:
    r"""Return the text with characters that are not allowed escaped, such as those that act on a terminal.

    Example:
        >>> printable("loss \x1b[31mred")
        'loss \\x1b[31mred'
    """
    return text if text.isprintable() else _UNSAID.sub(_escaped, text)


def _escaped(found: re.Match) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def line(text: str, most: int = LINE) -> str:
    """Return the same as one line."""
    return plain(" ".join(plain(text).split()), most)


def shown(value: object, most: int = LINE) -> str:
    """Return the `repr` of any value, as one line; it may raise, or be endless."""
    try:
        return line(repr(value), most)
    except KeyboardInterrupt:
        raise
    except BaseException:  # a class may raise anything
        return f"<{type(value).__name__}>"


def number(value: object, digits: int = 3) -> str:
    """Return a number for users: `0.609`, `24.9`, `1,234`, `∞`; a dash if there is none.

    Args:
        value: Any number, NumPy's among them, None or nan.
        digits: Significant digits of a number below 1,000.
    """
    if value is None or not isinstance(value, Real) or math.isnan(value):  # pandas' NA is not a number
        return "-"
    real = float(value)
    if math.isinf(real):
        return "∞" if real > 0 else "-∞"
    if abs(real) >= HUGE:
        return f"{real:.{digits}g}"
    return f"{real:,.0f}" if abs(real) >= 1000 else f"{real:.{digits}g}"


def percent(share: object) -> str:
    """Return a relative change in percent, with two digits: `5 %`, `0.33 %`, `120 %`; from 1,000 % on `a factor of 11`.

    A dash if there is none.
    """
    if isinstance(share, Real) and float(share) >= 10:
        return f"a factor of {number(1 + float(share), 2)}"
    return f"{number(100 * float(share) if isinstance(share, Real) else None, 2)} %"


def duration(seconds: float | None) -> str:
    """Return a duration for users: `0.4 s`, `42 s`, `3 min 20 s`, `5 h 10 min`, `3 d 4 h`; a dash if unknown."""
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
