"""The part-files of a results folder: immutable Parquet tables, written aside and renamed, readable at any moment.

Many small files are slow to read, so those of finished cells are merged: the merged file appears whole, and the small
ones are deleted right after. A crash between the two leaves duplicate rows; `PartFiles.read` returns each row once, and
the next run deletes the duplicates. Plain pandas sees them twice only in that interval: milliseconds, or until the next
run of a sweep that was killed in it.

Every page of a part-file has a checksum, and a part-file is read whole even if only some columns are requested: every
reader here leaves out one that is damaged anywhere, and its cells are not finished. Files of an earlier version of
raysat are converted to the present schema as they are read (`raysat.storage.versions`).
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from raysat.errors import InputError
from raysat.messages.credentials import hidden
from raysat.messages.failures import first_sentence
from raysat.storage.files import Location, location, write_aside
from raysat.storage.schema import TABLES, arrow_schema
from raysat.storage.versions import present, rows_brought_up, version_of
from raysat.text import STORED, plain

log = logging.getLogger(__name__)

pc: Any = pyarrow.compute  # it makes its functions on import, so that type checkers see none

Row = Mapping[str, Any]

KEYS = {"trials": ["cell_id"], "curves": ["cell_id", "iteration"], "ntk": ["init_id", "cell_id", "iteration"]}
"""The columns that identify a row."""

SET_ASIDE = "set-aside"
"""The folder of rows that are no longer part of the results, by table; nothing reads it."""

MERGED = "merged-"
"""Prefix of the names of part-files of many cells."""


class PartFiles:
    """The tables of a results folder.

    Args:
        root: The folder, `RESULTS/<sweep>`, or its address.
    """

    def __init__(self, root: Location | str) -> None:
        self.root = location(root)
        self.uncompacted: set[str] = set()
        """The finished cells whose rows have part-files of their own."""
        self.merged: dict[str, set[str]] = {table: set() for table in TABLES}
        """By table, the cells whose rows are in merged part-files."""
        self._damaged: set[Location] = set()
        self._older: set[Location] = set()  # part-files of an earlier schema version, of those read
        self._kept: dict[Location, pa.Table | None] | None = None

    def keep(self) -> None:
        """Keep each part-file in memory once read, until `let_go`; the caller must be the only writer."""
        self._kept = {}

    def let_go(self) -> None:
        """Keep nothing in memory any more."""
        self._kept = None

    def read(self, table: str, columns: list[str] | None = None) -> pd.DataFrame:
        """Read all rows of `trials`, `curves` or `ntk`; a damaged part-file is left out with a warning.

        Args:
            table: The table.
            columns: Those to return, among them the columns that identify a row. Default: all.

        Raises:
            InputError: The storage does not answer.
        """
        with storage_errors(self.root):
            for tries_left in reversed(range(10)):
                try:
                    parts = self._readable_parts(table, self.paths(table))
                    break
                except FileNotFoundError:  # the driver merged it after the folder was listed: list it again
                    if not tries_left:
                        raise
        empty = arrow_schema(table).empty_table()  # has all columns: those that a part-file lacks become null
        rows = pa.concat_tables([empty, *parts.values()], promote_options="default")
        return rows.select(columns or rows.column_names).to_pandas().drop_duplicates(KEYS[table], ignore_index=True)

    def update(self, rows: Mapping[str, Row]) -> None:
        """Change values in rows of `trials`; each part-file is replaced in a single step.

        Args:
            rows: The new values by column, by cell_id.
        """
        for path, part in self._with_cells("trials", rows).items():
            changed = [{**row, **rows.get(row["cell_id"], {})} for row in part.to_pylist()]
            self._put("trials", path.stem, pa.Table.from_pylist(changed, schema=arrow_schema("trials")))

    def set_aside(self, cell_ids: Iterable[str], init_ids: Iterable[str] = ()) -> None:
        """Move the rows of some cells out of all tables, into the folder `SET_ASIDE`, so that the cells run again.

        The rows of `trials` are moved last: if this is interrupted, the reason for it is still found in them.

        Args:
            cell_ids: The cells.
            init_ids: Initializations whose statistics are to be computed again.
        """
        cells, inits = set(cell_ids), set(init_ids)
        self.uncompacted -= cells
        for table in ("ntk", "curves", "trials"):
            for path, part in self._readable_parts(table, self.paths(table)).items():
                theirs = pc.is_in(part["cell_id"], pa.array(sorted(cells), pa.string()))
                if table == "ntk":
                    # rows at initialization have no cell_id; the others of an initialization belong to its cells
                    initial = pc.and_(
                        pc.is_in(part["init_id"], pa.array(sorted(inits), pa.string())), pc.is_null(part["cell_id"])
                    )
                    theirs = pc.or_(theirs, initial)
                if pc.any(theirs).as_py():
                    self.take_out(table, path, part, theirs)
            self.merged[table] -= cells

    def take_out(self, table: str, path: Location, part: pa.Table, rows: pa.Array) -> None:
        """Move some rows of a part-file into the folder `SET_ASIDE`.

        Args:
            table: The table.
            path: The part-file.
            part: Its content.
            rows: A mask of the rows.
        """
        aside = self.root / SET_ASIDE / table
        aside.mkdir(parents=True, exist_ok=True)
        # named by its content: the same rows set aside twice make one file, and others never replace it
        name = hashlib.sha256(repr(part.filter(rows).to_pylist()).encode()).hexdigest()[:16]
        self._put(table, name, part.filter(rows), aside)
        if pc.all(rows).as_py():
            path.unlink(missing_ok=True)
        else:
            self._put(table, path.stem, part.filter(pc.invert(rows)))

    def _with_cells(self, table: str, cell_ids: Iterable[str]) -> dict[Location, pa.Table]:
        """The part-files with rows of some cells."""
        parts, cells = self._readable_parts(table, self.paths(table)), set(cell_ids)
        return {path: part for path, part in parts.items() if cells & _cells(part)}

    def write(self, table: str, key: str, rows: Sequence[Row]) -> None:
        """Write a part-file; it replaces one of the same name.

        Args:
            table: The table.
            key: The file's name, without its extension.
            rows: The rows; a missing value is null.

        Raises:
            ValueError: A row has a column that is not declared.
        """
        schema = arrow_schema(table)
        if unknown := {name for row in rows for name in row} - set(schema.names):
            raise ValueError(f"{table} has no column {', '.join(sorted(unknown))}")
        storable = [{name: _storable(value) for name, value in row.items()} for row in rows]
        shown = storable if table == "curves" else hidden(storable)  # the only texts of curves are their keys
        self._put(table, key, pa.Table.from_pylist(shown, schema=schema))

    def _put(self, table: str, key: str, data: pa.Table, folder: Location | None = None) -> None:
        path = (folder or self.root / table) / f"{key}.parquet"
        write_aside(path, lambda aside: pq.write_table(data, aside, write_page_checksum=True))
        self._older.discard(path)
        if self._kept is not None:
            self._kept[path] = data

    def _put_merged(self, table: str, cell_ids: Iterable[str], parts: Iterable[pa.Table]) -> str:
        """Write the rows of some cells as one part-file. Returns its name, which depends only on the cells."""
        key = MERGED + hashlib.sha256("".join(sorted(cell_ids)).encode()).hexdigest()[:16]
        self._put(table, key, pa.concat_tables([arrow_schema(table).empty_table(), *parts], promote_options="default"))
        return f"{key}.parquet"

    def merge(self) -> None:
        """Merge the part-files of finished cells, whose rows never change again."""
        for table in TABLES:
            parts = self._readable_parts(table, [path for path in self.paths(table) if path.stem in self.uncompacted])
            new = [
                part for part in parts.values() if _cells(part) - self.merged[table]
            ]  # a killed run may have merged the others
            if new:
                self._put_merged(table, self.uncompacted, new)
                self.merged[table].update(*map(_cells, new))
            delete([path for path, part in parts.items() if _cells(part) & self.merged[table]])
        self.uncompacted.clear()

    def settle(self) -> None:
        """Recover from earlier runs and from changes to the files by others: their content counts, not their names.

        Set aside the part-files that cannot be read, and copies under other names; delete duplicate rows. Rows that lie
        under another cell's name, which that cell would overwrite, get a name of their own. Files of an earlier schema
        version are rewritten under the present one, so that plain readers see a single schema.
        """
        for table in TABLES:
            paths = self.paths(table)
            parts = self._readable_parts(table, paths)
            own = {path: part for path, part in parts.items() if _cells(part) <= {path.stem}}
            for path in (set(paths) - set(parts)) | _copies(own):
                target: Any = path.with_name(f"_{path.name}")  # `paths` and Parquet readers ignore the name
                path.rename(target)
            for path in self._older & set(parts):
                self._put(table, path.stem, parts[path])
            merged = {path: part for path, part in parts.items() if path not in own}
            self.merged[table] = self._deduplicated(table, merged, set().union(*map(_cells, own.values())))
            delete([path for path, part in own.items() if _cells(part) & self.merged[table]])

    def _deduplicated(self, table: str, merged: Mapping[Location, pa.Table], own: set[str]) -> set[str]:
        """Keep each cell in a single merged part-file: two drivers may have merged the same cell.

        Args:
            table: The table.
            merged: The part-files that are not those of one cell under its name.
            own: The cells with a part-file under their name: it takes precedence over a copy, and a file that raysat
                has merged takes precedence over it.

        Returns:
            The cells that are in merged part-files.
        """
        cell_ids: set[str] = set()
        parts, doubled = [], False
        for path, part in merged.items():
            is_merged = path.name.startswith(MERGED)
            new = _cells(part) - cell_ids - (set() if is_merged else own)
            doubled |= not is_merged or new != _cells(part)
            parts.append(part.filter(pc.is_in(part["cell_id"], pa.array(sorted(new), pa.string()))))
            cell_ids |= new
        if doubled:
            name = self._put_merged(table, cell_ids, parts)
            delete([path for path in merged if path.name != name])
        return cell_ids

    def paths(self, table: str) -> list[Location]:
        """The part-files of a table."""
        return sorted((self.root / table).glob("[!._]*.parquet"))

    def _readable_parts(self, table: str, paths: Sequence[Location]) -> dict[Location, pa.Table]:
        """The content of part-files under the present schema; a damaged one is left out with a warning.

        Raises:
            InputError: One is of a later schema version.
        """
        kept = self._kept or {}

        def read(path: Location) -> pa.Table | None:
            return kept[path] if path in kept else self._read(table, path)

        with ThreadPoolExecutor(8) as pool:
            parts = dict(zip(paths, pool.map(read, paths), strict=True))
        if self._kept is not None:
            self._kept |= parts
        return {path: part for path, part in parts.items() if part is not None}

    def _read(self, table: str, path: Location) -> pa.Table | None:
        content = _content(path)
        try:
            stored = _whole(content)
            if version_of(stored) < present():
                self._older.add(path)
            return _conform(rows_brought_up(table, stored), arrow_schema(table))
        except InputError as error:
            raise InputError(f"{path} {error}") from None
        except (OSError, ValueError, pa.ArrowException) as error:
            if path not in self._damaged:
                log.warning("%s cannot be read and is left out: %s", path, str(error).partition("\n")[0])
            self._damaged.add(path)
            return None


def _storable(value: object) -> object:
    """A value of a row; a text is escaped and cut so that a table can hold it, wherever it comes from."""
    return plain(value, STORED) if isinstance(value, str) else value


def checked(content: bytes, table: str) -> pa.Table:
    """The rows of a part-file under the present schema, with its checksums verified.

    Args:
        content: The file's bytes.
        table: Its table.

    Raises:
        InputError: It is of a later schema version.
        OSError, ValueError, pyarrow.ArrowException: It is damaged, or not a part-file of the table.
    """
    return _conform(rows_brought_up(table, _whole(content)), arrow_schema(table))


def _whole(content: bytes) -> pa.Table:
    """The rows of a part-file as they are stored; cf. `checked`."""
    file = pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True)
    part = file.read()
    if len(part) != file.metadata.num_rows:
        raise ValueError(f"it has {len(part)} rows instead of {file.metadata.num_rows}")
    return part


def _content(path: Location) -> bytes:
    """Read a file; a folder or a dangling link in its place counts as an empty file, which is not valid Parquet."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        if isinstance(path, Path) and (path.is_symlink() or path.is_dir()):
            return b""
        raise  # it was merged after the folder was listed


def _cells(part: pa.Table) -> set[str]:
    """The cells with rows in a part-file; none in an empty one, or in one of statistics at initialization."""
    return set(part["cell_id"].to_pylist()) - {None}


def _copies(parts: Mapping[Location, pa.Table]) -> set[Location]:
    """Copies of part-files of statistics at initialization: those under another name that exist under their own too."""
    of = {path: set(part["init_id"].to_pylist()) for path, part in parts.items() if len(part) and not _cells(part)}
    named = {path.stem for path, its in of.items() if path.stem in its}
    return {path for path, its in of.items() if path.stem not in its and its <= named}


def _conform(part: pa.Table, schema: pa.Schema) -> pa.Table:
    """The declared columns of a part-file.

    Extra columns mean a newer writer, missing ones an older writer; both at once mean a foreign file, which is refused.

    Raises:
        ValueError: It is a foreign file, or a column is of another type.
    """
    unknown, missing = set(part.column_names) - set(schema.names), set(schema.names) - set(part.column_names)
    part = part.drop_columns(sorted(unknown))
    retyped = {field.name for field in part.schema if field.type != schema.field(field.name).type}
    if retyped or (unknown and missing):
        raise ValueError(f"it has columns of its own: {', '.join(sorted(retyped or unknown))}")
    return part


def delete(paths: Iterable[Location]) -> None:
    """Delete files that may be gone already."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: path.unlink(missing_ok=True), paths))


@contextmanager
def storage_errors(root: Location) -> Iterator[None]:
    """Turn an `OSError` into an `InputError` that says, in one sentence, that the storage does not answer."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{root} cannot be read and written ({first_sentence(error)}): fix the path, its rights, the network or "
            "the credentials, or use another folder."
        ) from None
