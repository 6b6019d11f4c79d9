"""A sweep's results folder: immutable Parquet part-files, written aside and renamed, readable at any moment.

    RESULTS/<sweep>/
        sweep.json                       what was asked, versions, machine
        status.json                      what runs, as the driver saw it last (see `raysat.status`)
        trials/<cell_id>.parquet         one row
        curves/<cell_id>.parquet         one row an evaluation
        ntk/<init_id>.parquet            one row
        {trials,curves,ntk}/merged-*     the same rows of many finished cells
        checkpoints/<cell_id>.pt         of unfinished trials only
        data/<data set>/                 its files, where other nodes may need them

The driver is the only writer. A cell's row is written after its curve, so that a cell with a row has everything. The
folder is a local one, or an address of an object store (see `raysat.files`).

Many small files are slow to read, so those of finished cells are merged: the merged file appears whole, and the small
ones are deleted right after. A crash between the two leaves rows twice; `Store.read` takes each once, and the next run
deletes what is double. Plain pandas sees them twice only in that time: milliseconds, or until the next run of a sweep
that was killed in them.

Every page of a part-file has a checksum, and a part-file is read whole whichever columns are asked for: one that is
damaged anywhere is left out by every reader here, and its cells are not finished.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysat.files import Location, location, remove, write_aside
from raysat.schema import FINISHED, SCHEMA_VERSION, TABLES, arrow_schema
from raysat.spec import SHARED, Sweep
from raysat.validation import InputError

log = logging.getLogger(__name__)

Row = Mapping[str, object]

LOOSE = 256
"""Part-files of single cells that are merged into one. Default: 256; reading as many takes a fraction of a second."""

KEYS = {"trials": ["cell_id"], "curves": ["cell_id", "iteration"], "ntk": ["init_id", "cell_id", "iteration"]}
"""The columns that name a row."""

_MERGED = "merged-"

_LINEARIZED = '"linearized": true'
"""In `model_options`: the kernel never moves, and has no statistics along the run."""


class Store:
    """One sweep's results folder.

    Args:
        root: The folder, `RESULTS/<sweep>`, or its address.
    """

    def __init__(self, root: Location | str) -> None:
        self.root = location(root)
        self._damaged: set[Location] = set()
        self._loose: set[str] = set()  # finished cells whose rows have part-files of their own
        self._merged: dict[str, set[str]] = {table: set() for table in TABLES}  # those whose rows are in merged ones

    @property
    def checkpoints(self) -> Location:
        """The folder of unfinished trials' checkpoints."""
        return _absolute(self.root / "checkpoints")

    @property
    def data(self) -> Location:
        """The data set's files, for workers without internet."""
        return _absolute(self.root / "data")

    @property
    def sweep_file(self) -> Location:
        """What was asked, as JSON."""
        return self.root / "sweep.json"

    def open(self, sweep: Sweep, about: Mapping[str, object], resolved: Mapping[str, object]) -> None:
        """Make the folder, or take up the one that is there, and record the sweep in it.

        Part-files that cannot be read are set aside under a name that Parquet readers pass over.

        Args:
            sweep: The sweep. Its axes may have grown since the last run; what all cells share may not have changed.
            about: Versions, machine, commit.
            resolved: Sizes of the data set as used.

        Raises:
            InputError: The folder holds another sweep, an older schema, or something else, or cannot be written.
        """
        self.check(sweep, resolved)
        with reached(self.root):
            for table in TABLES:
                folder = self.root / table
                folder.mkdir(parents=True, exist_ok=True)
                # An empty part-file with the whole schema: the folder can be read before the first cell is done.
                if not (folder / "schema.parquet").exists():
                    self._write(table, "schema", [])
            self.checkpoints.mkdir(exist_ok=True)
            record = {"schema": SCHEMA_VERSION, "sweep": asdict(sweep), "resolved": dict(resolved), **about}
            write_aside(self.sweep_file, lambda path: path.write_text(json.dumps(record, indent=2) + "\n"))
            self._settle()

    def check(self, sweep: Sweep, resolved: Mapping[str, object]) -> None:
        """Raise `InputError` unless the folder is new or holds cells of this very sweep."""
        remedy = "use another --results or --set name=NAME, or --fresh to start over"
        with reached(self.root):
            if not self.root.exists() or not any(self.root.iterdir()):
                return
        record = self.record()
        if record is None:
            raise InputError(f"{self.root} is not a results folder of a sweep (it has no sweep.json): {remedy}.")
        if record.get("schema") != SCHEMA_VERSION:
            raise InputError(
                f"{self.root} has schema version {record.get('schema')}, this raysat writes {SCHEMA_VERSION}: {remedy}."
            )
        now = {**json.loads(json.dumps(asdict(sweep))), **resolved}
        defaults = {field.name: None if field.default is MISSING else field.default for field in fields(Sweep)}
        before = {**json.loads(json.dumps(defaults, default=asdict)), **record["sweep"], **record["resolved"]}
        names = ("name", *SHARED, *resolved)
        if changed := [name for name in names if before.get(name) != now.get(name)]:
            differences = ", ".join(f"{name} {before.get(name)!r} there, {now.get(name)!r} here" for name in changed)
            raise InputError(f"{self.root} holds another sweep ({differences}): {remedy}.")

    def record(self) -> dict | None:
        """The content of `sweep.json`, or None where there is none that can be read.

        Raises:
            InputError: The storage does not answer.
        """
        with reached(self.root):
            try:
                record = json.loads(self.sweep_file.read_text())
            except (FileNotFoundError, NotADirectoryError, ValueError):
                return None
        return record if isinstance(record, dict) and "sweep" in record and "resolved" in record else None

    def write_status(self, status: Mapping[str, object]) -> None:
        """Store what runs."""
        write_aside(self.root / "status.json", lambda path: path.write_text(json.dumps(status, indent=2) + "\n"))

    def status(self) -> dict | None:
        """What the driver stored last; None where there is nothing that can be read."""
        try:
            status = json.loads((self.root / "status.json").read_text())
        except (OSError, ValueError):
            return None
        return status if isinstance(status, dict) and "at" in status else None

    def readable(self) -> dict:
        """The content of `sweep.json`, of a folder that this raysat can read.

        Raises:
            InputError: The folder is not a results folder, or of another schema version.
        """
        record = self.record()
        if record is None:
            raise InputError(
                f"{self.root} holds no sweep (no readable sweep.json): give a results folder, RESULTS/NAME."
            )
        if record.get("schema") != SCHEMA_VERSION:
            raise InputError(
                f"{self.root} has schema version {record.get('schema')}, this raysat reads {SCHEMA_VERSION}: "
                "use the raysat that wrote it, or run the sweep anew."
            )
        return record

    def clear(self) -> None:
        """Delete the folder."""
        remove(self.root)

    def write_trial(self, row: Row, curve: Sequence[Row], ntk: Sequence[Row] = ()) -> None:
        """Store a finished cell: its curve first, then the row that makes it count, and drop its checkpoint."""
        cell_id = str(row["cell_id"])
        if ntk:
            self._write("ntk", cell_id, ntk)
        self._write("curves", cell_id, curve)
        self._write("trials", cell_id, [row])
        if row["status"] in FINISHED:
            (self.checkpoints / f"{cell_id}.pt").unlink(missing_ok=True)
            self._loose.add(cell_id)
            if len(self._loose) >= LOOSE:
                try:
                    self._merge()
                except OSError as error:  # tried again with the next cell; its rows are safe as they are
                    log.warning("%s: merging part-files failed: %s", self.root, str(error).partition("\n")[0])

    def write_ntk(self, row: Row) -> None:
        """Store an initialization's statistics."""
        self._write("ntk", str(row["init_id"]), [row])

    def _write(self, table: str, key: str, rows: Sequence[Row]) -> None:
        schema = arrow_schema(table)
        if unknown := {name for row in rows for name in row} - set(schema.names):
            raise ValueError(f"{table} has no column {', '.join(sorted(unknown))}")
        self._put(table, key, pa.Table.from_pylist([dict(row) for row in rows], schema=schema))

    def _put(self, table: str, key: str, data: pa.Table) -> None:
        path = self.root / table / f"{key}.parquet"
        write_aside(path, lambda aside: pq.write_table(data, aside, write_page_checksum=True))

    def _put_merged(self, table: str, cell_ids: Iterable[str], parts: Iterable[pa.Table]) -> str:
        """Write the rows of some cells as one part-file. Returns its name, which follows from the cells."""
        key = _MERGED + hashlib.sha256("".join(sorted(cell_ids)).encode()).hexdigest()[:16]
        self._put(table, key, pa.concat_tables([arrow_schema(table).empty_table(), *parts], promote_options="default"))
        return f"{key}.parquet"

    def _merge(self) -> None:
        """Merge the part-files of finished cells, which are never written again."""
        for table in TABLES:
            missing = self._loose - self._merged[table]
            parts = self._readable_parts(table, [path for path in self._parts(table) if path.stem in missing])
            if parts:
                self._put_merged(table, self._loose, parts.values())
                self._merged[table] |= {path.stem for path in parts}
            doubled = self._loose & self._merged[table]
            _delete([path for path in self._parts(table) if path.stem in doubled])
        self._loose.clear()

    def _settle(self) -> None:
        """Bring in order what earlier runs have left.

        Set aside the part-files that cannot be read, and delete the rows that others have already.
        """
        for table in TABLES:
            paths = self._parts(table)
            parts = self._readable_parts(table, paths)
            for path in set(paths) - set(parts):
                path.rename(path.with_name(f"_{path.name}"))
            merged = {path: part for path, part in parts.items() if path.name.startswith(_MERGED)}
            self._merged[table] = self._single(table, merged)
            _delete([path for path in parts if path.stem in self._merged[table]])
        self._loose = self.finished() & {path.stem for path in self._parts("trials")}

    def _single(self, table: str, merged: Mapping[Location, pa.Table]) -> set[str]:
        """Let each cell be in one of the merged part-files only: two drivers may have merged the same. Returns them."""
        cell_ids: set[str] = set()
        parts, doubled = [], False
        for part in merged.values():
            its = set(part["cell_id"].to_pylist())
            doubled |= bool(its & cell_ids)
            parts.append(part.filter(pc.is_in(part["cell_id"], pa.array(sorted(its - cell_ids), pa.string()))))
            cell_ids |= its
        if doubled:
            name = self._put_merged(table, cell_ids, parts)
            _delete([path for path in merged if path.name != name])
        return cell_ids

    def _parts(self, table: str) -> list[Location]:
        return sorted((self.root / table).glob("[!._]*.parquet"))

    def _readable_parts(self, table: str, paths: Sequence[Location]) -> dict[Location, pa.Table]:
        """The content of part-files; one that is damaged is left out with a warning."""
        schema = arrow_schema(table)

        def read(path: Location) -> pa.Table | None:
            content = io.BytesIO(path.read_bytes())
            try:
                file = pq.ParquetFile(content, page_checksum_verification=True)
                part = _declared(file.read(), schema)
                if len(part) != file.metadata.num_rows:
                    raise ValueError(f"it has {len(part)} rows instead of {file.metadata.num_rows}")
            except (OSError, ValueError, pa.ArrowException) as error:
                if path not in self._damaged:
                    log.warning("%s cannot be read and is left out: %s", path, str(error).partition("\n")[0])
                self._damaged.add(path)
                return None
            return part

        with ThreadPoolExecutor(8) as pool:
            parts = zip(paths, pool.map(read, paths), strict=True)
            return {path: part for path, part in parts if part is not None}

    def read(self, table: str, columns: list[str] | None = None) -> pd.DataFrame:
        """All rows of `trials`, `curves` or `ntk`; a part-file that is damaged is left out with a warning.

        Args:
            table: The table.
            columns: Those to return, among them the columns that name a row. Default: all.

        Raises:
            InputError: The storage does not answer.
        """
        with reached(self.root):
            for tries_left in reversed(range(10)):
                try:
                    parts = self._readable_parts(table, self._parts(table))
                    break
                except FileNotFoundError:  # merged by the driver after this listed the folder
                    if not tries_left:
                        raise
        empty = arrow_schema(table).empty_table()
        rows = pa.concat_tables([empty, *parts.values()], promote_options="default")
        return rows.select(columns or rows.column_names).to_pandas().drop_duplicates(KEYS[table], ignore_index=True)

    def finished(self) -> set[str]:
        """The ids of the cells that need not be run again.

        Those with a finished row, a curve, and statistics at each iteration of `ntk_at` that they have reached.
        """
        trials = self.read("trials", ["cell_id", "status", "model_options"])
        curves = self.read("curves", [*KEYS["curves"], "train_loss"])
        ended = trials[trials["status"].isin(FINISHED)]
        return set(ended["cell_id"]) & set(curves["cell_id"]) - self._without_statistics(ended, curves)

    def _without_statistics(self, trials: pd.DataFrame, curves: pd.DataFrame) -> set[str]:
        """The cells that have lost statistics of `ntk_at`; where the loss is not finite, there were none."""
        ntk_at = ((self.record() or {}).get("sweep") or {}).get("ntk_at")
        if not ntk_at:
            return set()
        moving = trials[~trials["model_options"].str.contains(_LINEARIZED, regex=False, na=False)]
        due = curves[curves["iteration"].isin(ntk_at) & (curves["iteration"] > 0) & np.isfinite(curves["train_loss"])]
        due = due[due["cell_id"].isin(moving["cell_id"])]
        there = self.read("ntk", KEYS["ntk"])
        missing = due.merge(there, "left", ["cell_id", "iteration"], indicator=True)
        return set(missing.loc[missing["_merge"] == "left_only", "cell_id"])

    def statistics(self) -> dict[str, dict[str, float]]:
        """The rows of `ntk` at initialization, by init_id."""
        rows = self.read("ntk")
        return {row["init_id"]: row for row in rows[rows["iteration"] == 0].to_dict("records")}


def _absolute(folder: Location) -> Location:
    return folder.resolve() if isinstance(folder, Path) else folder


def _declared(part: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns that are declared: a newer raysat may have written more, and an older one fewer, but none does both.

    Raises:
        ValueError: There are others instead, or of another type.
    """
    unknown, missing = set(part.column_names) - set(schema.names), set(schema.names) - set(part.column_names)
    part = part.drop_columns(sorted(unknown))
    retyped = {field.name for field in part.schema if field.type != schema.field(field.name).type}
    if retyped or (unknown and missing):
        raise ValueError(f"it has columns of its own: {', '.join(sorted(retyped or unknown))}")
    return part


def _delete(paths: Iterable[Location]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: path.unlink(missing_ok=True), paths))


@contextmanager
def reached(root: Location) -> Iterator[None]:
    """Say in one sentence that the storage does not answer: `OSError` becomes `InputError`."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{root} cannot be read and written ({str(error).splitlines()[0]}): mend the path, the network or the "
            "credentials, or use another --results."
        ) from None
