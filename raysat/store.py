"""A sweep's results folder: immutable Parquet part-files, written aside and renamed, readable at any moment.

    RESULTS/<sweep>/
        sweep.json                  what was asked, versions, machine
        trials/<cell_id>.parquet    one row
        curves/<cell_id>.parquet    one row an evaluation
        ntk/<init_id>.parquet       one row
        checkpoints/<cell_id>.pt    of unfinished trials only

The driver is the only writer. A cell's row is written after its curve, so that a cell with a row has everything.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raysat.files import write_aside
from raysat.schema import FINISHED, SCHEMA_VERSION, TABLES, arrow_schema
from raysat.spec import SHARED, InputError, Sweep

log = logging.getLogger(__name__)

Row = Mapping[str, object]


class Store:
    """One sweep's results folder.

    Args:
        root: The folder, `RESULTS/<sweep>`.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    @property
    def checkpoints(self) -> Path:
        """The folder of unfinished trials' checkpoints."""
        return self.root / "checkpoints"

    @property
    def sweep_file(self) -> Path:
        """What was asked, as JSON."""
        return self.root / "sweep.json"

    def open(self, sweep: Sweep, about: Mapping[str, object], resolved: Mapping[str, object]) -> None:
        """Make the folder, or take up the one that is there, and record the sweep in it.

        Args:
            sweep: The sweep. Its axes may have grown since the last run; what all cells share may not have changed.
            about: Versions, machine, commit.
            resolved: Sizes of the data set as used.

        Raises:
            InputError: The folder holds another sweep, an older schema, or something else.
        """
        self.check(sweep, resolved)
        for table in TABLES:
            folder = self.root / table
            folder.mkdir(parents=True, exist_ok=True)
            # An empty part-file with the whole schema: the folder can be read before the first cell is done.
            if not (folder / "schema.parquet").exists():
                self._write(table, "schema", [])
        self.checkpoints.mkdir(exist_ok=True)
        record = {"schema": SCHEMA_VERSION, "sweep": asdict(sweep), "resolved": dict(resolved), **about}
        write_aside(self.sweep_file, lambda path: path.write_text(json.dumps(record, indent=2) + "\n"))

    def check(self, sweep: Sweep, resolved: Mapping[str, object]) -> None:
        """Raise `InputError` unless the folder is new or holds cells of this very sweep."""
        remedy = "use another --results or --set name=NAME, or --fresh to start over"
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
        before = {**record["sweep"], **record["resolved"]}
        names = ("name", *SHARED, *resolved)
        if changed := [name for name in names if before.get(name) != now.get(name)]:
            differences = ", ".join(f"{name} {before.get(name)!r} there, {now.get(name)!r} here" for name in changed)
            raise InputError(f"{self.root} holds another sweep ({differences}): {remedy}.")

    def record(self) -> dict | None:
        """The content of `sweep.json`, or None where there is none that can be read."""
        try:
            record = json.loads(self.sweep_file.read_text())
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) and "sweep" in record and "resolved" in record else None

    def clear(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.root)

    def write_trial(self, row: Row, curve: Sequence[Row], ntk: Sequence[Row] = ()) -> None:
        """Store a finished cell: its curve first, then the row that makes it count, and drop its checkpoint."""
        cell_id = str(row["cell_id"])
        if ntk:
            self._write("ntk", cell_id, ntk)
        self._write("curves", cell_id, curve)
        self._write("trials", cell_id, [row])
        if row["status"] in FINISHED:
            (self.checkpoints / f"{cell_id}.pt").unlink(missing_ok=True)

    def write_ntk(self, row: Row) -> None:
        """Store an initialization's statistics."""
        self._write("ntk", str(row["init_id"]), [row])

    def _write(self, table: str, key: str, rows: Sequence[Row]) -> None:
        schema = arrow_schema(table)
        if unknown := {name for row in rows for name in row} - set(schema.names):
            raise ValueError(f"{table} has no column {', '.join(sorted(unknown))}")
        data = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
        write_aside(self.root / table / f"{key}.parquet", lambda path: pq.write_table(data, path))

    def read(self, table: str) -> pd.DataFrame:
        """All rows of `trials`, `curves` or `ntk`; a part-file that cannot be read is left out with a warning."""
        parts = []
        for path in sorted((self.root / table).glob("[!.]*.parquet")):
            try:
                parts.append(pq.ParquetFile(path).read())
            except (OSError, pa.ArrowInvalid) as error:
                log.warning("%s cannot be read and is left out: %s", path, str(error).splitlines()[0])
        schema = arrow_schema(table)
        return pa.concat_tables([schema.empty_table(), *parts], promote_options="default").to_pandas()

    def finished(self) -> set[str]:
        """The ids of the cells that need not be run again."""
        trials = self.read("trials")
        return set(trials.loc[trials["status"].isin(FINISHED), "cell_id"])

    def statistics(self) -> dict[str, dict[str, float]]:
        """The rows of `ntk` at initialization, by init_id."""
        rows = self.read("ntk")
        return {row["init_id"]: row for row in rows[rows["iteration"] == 0].to_dict("records")}
