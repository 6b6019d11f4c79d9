"""Words for a person that need nothing but Python: every worker imports them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """A duration for a person: `0.4 s`, `42 s`, `3 min 20 s`, `5 h 10 min`, `3 d 4 h`."""
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


def last_line(text: str) -> str:
    """The last line of a traceback that says something."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no message"


def first_sentence(error: BaseException) -> str:
    """What an error of a library says first, in at most 200 characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0][:200]
