"""Checks of a results folder, as pure functions of its contents: each finding is a sentence with its remedy.

`raysat.doctor` reads the folder and repairs what a finding names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import pandas as pd

from raysat.storage.belongings import strangers, unfinished
from raysat.storage.checkpoint import Progress
from raysat.storage.partfiles import KEYS, MERGED
from raysat.storage.recall import Recall, sweep_of
from raysat.storage.schema import FINISHED, TABLES, arrow_schema
from raysat.storage.versions import present

FEW = 3
"""Ids or files that a finding names, at most."""


@dataclass(frozen=True)
class Contents:
    """The contents of a results folder.

    Attributes:
        names: All its files, as relative paths (`raysat.storage.files.walk`).
        record: The content of `sweep.json`; None if it cannot be read.
        has_status: Whether `status.json` can be read.
        parts: The readable part-files of each table, by path.
        damaged: Why part-files and checkpoints cannot be read, by path.
        checkpoints: The readable checkpoints, by cell_id.
        code: The user's files that have changed since, if that was checked.
    """

    names: list[str]
    record: Mapping | None
    has_status: bool
    parts: Mapping[str, Mapping[str, pd.DataFrame]]
    damaged: Mapping[str, str]
    checkpoints: Mapping[str, Progress]
    code: tuple[str, ...] = ()

    def rows(self, table: str) -> pd.DataFrame:
        """All rows of a table, without duplicates, each with its part-file."""
        frames = [part.assign(file=path) for path, part in self.parts[table].items()]
        columns = [*arrow_schema(table).names, "file"]
        rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)
        return rows.drop_duplicates(KEYS[table], ignore_index=True)


@dataclass(frozen=True)
class Finding:
    """A problem.

    Attributes:
        kind: Its kind, in a word or two.
        text: The problem in words, and how the next run of the sweep treats it.
        files: The files that a repair moves into `set-aside/`.
        cells: The cells whose rows a repair moves there, from all tables: they run again.
        rows: Rows that a repair moves there: by path of the part-file, a mask of its rows.
        makes_schema: Whether a repair writes the empty part-files that are missing.
    """

    kind: str
    text: str
    files: tuple[str, ...] = ()
    cells: frozenset[str] = frozenset()
    rows: Mapping[str, pd.Series] = field(default_factory=dict)
    makes_schema: bool = False

    @property
    def can_be_repaired(self) -> bool:
        """Whether there is something to move or to write."""
        return bool(self.files or self.cells or self.rows or self.makes_schema)

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


def findings(contents: Contents) -> Iterator[Finding]:
    """Yield all problems of a results folder."""
    for check in (_records, _files, _damage, _doubles, _cells, _statistics, _ids, _checkpoints, _code):
        yield from check(contents)


def _records(contents: Contents) -> Iterator[Finding]:
    record = contents.record
    if record is None:
        text = "sweep.json is not there or cannot be read; the next run of the sweep writes it again"
        yield Finding("no record", text, tuple(name for name in contents.names if name.rstrip("/") == "sweep.json"))
    elif record.get("schema") != present():
        versions = f"schema version {record.get('schema')}, where this raysat reads {present()}"
        yield Finding("another schema", f"{versions}: use the raysat that wrote it")
    if "status.json" in contents.names and not contents.has_status:
        text = "status.json cannot be read; the next run of the sweep writes it again"
        yield Finding("no status", text, ("status.json",))


def _files(contents: Contents) -> Iterator[Finding]:
    if left := [name for name in contents.names if unfinished(name)]:
        text = f"{_few(left)} are left of writes that were cut short; the next run of the sweep deletes them"
        yield Finding("unfinished files", text, tuple(left))
    if others := strangers(contents.names):
        yield Finding("foreign files", f"{_few(others)} are not raysat's, which leaves them where they are: move them")
    for table in TABLES:
        if f"{table}/schema.parquet" not in contents.names:
            text = f"{table}/ lacks its empty part-file; the next run of the sweep makes it"
            yield Finding("no schema", text, makes_schema=True)


def _damage(contents: Contents) -> Iterator[Finding]:
    for path, reason in contents.damaged.items():
        what = "its trial starts over" if path.startswith("checkpoints/") else "what was in it runs again"
        text = f"{path} cannot be read ({reason}); {what} with the next run of the sweep"
        yield Finding("damaged file", text, (path,))


def _doubles(contents: Contents) -> Iterator[Finding]:
    """Find duplicate rows: those of merged part-files stay."""
    for table, parts in contents.parts.items():
        seen = pd.DataFrame(columns=KEYS[table])
        # merged part-files first: of equal rows the first one counts
        for path in sorted(parts, key=lambda path: (not path.partition("/")[2].startswith(MERGED), path)):
            # None in place of NaN, so that part-files with and without cell ids compare
            keys = parts[path][KEYS[table]].astype(object).where(parts[path][KEYS[table]].notna(), None)
            both = pd.concat([seen, keys], ignore_index=True)
            doubled = both.duplicated().iloc[len(seen) :].set_axis(keys.index)  # only of this part-file's rows
            seen = both.drop_duplicates()
            if doubled.any():
                text = f"{int(doubled.sum())} rows of {path} are in another part-file too, or twice in it; raysat reads"
                yield Finding("rows twice", f"{text} each once, and a plain reader both", rows={path: doubled})


def _cells(contents: Contents) -> Iterator[Finding]:
    """Find rows, curves and statistics along a run that lack each other."""
    trials, curves, ntk = (contents.rows(table) for table in ("trials", "curves", "ntk"))
    named = set(trials["cell_id"])
    for table, rows in (("curves", curves), ("ntk", ntk[ntk["cell_id"].notna()])):
        if orphans := sorted(set(rows["cell_id"]) - named):
            own = {path: part["cell_id"].isin(orphans) for path, part in contents.parts[table].items()}
            text = f"{table} has rows of {len(orphans)} cells without a row in trials ({_few(orphans)}), as a driver"
            text += " leaves that was killed between the two; they run again with the next run of the sweep"
            yield Finding("orphans", text, rows={path: rows for path, rows in own.items() if rows.any()})
    ended = trials[trials["status"].isin(FINISHED)]
    lasts = curves.groupby("cell_id")["iteration"].max()
    if lacking := sorted(set(ended["cell_id"]) - set(lasts.index)):
        text = f"{len(lacking)} finished cells have no curve ({_few(lacking)}); they run again with the next run"
        yield Finding("no curve", text, cells=frozenset(lacking))
    storage_errors = ended["cell_id"].map(lasts)
    short = ended[storage_errors.notna() & (storage_errors != ended["iterations_done"])]
    if len(short):
        text = f"{len(short)} curves end elsewhere than their rows in trials say ({_few(short['cell_id'])})"
        text += "; the next run takes them for finished"
        yield Finding("another curve", text, cells=frozenset(short["cell_id"]))
    for table, parts in contents.parts.items():
        for path, part in parts.items():
            stem = path.partition("/")[2].removesuffix(".parquet")
            of = set(part["cell_id"].dropna()) | (set(part["init_id"]) if table == "ntk" else set())
            if len(part) and not stem.startswith(MERGED) and stem not in of:
                text = f"{path} has rows of {_few(sorted(of))}; they are read as what they say they are"
                yield Finding("misnamed file", text, (path,))


def _statistics(contents: Contents) -> Iterator[Finding]:
    recall, ntk, record = _recall(contents), contents.rows("ntk"), contents.record
    if recall is None or record is None or ntk.empty:
        return
    resolved = record["resolved"]
    wanted = {init.init_id for init in recall.sweep.initializations(resolved["n"], resolved["n_test"])}
    unknown = set(ntk.loc[ntk["cell_id"].isna(), "init_id"]) - wanted - set(contents.rows("trials")["init_id"])
    if unknown:
        rows = {path: part["init_id"].isin(unknown) for path, part in contents.parts["ntk"].items()}
        text = f"ntk has statistics of {len(unknown)} initializations that no cell is of ({_few(sorted(unknown))})"
        text += "; the next run leaves them"
        yield Finding("orphans", text, rows={path: own for path, own in rows.items() if own.any()})


def _ids(contents: Contents) -> Iterator[Finding]:
    """Find rows whose id is not the hash of what they say."""
    recall = _recall(contents)
    if recall is None:
        return
    trials, ntk = contents.rows("trials"), contents.rows("ntk")
    wrong, inits = [], {}
    for row in (*trials.to_dict("records"), *ntk.to_dict("records")):
        inits.setdefault(row["init_id"], []).append(row)
    for init_id, rows in inits.items():
        for row in rows:
            if _init_id(recall, row) != init_id:
                wrong.append(row)
    bad = {row["cell_id"] if isinstance(row["cell_id"], str) else row["init_id"] for row in wrong}
    for row in trials.to_dict("records"):
        if row["cell_id"] not in bad and recall.asks_for(row) and not recall.makes(row):
            bad.add(row["cell_id"])
    if bad:
        text = f"{len(bad)} rows do not agree with the ids made of them ({_few(sorted(bad))}); the next run"
        # rows of `ntk` along a run have a cell_id; those at initialization only an init_id
        own = {
            path: part["cell_id"].isin(bad) | (part["init_id"].isin(bad) & part["cell_id"].isna())
            for path, part in contents.parts["ntk"].items()
        }
        cells, own = frozenset(bad & set(trials["cell_id"])), {path: rows for path, rows in own.items() if rows.any()}
        yield Finding("another id", f"{text} takes them as they are", cells=cells, rows=own)


def _init_id(recall: Recall, row: Mapping) -> str:
    try:
        return recall.initialization(row).init_id
    except (TypeError, ValueError, LookupError):
        return ""


def _recall(contents: Contents) -> Recall | None:
    """What recomputes ids; None if the sweep is not known, or uses a user's own code, on which ids depend too."""
    record = contents.record
    if record is None or record.get("schema") != present() or record["resolved"].get("code"):
        return None
    sweep = sweep_of(record)
    known = all(isinstance(record["resolved"].get(name), int) for name in ("n", "n_test"))
    return Recall(sweep) if sweep and known else None


def _checkpoints(contents: Contents) -> Iterator[Finding]:
    trials, recall = contents.rows("trials"), _recall(contents)
    ended = set(trials.loc[trials["status"].isin(FINISHED), "cell_id"])
    if stale := sorted(set(contents.checkpoints) & ended):
        files = tuple(f"checkpoints/{cell_id}.pt" for cell_id in stale)
        yield Finding("stale checkpoints", f"{_few(stale)} are of finished cells, and of no use", files)
    for cell_id, progress in contents.checkpoints.items():
        path, at, curve = f"checkpoints/{cell_id}.pt", progress.iteration, progress.curve
        most = recall.longest(contents.record["resolved"]["n"]) if recall and contents.record else None
        if at < 0 or (most is not None and at > most):
            text = f"{path} is at iteration {at}, beyond T = {most}; move it: its trial starts over"
            yield Finding("strange checkpoint", text, (path,))
        elif any(not isinstance(point, dict) or point.get("iteration", 0) > at for point in curve):
            text = f"{path} is at iteration {at}, before the end of its own curve; move it: its trial starts over"
            yield Finding("strange checkpoint", text, (path,))
    probes = [name for name in contents.names if name.startswith("checkpoints/.probe-")]
    if probes:
        yield Finding("unfinished files", f"{_few(probes)} are left of a driver that was killed", tuple(probes))


def _code(contents: Contents) -> Iterator[Finding]:
    if contents.code:
        text = "changed since the results were made: put back what was there, or run the sweep, which says what follows"
        yield Finding("other code", f"{_few(contents.code)} {text}")


def _few(names: Iterable[str], most: int = FEW) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
