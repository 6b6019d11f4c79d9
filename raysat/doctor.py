"""`python -m raysat.doctor RESULTS/NAME`: check whether a results folder is sound, and say what to do if it is not.

It verifies checksums and ids, looks for duplicates and for rows without their counterparts, and reads checkpoints and
records (`raysat.storage.checkup`). Without `--repair` nothing is changed; with it, faulty files and rows are moved into
`set-aside/`, and nothing is deleted. The next run of the sweep computes what is missing.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd
import pyarrow as pa
from rich.text import Text

from raysat.driver import sweepfile
from raysat.driver.plan import plan
from raysat.errors import InputError
from raysat.messages.command import command, program
from raysat.messages.failures import first_sentence
from raysat.messages.terminal import Terminal
from raysat.status import other_driver
from raysat.storage.checkpoint import Progress, read
from raysat.storage.checkup import Contents, Finding, findings
from raysat.storage.files import Location, walk
from raysat.storage.partfiles import checked, storage_errors
from raysat.storage.schema import FAILED, FINISHED, TABLES
from raysat.storage.store import Store
from raysat.user_code.identity import differences

T = TypeVar("T")


def look(store: Store, code: tuple[str, ...] = ()) -> Contents:
    """Read the content of a results folder.

    Args:
        store: The folder.
        code: The user's files that have changed since, if that was checked.

    Raises:
        InputError: The folder is not a results folder, or cannot be read.
    """
    with storage_errors(store.root):
        names = sorted(walk(store.root)) if store.root.exists() else []
        record = store.record()
        if record is None and (not names or store.strangers()):
            raise InputError(f"{store.root} holds no sweep: give a results folder, RESULTS/NAME.")
        files = {name: name.rpartition("/")[2] for name in names}
        damaged: dict[str, str] = {}
        parts: dict[str, dict[str, pd.DataFrame]] = {table: {} for table in TABLES}
        for table, found in parts.items():
            for name in (name for name, file in files.items() if name == f"{table}/{file}" and _is_part(file)):
                rows = _whole(damaged, name, lambda name=name, table=table: rows_of(store, name, table).to_pandas())
                if rows is not None:
                    found[name] = rows
        checkpoints: dict[str, Progress] = {}
        for name, file in files.items():
            if name == f"checkpoints/{file}" and file.endswith(".pt") and file[0] != ".":
                cell_id = file.removesuffix(".pt")
                progress = _whole(damaged, name, lambda file=file: read_checkpoint(store, file))
                if progress is not None:
                    checkpoints[cell_id] = progress
    return Contents(names, record, store.status() is not None, parts, damaged, checkpoints, code)


def _is_part(file: str) -> bool:
    return file.endswith(".parquet") and file[0] not in "._"


def rows_of(store: Store, name: str, table: str) -> pa.Table:
    """Return the rows of a part-file, with its checksums verified."""
    return checked((store.root / table / name.rpartition("/")[2]).read_bytes(), table)


def read_checkpoint(store: Store, file: str) -> Progress:
    """Read a checkpoint and verify its checksums; its name and its content must name the same cell."""
    return read((store.checkpoints / file).read_bytes(), file.removesuffix(".pt"))


def _whole(damaged: dict[str, str], name: str, load: Callable[[], T]) -> T | None:
    """Load a file; if it is damaged, note the reason and return None."""
    try:
        return load()
    except (PermissionError, MemoryError):
        raise
    except InputError as error:  # written by a later raysat: not damaged, and left in place
        raise InputError(f"{name} {error}") from None
    except Exception as error:  # a damaged file may cause any error in its reader
        damaged[name] = first_sentence(error)
        return None


def repair(store: Store) -> int:
    """Move faulty files and rows into `set-aside/`, delete nothing, and return the number of findings repaired.

    Raises:
        InputError: The folder cannot be written.
    """
    repaired: set[str] = set()
    while found := [one for one in findings(look(store)) if one.can_be_repaired and str(one) not in repaired]:
        touched: set[str] = set()
        with storage_errors(store.root):
            for finding in found:
                if touched & {*finding.files, *finding.rows} or (touched and finding.cells):
                    continue  # the rest of it is found by the next look
                _repair(store, finding)
                touched |= {*finding.files, *finding.rows, *finding.cells}
                repaired.add(str(finding))
    return len(repaired)


def _repair(store: Store, finding: Finding) -> None:
    for name in finding.files:
        store.put_aside(_path(store, name))
    for name, rows in finding.rows.items():
        table = name.partition("/")[0]
        store.parts.take_out(table, _path(store, name), rows_of(store, name, table), pa.array(rows.to_numpy(bool)))
    if finding.cells:
        store.set_aside(finding.cells)
    if finding.makes_schema:
        store.make_schemas()


def _path(store: Store, name: str) -> Location:
    path = store.root
    for part in filter(None, name.split("/")):
        path /= part
    return path


def outlook(contents: Contents) -> list[str]:
    """Return what the next run of the sweep will do, as far as the folder shows."""
    statuses = contents.rows("trials").get("status", pd.Series(dtype=str))
    counts = {status: int(statuses.isin(names).sum()) for status, names in (("ended", FINISHED), (FAILED, [FAILED]))}
    said = f"{counts['ended']} cells have ended and stay; those that the sweep asks for beyond them run"
    said += f", {counts[FAILED]} that failed among them" * bool(counts[FAILED])
    at = [f"{cell_id} from iteration {progress.iteration}" for cell_id, progress in contents.checkpoints.items()]
    more = f", and {len(at) - 3} more" if len(at) > 3 else ""
    return [f"The next run of the sweep: {said}."] + [f"Of them go on {', '.join(at[:3])}{more}."] * bool(at)


def changed_code(store: Store, file: Path) -> tuple[str, ...]:
    """Return the user's files that have changed since the results were made; run the sweep file for that."""
    record = store.record()
    before = record and record["resolved"].get("code")
    laid_out = plan(sweepfile.load(file), file.parent, before)
    changed = set(differences(before, laid_out.data["code"]))
    for table in ("trials", "ntk"):
        changed.update(*map(laid_out.present.changed, store.read(table).to_dict("records")))
    return tuple(sorted(changed))


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Return the exit code: 0 if the folder is sound, 1 if there are findings, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog=program("raysat.doctor"), description="Say whether a results folder is sound, and repair it if asked."
    )
    parser.add_argument("root", metavar="RESULTS/NAME", help="the sweep's results folder, or its address")
    parser.add_argument("--repair", action="store_true", help="move what is wrong into set-aside/; nothing is deleted")
    parser.add_argument("--file", type=Path, help="the sweep file, which is run: compare its own modules as well")
    options = parser.parse_args(argv)
    log = logging.getLogger("raysat")
    before = log.level
    log.setLevel(logging.ERROR)  # its warnings are among the findings
    try:
        return _main(options)
    finally:
        log.setLevel(before)


def _main(options: argparse.Namespace) -> int:
    store, console = Store(options.root), Terminal(highlight=False)
    code = changed_code(store, options.file) if options.file else ()
    contents = look(store, code)
    found = list(findings(contents))
    for finding in found:
        console.print(Text(str(finding)), soft_wrap=True)
    if options.repair and any(finding.can_be_repaired for finding in found):
        if busy := other_driver(store):
            raise InputError(busy)
        repaired = repair(store)
        contents = look(store, code)
        found = list(findings(contents))
        console.print(Text(f"Repaired: {repaired}; what was moved lies in {store.root / 'set-aside'}."), soft_wrap=True)
        for finding in found:
            console.print(Text(f"Left: {finding}"), soft_wrap=True)
    console.print(Text(f"{store.root}: {f'{len(found)} findings' if found else 'sound'}."), soft_wrap=True)
    for line in outlook(contents):
        console.print(Text(line), soft_wrap=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
