"""HTML: sections, tables, and a self-contained page with its own style, scripts and data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from string import Template

from raysat.plots.attempts import Attempts

SCRIPTS = ("scale.js", "chart.js", "target.js", "glossary.js", "figure.js")
"""The scripts of `assets/` that draw the figures, each after those on which it depends."""

AT = "at\N{NO-BREAK SPACE}L\N{NO-BREAK SPACE}≤"
"""The head of a column of target losses; no-break spaces keep it on one line."""

LONG = 16
"""Rows above which a table scrolls within its own box on a screen; on paper it is printed whole."""


@dataclass(frozen=True)
class Section:
    """A part of a page with its own heading.

    Attributes:
        key: Its id on the page.
        title: Its heading, as text.
        html: The content below the heading.
    """

    key: str
    title: str
    html: str


def page(title: str, lead: str, sections: Iterable[Section], payload: Mapping) -> str:
    """Assemble a page. It loads nothing: its content security policy forbids it.

    Args:
        title: The heading, as text.
        lead: A line below the heading, as text.
        sections: The parts, in order; those without HTML are left out.
        payload: The figures (see `raysat.report.figures`), each drawn in the element `figure(name)` makes.
    """
    shown = [section for section in sections if section.html]
    links = "".join(f'<li><a href="#{section.key}">{escape(section.title)}</a></li>' for section in shown)
    body = "\n".join(
        f'<section id="{section.key}" aria-labelledby="{section.key}-title">'
        f'<h2 id="{section.key}-title">{escape(section.title)}</h2>\n{section.html}\n</section>'
        for section in shown
    )
    return Template(asset("page.html")).substitute(
        title=escape(title),
        lead=escape(lead),
        links=links,
        body=body,
        style=asset("page.css"),
        script="\n".join(map(asset, SCRIPTS)),
        # `<` is escaped, so that no text of a user can end the script element.
        payload=json.dumps(payload, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    )


@cache
def asset(name: str) -> str:
    """Return the text of a file in `assets/`."""
    return (files("raysat.report") / "assets" / name).read_text(encoding="utf-8")


def figure(name: str, title: str, caption: str, fallback: str = "") -> str:
    """Make the element in which the scripts draw an interactive figure.

    Args:
        name: Its name in the payload.
        title: Its heading.
        caption: The meaning of the symbols.
        fallback: HTML with pictures of the figure, for readers without scripts.
    """
    return (
        f'<figure id="figure-{name}" data-figure="{name}" aria-labelledby="figure-{name}-title">'
        f'<h3 id="figure-{name}-title">{escape(title)}</h3><div class="drawn"></div>'
        f"<noscript>{fallback}</noscript><figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], text: set[str], label: str, *, cards: bool = False
) -> str:
    """Format a table, which scrolls within its own box on a narrow screen.

    Args:
        columns: The heads, as text.
        rows: The cells, already HTML.
        text: The columns of words, which are aligned to the left.
        label: A description of the table for screen readers.
        cards: Whether each row becomes a card on a narrow screen instead, with the heads next to its cells.
    """
    rows = list(rows)
    kinds = [' class="text"' if name in text else "" for name in columns]
    # the style sheet shows a cell's `data-head` next to it in a card
    about = [kind + f' data-head="{escape(name)}"' * cards for name, kind in zip(columns, kinds, strict=True)]
    head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(columns, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{own}>{cell}</td>" for cell, own in zip(row, about, strict=True)) + "</tr>\n"
        for row in rows
    )
    scroll, look = "scroll long" if len(rows) > LONG else "scroll", ' class="cards"' if cards else ""
    # focusable (tabindex), so that the table can be scrolled from the keyboard
    return (
        f'<div class="{scroll}" role="region" tabindex="0" aria-label="Table: {escape(label)}">'
        f"<table{look}><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def footnoted(
    columns: Sequence[str], rows: Sequence[tuple[Sequence[str], Sequence[str]]], text: set[str], label: str, key: str
) -> str:
    """Format a table whose last column, `notes`, refers to notes below it; its rows are cards on a narrow screen.

    Args:
        columns: The heads, as text.
        rows: For each row its cells, already HTML, and its notes, as text.
        text: The columns of words.
        label: A description of the table for screen readers.
        key: The prefix of the notes' ids.
    """
    # rows share notes: each is printed once, numbered by its first appearance
    notes = {note: k for k, note in enumerate(dict.fromkeys(note for _, own in rows for note in own), 1)}

    def link(k: int) -> str:
        return f'<a href="#{key}-{k}" aria-label="note {k}">{k}</a>'

    cells = [[*own, " ".join(link(notes[note]) for note in said)] for own, said in rows]
    items = "".join(f'<li id="{key}-{k}">{escape(note)}</li>' for note, k in notes.items())
    return table([*columns, "notes"], cells, {*text, "notes"}, label, cards=True) + (
        f'<ol class="notes">{items}</ol>' if items else ""
    )


def paragraphs(texts: Iterable[str], kind: str = "") -> str:
    """Format each text as a paragraph."""
    mark = f' class="{kind}"' if kind else ""
    return "\n".join(f"<p{mark}>{escape(text)}</p>" for text in texts)


def failures(attempt: Attempts) -> str:
    """Format the failures of an attempt, with tracebacks; empty if there are none."""
    parts = [paragraphs([sentence], "failed") for sentence in attempt.sentences]
    parts += map(traceback, attempt.failures.values())
    return "\n".join(parts)


def parts(makes: Mapping[str, Callable[[], Section]]) -> Iterator[Section]:
    """Yield the sections of a page; one that cannot be made is replaced by its error, and the others are unaffected.

    Args:
        makes: The function that makes each section, by title.
    """
    for k, (title, make) in enumerate(makes.items(), 1):
        attempt = Attempts()
        made = attempt("This part", make)
        yield Section(f"part-{k}", title, failures(attempt)) if made is None else made


def traceback(error: object) -> str:
    """Format an error of several lines as a block that unfolds; empty if it is only one line."""
    if not isinstance(error, str) or "\n" not in error.strip():
        return ""
    return f"<details><summary>traceback</summary><pre>{escape(error)}</pre></details>"


def listing(texts: Iterable[str], kind: str = "notes") -> str:
    """Format texts as a list; empty if there are none."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<ul class="{kind}">{items}</ul>' if items else ""
