"""A sweep's results folder: immutable Parquet part-files, written aside and renamed, readable at any moment.

    RESULTS/<sweep>/
        sweep.json                       the sweep's settings, versions, machine
        status.json                      what runs, as last recorded by the driver (see `raysat.status`)
        trials/<cell_id>.parquet         one row
        curves/<cell_id>.parquet         one row an evaluation
        ntk/<init_id>.parquet            one row
        {trials,curves,ntk}/merged-*     the same rows of many finished cells
        checkpoints/<cell_id>.pt         of unfinished trials only
        data/<data set>/                 its files, if other nodes may need them
        set-aside/{trials,curves,ntk}/   rows that are no longer part of the results, because their cells run again

The driver is the only writer. A cell's row is written after its curve, so that a cell with a row is complete. The
folder is local, or an address of an object store (see `raysat.storage.files`); `raysat.storage.partfiles` says how rows
are stored in it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, fields
from itertools import count
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pandas as pd

from raysat.errors import InputError
from raysat.messages.credentials import hidden
from raysat.spec.phases import branch_in
from raysat.spec.settings import SHARED, named
from raysat.spec.sweep import Sweep
from raysat.storage.belongings import strangers, unfinished
from raysat.storage.files import Location, location, remove, walk, write_aside
from raysat.storage.heard import heard
from raysat.storage.partfiles import KEYS, SET_ASIDE, PartFiles, Row, delete, storage_errors
from raysat.storage.schema import FINISHED, TABLES
from raysat.storage.versions import is_read, present, record_brought_up
from raysat.user_code.identity import differences

__all__ = ["Store", "storage_errors"]

log = logging.getLogger(__name__)

COMPACT_AFTER = 256
"""Number of part-files of single cells that are merged into one. Default: 256; reading them takes a fraction of a
second."""

IN_ROWS = ("sweep", "dataset", "preprocessing", "n", "n_test", "loss", "dtype", "sampling", "precision", "budget")
"""The columns of `trials` in which all rows of a folder agree: they replace a `sweep.json` that is lost."""

_LINEARIZED = '"linearized": true'
"""In `model_options`: the kernel of a linearized model never changes, and has no statistics along the run."""


class Store:
    """One sweep's results folder: its files, and what they say about the sweep.

    Args:
        root: The folder, `RESULTS/<sweep>`, or its address.

    Attributes:
        parts: Its part-files, which contain the rows.
    """

    def __init__(self, root: Location | str) -> None:
        self.root = location(root)
        self.parts = PartFiles(self.root)

    def read(self, table: str, columns: list[str] | None = None) -> pd.DataFrame:
        """Read all rows of a table; cf. `PartFiles.read`."""
        return self.parts.read(table, columns)

    def update(self, rows: Mapping[str, Row]) -> None:
        """Change values in rows of `trials`; cf. `PartFiles.update`."""
        self.parts.update(rows)

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
        """The sweep's settings, as JSON."""
        return self.root / "sweep.json"

    def open(self, sweep: Sweep, about: Mapping[str, Any], resolved: Mapping[str, Any]) -> None:
        """Create the folder, or open the existing one, and record the sweep in it.

        Part-files that cannot be read are set aside under a name that Parquet readers ignore.

        Args:
            sweep: The sweep. Its axes may have grown since the last run; what all cells share may not have changed.
            about: Versions, machine, commit.
            resolved: Sizes of the data set as used.

        Raises:
            InputError: The folder holds another sweep, an older schema, or something else, or cannot be written.
        """
        self.check(sweep, resolved)
        with storage_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            if self.record() is None and self.sweep_file.exists():
                log.warning("%s cannot be read: it is set aside and written again.", self.sweep_file)
                self.put_aside(self.sweep_file)
            # Before anything else: if the process ends at any later point, this is recognized as a results folder.
            self._write_record({"schema": present(), "sweep": asdict(sweep), "resolved": dict(resolved), **about})
            for folder in (*(self.root / table for table in TABLES), self.checkpoints):
                folder.mkdir(exist_ok=True)
                delete(path for path in folder.iterdir() if unfinished(path.name))
            delete(path for path in self.root.iterdir() if unfinished(path.name))
            finished = self.settle()
            self.make_schemas()
            self.parts.uncompacted = finished & {path.stem for path in self.parts.paths("trials")}

    def _write_record(self, record: Mapping[str, Any]) -> None:
        write_aside(self.sweep_file, lambda path: path.write_text(json.dumps(hidden(record), indent=2) + "\n"))

    def settle(self) -> set[str]:
        """Recover from earlier runs, and set aside rows of unfinished cells in merged part-files.

        Returns:
            The ids of the finished cells.
        """
        stored = self._json(self.sweep_file)
        if _is_record(stored) and is_read(version := stored.get("schema")) and version != present():
            self._write_record(record_brought_up(stored))  # first: an earlier raysat must not read what follows
        self.parts.settle()
        finished = self.finished()
        if again := set().union(*self.parts.merged.values()) - finished:
            self.set_aside(again)
        return finished

    def make_schemas(self) -> None:
        """Give each table an empty part-file with its schema, so that it can be read before the first cell ends."""
        for table in TABLES:
            (self.root / table).mkdir(exist_ok=True)
            if not (self.root / table / "schema.parquet").exists():
                self.parts.write(table, "schema", [])

    def check(self, sweep: Sweep, resolved: Mapping[str, Any]) -> None:
        """Raise `InputError` unless the folder is new or holds cells of this very sweep.

        If its `sweep.json` is missing or cannot be read, the rows say to which sweep they belong.
        """
        with storage_errors(self.root):
            if not self.root.exists() or not any(self.root.iterdir()):
                return
        record = self.record()
        if record is None and (strangers := self.strangers()):
            raise self._of_others(f"is not a results folder of a sweep (it has {strangers[0]})")
        if record is not None and record.get("schema") != present():
            raise self._of_others(f"has schema version {record.get('schema')}, this raysat writes {present()}")
        now = {**json.loads(json.dumps(asdict(sweep))), **resolved}
        if record is None:
            now |= {"sweep": sweep.name, "budget": sweep.budget}
            before = self._said_by_rows(now)
        else:
            # a setting that the record lacks was added later: it had its default's effect
            defaults = {field.name: None if field.default is MISSING else field.default for field in fields(sweep)}
            before = {**json.loads(json.dumps(defaults, default=asdict)), **record["sweep"], **record["resolved"]}
            before = {name: before.get(name) for name in ("name", *named(type(sweep), SHARED), *resolved)}
        files = differences(before.pop("code", None), now.get("code"))
        changed = [name for name, value in before.items() if value != now.get(name)]
        different = [f"{name} {before[name]!r} there, {now.get(name)!r} here" for name in changed]
        if files:
            different.append(f"{', '.join(files)} changed since")
        if different:
            raise self._of_others(f"holds another sweep ({', '.join(different)})")

    def _of_others(self, what: str) -> InputError:
        """The error of a folder that is not this sweep's; --fresh is offered only if all files are raysat's."""
        remedy = "use another --results or --set name=NAME" + ", or --fresh to start over" * (not self.strangers())
        return InputError(f"{self.root} {what}: {remedy}.")

    def strangers(self) -> list[str]:
        """Return the files that raysat did not make (`raysat.storage.belongings`), as relative paths."""
        with storage_errors(self.root):
            return strangers(walk(self.root))

    def _said_by_rows(self, now: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of the sweep by its rows; if they disagree, the first value that differs from `now`."""
        trials, said = self.read("trials"), {}
        for name in IN_ROWS:
            values = trials[name].dropna().unique().tolist()
            said[name] = next((value for value in values if value != now[name]), now[name])
        return said

    def put_aside(self, path: Location) -> Location:
        """Move a file or folder into `SET_ASIDE`, under a name not yet used there. Returns its new place."""
        folder = self.root / SET_ASIDE
        folder.mkdir(parents=True, exist_ok=True)
        taken = {entry.name for entry in folder.iterdir()}
        target: Any = folder / next(name for k in count(1) if (name := f"{path.name}-{k}") not in taken)
        path.rename(target)
        return target

    def record(self) -> dict | None:
        """The content of `sweep.json` under the present schema; None if it is missing or not a sweep's record.

        A version that this raysat cannot read is returned as it is stored.

        Raises:
            InputError: The storage does not answer.
        """
        record = self._json(self.sweep_file)
        return record_brought_up(record) if _is_record(record) else None

    def _json(self, path: Location) -> Any:
        """Read a JSON file; None if it is missing, or not JSON."""
        with storage_errors(self.root):
            try:
                return json.loads(path.read_bytes())
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
                return None

    def write_status(self, status: Mapping[str, Any]) -> None:
        """Store what runs."""
        write_aside(
            self.root / "status.json", lambda path: path.write_text(json.dumps(hidden(status), indent=2) + "\n")
        )

    def status(self) -> dict | None:
        """Return the driver's last record (`raysat.storage.heard`); None if it is missing or cannot be read."""
        try:
            return heard(self._json(self.root / "status.json"))
        except InputError:
            return None

    def readable(self) -> dict:
        """The content of `sweep.json` of a folder that this raysat can read.

        Raises:
            InputError: The folder is not a results folder, or is of another schema version.
        """
        record = self.record()
        if record is None:
            raise InputError(
                f"{self.root} holds no sweep (no readable sweep.json): give a results folder, RESULTS/NAME, or "
                "run its sweep again, which writes it."
            )
        if record.get("schema") != present():
            raise InputError(
                f"{self.root} has schema version {record.get('schema')}, this raysat reads {present()}: "
                "use the raysat that wrote it, or start the sweep over."
            )
        return record

    def set_aside(self, cell_ids: Iterable[str], init_ids: Iterable[str] = ()) -> None:
        """Move the rows of some cells out of all tables (`PartFiles.set_aside`), and delete the cells' checkpoints."""
        cells = set(cell_ids)
        for cell_id in cells:
            (self.checkpoints / f"{cell_id}.pt").unlink(missing_ok=True)
        self.parts.set_aside(cells, init_ids)

    def clear(self) -> None:
        """Delete the folder."""
        remove(self.root)

    def write_trial(self, row: Row, curve: Sequence[Row], ntk: Sequence[Row] = ()) -> None:
        """Store a finished cell: its curve first, then the row that makes it count; then delete its checkpoint."""
        cell_id = str(row["cell_id"])
        if ntk:
            self.parts.write("ntk", cell_id, ntk)
        self.parts.write("curves", cell_id, curve)
        self.parts.write("trials", cell_id, [row])
        if row["status"] in FINISHED:
            with suppress(OSError):  # a checkpoint that stays takes space, and does the row no harm
                (self.checkpoints / f"{cell_id}.pt").unlink(missing_ok=True)
            self.parts.uncompacted.add(cell_id)
            if len(self.parts.uncompacted) >= COMPACT_AFTER:
                try:
                    self.parts.merge()
                except OSError as error:  # tried again with the next cell; its rows are safe as they are
                    log.warning("%s: merging part-files failed: %s", self.root, str(error).partition("\n")[0])

    def write_ntk(self, row: Row) -> None:
        """Store an initialization's statistics."""
        self.parts.write("ntk", str(row["init_id"]), [row])

    def finished(self) -> set[str]:
        """The ids of the cells that need not be run again.

        These have a finished row, a curve, and statistics at each iteration of `ntk_at` that they have reached.
        """
        trials = self.read("trials", ["cell_id", "status", "model_options", "training"])
        curves = self.read("curves", [*KEYS["curves"], "train_loss"])
        ended = trials[trials["status"].isin(FINISHED)]
        # `-` binds more tightly than `&`
        return set(ended["cell_id"]) & set(curves["cell_id"]) - self._without_statistics(ended, curves)

    def _without_statistics(self, trials: pd.DataFrame, curves: pd.DataFrame) -> set[str]:
        """The cells that lack statistics of `ntk_at`; none are due where the loss is not finite, and of a branch."""
        ntk_at = ((self.record() or {}).get("sweep") or {}).get("ntk_at")
        if not ntk_at:
            return set()
        moving = trials[~trials["model_options"].str.contains(_LINEARIZED, regex=False, na=False)]
        moving = moving[moving["training"].fillna("sgd").map(branch_in).isna()]
        due = curves[curves["iteration"].isin(ntk_at) & (curves["iteration"] > 0) & np.isfinite(curves["train_loss"])]
        due = due[due["cell_id"].isin(moving["cell_id"])]
        there = self.read("ntk", KEYS["ntk"])
        # "left_only": an evaluation at one of `ntk_at` without a row in `ntk`
        missing = due.merge(there, "left", ["cell_id", "iteration"], indicator=True)
        return set(missing.loc[missing["_merge"] == "left_only", "cell_id"])

    def statistics(self) -> dict[str, dict[str, Any]]:
        """The rows of `ntk` at initialization, by init_id."""
        rows = self.read("ntk")
        initial: list[Any] = rows[rows["iteration"] == 0].to_dict("records")
        return {row["init_id"]: row for row in initial}


def _is_record(stored: Any) -> TypeGuard[dict[str, Any]]:
    """Return whether the content of `sweep.json` is a sweep's record."""
    return isinstance(stored, dict) and all(isinstance(stored.get(name), dict) for name in ("sweep", "resolved"))


def _absolute(folder: Location) -> Location:
    return folder.resolve() if isinstance(folder, Path) else folder
