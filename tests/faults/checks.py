"""What must hold, whatever has struck. Read with pandas and pyarrow alone, and not with the code under test."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

TABLES = {"trials": ["cell_id"], "curves": ["cell_id", "iteration"], "ntk": ["init_id", "cell_id", "iteration"]}
OF_THE_RUN = re.compile(r"seconds|steps_per_second|hostname|attempts|threads|version|finished_at")
"""Columns that two undisturbed runs have different."""

FINISHED = "completed", "target_reached", "diverged"


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Its exit code; that of a signal, negative.
        out: What it printed.
        err: What it printed to stderr.
        started: The cells whose trials it started, in order.
    """

    code: int
    out: str
    err: str
    started: tuple[str, ...] = ()


STOPPED = "Stopped"
_SAID = re.compile(r"raysat: .*\S")
ENDS = {
    0: lambda ended: re.match(r"Report: +\S", _last(ended.out)),
    **dict.fromkeys((1, 2, 3, 4, 5), lambda ended: _SAID.match(_last(ended.err))),
    **dict.fromkeys((130, 143), lambda ended: _last(ended.out).startswith(STOPPED)),
}
"""The documented ends (docs/storage.md): the exit code, and whether the last line is its."""


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def ended_well(ended: Ended, codes: Iterable[int], *, mute: bool = False) -> list[str]:
    """What is wrong with how a command ended.

    Args:
        ended: How it did.
        codes: The exit codes that its fault allows.
        mute: Whether its terminal may have lost the last line.
    """
    problems = []
    if ended.code not in codes:
        problems.append(f"exit code {ended.code}, and not one of {sorted(codes)}")
    elif ended.code in ENDS and not mute and not ENDS[ended.code](ended):
        problems.append(f"exit code {ended.code} and the last lines {_last(ended.out)!r}, {_last(ended.err)!r}")
    if "Traceback (most recent call last)" in ended.out + ended.err and ended.code != 5:
        problems.append("a traceback")
    if problems:
        problems.append(f"it ended with {ended.err[-600:]!r}")
    return problems


def table(root: Path, name: str) -> pd.DataFrame:
    """A table of a results folder, as anyone reads it."""
    return pd.read_parquet(root / name)


def readable(root: Path) -> list[str]:
    """What is wrong with a folder that no fault has damaged, for a plain reader, at any instant."""
    problems = []
    for name in TABLES:
        files = [path for path in (root / name).glob("*.parquet") if path.name[0] not in "._"]
        for file in files:
            try:
                pq.read_table(file, page_checksum_verification=True)
            except FileNotFoundError:
                continue
            except Exception as error:
                problems.append(f"{name}/{file.name} cannot be read ({error})")
    return problems


def finished(root: Path, whole: dict[str, pd.DataFrame]) -> set[str]:
    """The cells that are finished and readable: all their rows are there, as those of an undisturbed run."""
    there = {name: _intact(root / name) for name in TABLES}
    cells = set()
    trials = there["trials"]
    for cell_id in set(trials[trials["status"].isin(FINISHED)]["cell_id"]) if len(trials) else ():
        if all(not _compare(of(there[name], cell_id), of(whole[name], cell_id), name) for name in TABLES):
            cells.add(cell_id)
    return cells


def of(rows: pd.DataFrame, cell_id: str) -> pd.DataFrame:
    """A cell's rows, once each."""
    return rows[rows["cell_id"] == cell_id] if len(rows) else rows


def _intact(folder: Path) -> pd.DataFrame:
    parts = []
    for file in folder.glob("[!._]*.parquet"):
        try:
            parts.append(pq.read_table(io.BytesIO(file.read_bytes()), page_checksum_verification=True).to_pandas())
        except Exception:  # whatever is wrong with it, what it holds is not readable
            continue
    rows = [part for part in parts if len(part)]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def complete(root: Path, whole: dict[str, pd.DataFrame], *, raised: bool = False) -> list[str]:
    """What is wrong with a folder whose sweep has ended: each row once, to the bit, and a report that opens.

    Args:
        root: The folder.
        whole: The tables of an undisturbed run.
        raised: Whether the user's code has raised an error: in statistics along a run it is a row of theirs.
    """
    problems = readable(root)
    if problems:
        return problems
    for name, keys in TABLES.items():
        try:
            rows = table(root, name)
        except Exception as error:
            problems.append(f"pandas cannot read {name} ({error})")
            continue
        if twice := int(rows.duplicated(keys).sum()):
            problems.append(f"{name} has {twice} rows twice")
        rows, expected = rows.drop_duplicates(keys), whole[name]
        if raised and name == "ntk":
            failed = rows[rows["cell_id"].notna() & rows["method"].isin(["failed", "refused"])][
                ["cell_id", "iteration"]
            ]
            rows, expected = (_without(one, failed) for one in (rows, expected))
        problems += _compare(rows, expected, name)
    return problems + report(root)


def _without(rows: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """Rows but for those of the same cell and iteration as others."""
    keys = set(zip(others["cell_id"], others["iteration"], strict=True))
    kept = rows[[key not in keys for key in zip(rows["cell_id"], rows["iteration"], strict=True)]]
    return kept.convert_dtypes()  # numbers with a null among them are floats, and whole ones without


def _compare(rows: pd.DataFrame, expected: pd.DataFrame, name: str) -> list[str]:
    """How rows differ from those of an undisturbed run."""
    if not len(rows) or not len(expected):
        return [f"{name} has {len(rows)} rows, and not {len(expected)}"] if len(rows) != len(expected) else []
    rows, expected = (_canonical(one, TABLES[name]) for one in (rows, expected))
    if rows.index.tolist() != expected.index.tolist():
        return [f"{name} has {len(rows)} rows, and not the {len(expected)} of an undisturbed run"]
    differing = [
        column for column in expected if rows[column].map(repr).tolist() != expected[column].map(repr).tolist()
    ]
    return [f"{name} has other values of {', '.join(differing)}"] * bool(differing)


def _canonical(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    rows = rows.drop(columns=[column for column in rows if OF_THE_RUN.search(column)]).drop_duplicates(keys)
    index = [" ".join(map(str, key)) for key in zip(*(rows[key] for key in keys), strict=True)]
    return rows.set_index(pd.Index(index)).sort_index()


class _Parser(HTMLParser):
    """Follows whether elements are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings = 0

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.headings += tag == "h1"
        self.open += [tag] * (tag in ("html", "body", "main", "section", "table"))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("html", "body", "main", "section", "table"):
            assert self.open.pop() == tag


def report(root: Path) -> list[str]:
    """What is wrong with the report."""
    try:
        text = (root / "report.html").read_text(encoding="utf-8")
        parser = _Parser()
        parser.feed(text)
        assert parser.headings == 1
        assert not parser.open
    except Exception as error:
        return [f"the report does not open ({type(error).__name__} {error})"]
    return []
