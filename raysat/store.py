"""A sweep's results folder: immutable Parquet part-files, written aside and renamed, readable at any moment.

    RESULTS/<sweep>/
        sweep.json                       what was asked, versions, machine
        status.json                      what runs, as the driver saw it last (see `raysat.status`)
        trials/<cell_id>.parquet         one row
        curves/<cell_id>.parquet         one row an evaluation
        ntk/<init_id>.parquet            one row
        {trials,curves,ntk}/merged-*     the same rows of many finished cells
        checkpoints/<cell_id>.pt         of unfinished trials only
        data/<data set>/                 its files, on an object store only

The driver is the only writer. A cell's row is written after its curve, so that a cell with a row has everything. The
folder is a local one, or an address of an object store (see `raysat.files`).

Many small files are slow to read, so those of finished cells are merged: the merged file appears whole, and the small
ones are deleted right after. A crash between the two leaves rows twice; `Store.read` takes each once, and the next run
deletes the small files. Plain pandas sees them twice only in that time: milliseconds, or until the next run of a sweep
that was killed in them.
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

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raysat.files import Location, location, remove, write_aside
from raysat.schema import FINISHED, SCHEMA_VERSION, TABLES, arrow_schema
from raysat.spec import SHARED, InputError, Sweep

log = logging.getLogger(__name__)

Row = Mapping[str, object]

LOOSE = 256
"""Part-files of single cells that are merged into one. Default: 256; reading as many takes a fraction of a second."""

KEYS = {"trials": ["cell_id"], "curves": ["cell_id", "iteration"], "ntk": ["init_id", "cell_id", "iteration"]}
"""The columns that name a row."""

_MERGED = "merged-"


class Store:
    """One sweep's results folder.

    Args:
        root: The folder, `RESULTS/<sweep>`, or its address.
    """

    def __init__(self, root: Location | str) -> None:
        self.root = location(root)
        self._unreadable: set[Location] = set()
        self._loose: set[str] = set()  # finished cells whose rows have part-files of their own
        self._merged: dict[str, set[str]] = {table: set() for table in TABLES}  # those whose rows are in merged ones

    @property
    def checkpoints(self) -> Location:
        """The folder of unfinished trials' checkpoints."""
        folder = self.root / "checkpoints"
        return folder.resolve() if isinstance(folder, Path) else folder

    @property
    def data(self) -> Location:
        """The data set's files, for workers without internet; on an object store only."""
        return self.root / "data"

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
        with _reached(self.root):
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
        with _reached(self.root):
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
        with _reached(self.root):
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
            return json.loads((self.root / "status.json").read_text())
        except (OSError, ValueError):
            return None

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
        data = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
        write_aside(self.root / table / f"{key}.parquet", lambda path: pq.write_table(data, path))

    def _merge(self) -> None:
        """Merge the part-files of finished cells, which are never written again."""
        digest = hashlib.sha256("".join(sorted(self._loose)).encode()).hexdigest()[:16]
        for table in TABLES:
            missing = self._loose - self._merged[table]
            paths = [path for path in self._parts(table) if path.stem in missing]
            parts = {path: part for path, part in zip(paths, self._read_parts(paths), strict=True) if part is not None}
            if parts:
                data = pa.concat_tables([arrow_schema(table).empty_table(), *parts.values()], promote_options="default")
                merged = self.root / table / f"{_MERGED}{digest}.parquet"
                write_aside(merged, lambda path, data=data: pq.write_table(data, path))
                self._merged[table] |= {path.stem for path in parts}
            doubled = self._loose & self._merged[table]
            _delete([path for path in self._parts(table) if path.stem in doubled])
        self._loose.clear()

    def _settle(self) -> None:
        """Bring in order what earlier runs have left.

        Set aside the part-files that cannot be read, and delete those whose rows a merged one has already.
        """
        finished = self.finished()
        for table in TABLES:
            self.read(table)
            for path in self._unreadable & set(self._parts(table)):
                path.rename(path.with_name(f"_{path.name}"))
            paths = self._parts(table)
            merged = self._read_parts([path for path in paths if path.name.startswith(_MERGED)], ["cell_id"])
            ids = {cell_id for part in merged if part is not None for cell_id in part["cell_id"].to_pylist()}
            self._merged[table] = ids
            _delete([path for path in paths if path.stem in ids])
        self._loose = finished & {path.stem for path in self._parts("trials")}

    def _parts(self, table: str) -> list[Location]:
        return sorted((self.root / table).glob("[!._]*.parquet"))

    def _read_parts(self, paths: Sequence[Location], columns: list[str] | None = None) -> list[pa.Table | None]:
        """The content of part-files; None, and a warning, for one that cannot be read."""

        def read(path: Location) -> pa.Table | None:
            content = io.BytesIO(path.read_bytes())
            try:
                return pq.ParquetFile(content).read(columns)
            except (OSError, pa.ArrowException) as error:
                if path not in self._unreadable:
                    log.warning("%s cannot be read and is left out: %s", path, str(error).splitlines()[0])
                self._unreadable.add(path)
                return None

        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(read, paths))

    def read(self, table: str, columns: list[str] | None = None) -> pd.DataFrame:
        """All rows of `trials`, `curves` or `ntk`; a part-file that cannot be read is left out with a warning.

        Args:
            table: The table.
            columns: Those to read, among them the columns that name a row. Default: all.
        """
        for tries_left in reversed(range(10)):
            try:
                parts = self._read_parts(self._parts(table), columns)
                break
            except FileNotFoundError:  # merged by the driver after this listed the folder
                if not tries_left:
                    raise
        schema = arrow_schema(table)
        empty = schema.empty_table().select(columns or schema.names)
        rows = pa.concat_tables([empty, *(part for part in parts if part is not None)], promote_options="default")
        return rows.to_pandas().drop_duplicates(KEYS[table], ignore_index=True)

    def finished(self) -> set[str]:
        """The ids of the cells that need not be run again: those with a finished row and a curve."""
        trials, curves = self.read("trials", ["cell_id", "status"]), self.read("curves", KEYS["curves"])
        return set(trials.loc[trials["status"].isin(FINISHED), "cell_id"]) & set(curves["cell_id"])

    def statistics(self) -> dict[str, dict[str, float]]:
        """The rows of `ntk` at initialization, by init_id."""
        rows = self.read("ntk")
        return {row["init_id"]: row for row in rows[rows["iteration"] == 0].to_dict("records")}


def _delete(paths: Iterable[Location]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: path.unlink(missing_ok=True), paths))


@contextmanager
def _reached(root: Location) -> Iterator[None]:
    """Say in one sentence that the storage does not answer."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{root} cannot be read and written ({str(error).splitlines()[0]}): mend the path, the network or the "
            "credentials, or use another --results."
        ) from None
