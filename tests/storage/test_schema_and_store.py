import json
import math
import os
import platform
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysat import InputError, Sweep, mlp, theory
from raysat.status import SILENCE, other_driver
from raysat.status import main as status_main
from raysat.storage import partfiles
from raysat.storage.columns import as_markdown
from raysat.storage.files import write_aside
from raysat.storage.partfiles import PartFiles
from raysat.storage.schema import SCHEMA_VERSION, TABLES, arrow_schema
from raysat.storage.store import Store

SWEEP = Sweep(
    name="s", dataset="digits", models=[mlp()], widths=[8], batch_sizes=[1], stepsizes=[theory()], iterations=10
)
RESOLVED = {"n": 100, "n_test": 50, "code": ""}
ISSUED = """
    cell_id sweep status dataset preprocessing n n_outputs model depth width activation parameters batch_size seed
    stepsize eta iterations iterations_done loss_init loss_final h gamma gamma_mean gamma_frobenius k_op k_op_residual
    k_samples b_star b_star_thm33 noise_scale test_loss test_accuracy train_accuracy distance_from_init seconds
    steps_per_second device hostname raysat_version
"""


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "s")
    store.open(SWEEP, {"raysat": "x"}, RESOLVED)
    return store


def trial(cell_id, status="completed", **values):
    return {"cell_id": cell_id, "status": status, "batch_size": 1, **values}


def curve(cell_id):
    return [{"cell_id": cell_id, "iteration": t, "train_loss": 1.0 / (1 + t)} for t in range(3)]


def test_the_columns_that_users_rely_on_are_there():
    assert set(ISSUED.split()) <= set(arrow_schema("trials").names)
    curves = "cell_id iteration samples seconds train_loss test_loss test_accuracy"
    assert set(curves.split()) <= set(arrow_schema("curves").names)


@pytest.mark.parametrize("table", TABLES)
def test_every_column_says_what_it_is(table):
    schema = arrow_schema(table)
    assert len(set(schema.names)) == len(schema.names)
    for field in schema:
        assert field.metadata[b"doc"].endswith(b".")
        assert b"unit" in field.metadata


def test_the_page_of_the_columns_is_current():
    page = Path(__file__).parents[2] / "docs" / "columns.md"
    assert page.read_text() == as_markdown(), "python -m raysat.schema > docs/columns.md"


def test_pandas_reads_the_folder_at_any_moment(store):
    before = pd.read_parquet(store.root / "trials")
    assert list(before.columns) == arrow_schema("trials").names
    assert len(before) == 0
    store.write_trial(trial("a", h=0.5), [{"cell_id": "a", "iteration": 0, "train_loss": 1.0}])
    (store.root / "trials" / ".b.parquet.123").write_bytes(b"half a file")
    after = pd.read_parquet(store.root / "trials")
    assert after["cell_id"].tolist() == ["a"]
    assert after["h"].tolist() == [0.5]
    assert pd.read_parquet(store.root / "curves")["train_loss"].tolist() == [1.0]


def test_part_files_carry_units_and_the_version(store):
    store.write_trial(trial("a"), [])
    schema = pq.read_schema(store.root / "trials" / "a.parquet")
    assert schema.metadata[b"raysat_schema"] == str(SCHEMA_VERSION).encode()
    assert schema.field("k_op").metadata[b"unit"] == b"1/eta"


def test_only_finished_cells_count_as_finished(store):
    for status in ("completed", "target_reached", "diverged", "failed"):
        store.write_trial(trial(status, status), curve(status))
    store.write_trial(trial("without a curve"), [])
    assert store.finished() == {"completed", "target_reached", "diverged"}


def test_a_checkpoint_goes_with_its_row_unless_the_cell_failed(store):
    for cell_id in ("a", "b"):
        (store.checkpoints / f"{cell_id}.pt").touch()
    store.write_trial(trial("a"), [])
    store.write_trial(trial("b", "failed"), [])
    assert [path.name for path in store.checkpoints.iterdir()] == ["b.pt"]


def test_a_column_that_is_not_declared_is_refused(store):
    with pytest.raises(ValueError, match="no column speed"):
        store.write_trial(trial("a", speed=1), [])


def test_a_corrupt_part_file_is_named_and_left_out(store, caplog):
    store.write_trial(trial("a"), [])
    (store.root / "trials" / "b.parquet").write_bytes(b"PAR1 and then nothing")
    assert store.read("trials")["cell_id"].tolist() == ["a"]
    assert "b.parquet cannot be read and is left out" in caplog.text
    assert (store.root / "trials" / "b.parquet").exists()


def holes(content, size=8):
    """The content with a hole, as a file system leaves it, or one bit flipped, in ever other places."""
    for at in range(0, len(content), 61):
        yield content[:at] + bytes(len(content[at : at + size])) + content[at + size :]
        yield content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]


@pytest.mark.parametrize("part", ["loose", "merged"])
def test_a_damaged_part_file_is_never_read_as_something_else(store, monkeypatch, caplog, part):
    monkeypatch.setattr("raysat.storage.store.COMPACT_AFTER", 2 if part == "merged" else 9)
    for cell_id in ("a", "b"):
        store.write_trial(trial(cell_id, h=0.1), [point | {"seconds": 0.1} for point in curve(cell_id) * 9])
    path = next(store.root.glob("curves/merged-*" if part == "merged" else "curves/b.parquet"))
    whole, content = store.read("curves"), path.read_bytes()
    left_out = 0
    for damaged in holes(content):
        path.write_bytes(damaged)
        found = Store(store.root).read("curves")
        if set(found["cell_id"]) == ({"a"} if part == "loose" else set()):
            left_out += 1
        else:
            pd.testing.assert_frame_equal(found, whole)
    assert left_out > len(content) / 61  # most of them: what has no use for a reader may change unseen
    assert f"{path.name} cannot be read and is left out" in caplog.text


def test_a_part_file_with_columns_of_its_own_is_left_out_and_one_of_a_newer_raysat_is_not(store, caplog):
    store.write_trial(trial("a", h=0.5), curve("a"))
    path = store.root / "trials" / "a.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("speed", pa.array([1.0])), path)
    assert store.read("trials")["h"].tolist() == [0.5]
    pq.write_table(table.drop_columns(["loss_init"]), path)
    assert store.read("trials")["h"].tolist() == [0.5]
    for strange in (table.rename_columns({"h": "g"}), table.set_column(0, "cell_id", pa.array([1]))):
        pq.write_table(strange, path)
        assert store.read("trials").empty
    assert "a.parquet cannot be read and is left out: it has columns of its own: g" in caplog.text


def test_the_sweep_is_recorded(store):
    record = json.loads((store.root / "sweep.json").read_text())
    assert record["schema"] == SCHEMA_VERSION
    assert record["sweep"]["iterations"] == 10
    assert record["resolved"] == RESOLVED
    assert record["raysat"] == "x"


def test_the_axes_of_a_sweep_may_grow(store):
    store.open(replace(SWEEP, widths=[8, 16], seeds=3, batch_sizes=[1, 2]), {}, RESOLVED)
    assert store.record()["sweep"]["widths"] == [8, 16]


def test_a_folder_from_before_a_field_was_added_holds_its_default(store):
    record = json.loads(store.sweep_file.read_text())
    del record["sweep"]["gradient_norm"]
    store.sweep_file.write_text(json.dumps(record))
    store.check(SWEEP, record["resolved"])
    with pytest.raises(InputError, match="gradient_norm False there, True here"):
        store.check(replace(SWEEP, gradient_norm=True), record["resolved"])


def test_another_sweep_in_the_folder_is_refused(store):
    with pytest.raises(InputError, match=r"iterations 10 there, 11 here.*--fresh"):
        store.open(replace(SWEEP, iterations=11), {}, RESOLVED)
    with pytest.raises(InputError, match="n 100 there, 99 here"):
        store.open(SWEEP, {}, RESOLVED | {"n": 99})


def test_an_older_schema_is_refused(store):
    record = store.record() | {"schema": SCHEMA_VERSION - 1}
    store.sweep_file.write_text(json.dumps(record))
    with pytest.raises(InputError, match=f"schema version {SCHEMA_VERSION - 1}"):
        store.open(SWEEP, {}, RESOLVED)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"other": 1}'])
def test_a_folder_of_something_else_is_refused(tmp_path, content):
    root = tmp_path / "thesis"
    root.mkdir()
    (root / "chapter1.tex").touch()
    if content is not None:
        (root / "sweep.json").write_text(content)
    with pytest.raises(InputError, match="not a results folder"):
        Store(root).open(SWEEP, {}, RESOLVED)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")

    def fail(aside):
        aside.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_aside(path, fail)
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def fill(store, cells):
    for k in cells:
        store.write_trial(trial(f"{k:03x}", batch_size=k), curve(f"{k:03x}"))


def files(store, table="trials"):
    return {path.name for path in (store.root / table).iterdir()}


@pytest.fixture
def merges_four(monkeypatch):
    monkeypatch.setattr("raysat.storage.store.COMPACT_AFTER", 4)


def test_part_files_of_finished_cells_are_merged_and_nothing_changes_for_readers(store, merges_four):
    store.write_trial(trial("fff", "failed"), [])
    store.write_ntk({"init_id": "abc", "iteration": 0})
    fill(store, range(10))
    for table in ("trials", "curves"):
        names = files(store, table)
        assert sum(name.startswith("merged-") for name in names) == 2
        assert names >= {"schema.parquet", "fff.parquet", "008.parquet", "009.parquet"}
        assert len(names) == 2 + 4
    trials = pd.read_parquet(store.root / "trials").sort_values("cell_id", ignore_index=True)
    assert trials["cell_id"].tolist() == [*(f"{k:03x}" for k in range(10)), "fff"]
    assert trials["batch_size"].tolist() == [*range(10), 1]
    assert len(pd.read_parquet(store.root / "curves")) == 30
    assert len(store.finished()) == 10
    store.write_trial(trial("fff"), curve("fff"))  # run again, at the same name
    assert pd.read_parquet(store.root / "trials").set_index("cell_id").loc["fff", "status"] == "completed"


def test_the_next_run_merges_what_the_last_one_left(store, merges_four):
    fill(store, range(3))
    again = Store(store.root)
    again.open(SWEEP, {}, RESOLVED)
    fill(again, [3])
    assert len(files(store)) == 2
    assert len(store.finished()) == 4


@pytest.mark.parametrize("deaths", range(1, 12))
def test_a_crash_anywhere_in_a_merge_loses_and_doubles_nothing(store, merges_four, monkeypatch, deaths):
    """The driver dies before its k-th act on the folder, after which the same command is given again."""
    fill(store, range(3))
    acts = iter(range(deaths))

    def until_death(act):
        def mortal(*arguments, **options):
            if next(acts, None) is None:
                raise KeyboardInterrupt
            return act(*arguments, **options)

        return mortal

    with monkeypatch.context() as patch:
        patch.setattr("raysat.storage.partfiles.ThreadPoolExecutor", OneByOne)
        patch.setattr(partfiles, "write_aside", until_death(write_aside))
        patch.setattr(Path, "unlink", until_death(Path.unlink))
        with suppress(KeyboardInterrupt):
            fill(store, [3])
    again = Store(store.root)
    for table, count in (("trials", 1), ("curves", 3)):
        rows = again.read(table)
        assert not rows.duplicated(["cell_id", "iteration"] if table == "curves" else "cell_id").any()
        assert len(rows) in (3 * count, 4 * count)
    assert again.finished() >= {"000", "001", "002"}
    again.open(SWEEP, {}, RESOLVED)
    fill(again, {3} - {int(cell_id, 16) for cell_id in again.finished()})
    for table, count in (("trials", 4), ("curves", 12)):
        assert len(pd.read_parquet(store.root / table)) == count, "plain pandas sees each row once"


class OneByOne:
    """A pool without threads, so that acts have an order."""

    def __init__(self, *_):
        self.map = map

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_a_reader_in_the_midst_of_a_merge_sees_all_rows_once(store, merges_four, monkeypatch):
    fill(store, range(3))
    listings = iter([None])
    list_parts = PartFiles.paths

    def then_merge(self, table):
        paths = list_parts(self, table)
        if next(listings, 0) is None:
            fill(store, [3])
        return paths

    monkeypatch.setattr(PartFiles, "paths", then_merge)
    assert sorted(Store(store.root).read("trials")["cell_id"]) == ["000", "001", "002", "003"]


@pytest.mark.parametrize("table", ["trials", "curves"])
@pytest.mark.parametrize("part", ["loose", "merged"])
def test_the_cells_of_a_corrupt_part_file_are_run_again_and_the_file_is_kept(store, merges_four, caplog, table, part):
    fill(store, range(5))
    name = "004.parquet" if part == "loose" else next(name for name in files(store, table) if "merged" in name)
    lost = {"004"} if part == "loose" else {"000", "001", "002", "003"}
    path = store.root / table / name
    half = path.read_bytes()[:-9]
    path.write_bytes(half)
    again = Store(store.root)
    assert again.finished() == {f"{k:03x}" for k in range(5)} - lost
    assert f"{name} cannot be read and is left out" in caplog.text
    assert path.read_bytes() == half  # reading changes nothing
    again.open(SWEEP, {}, RESOLVED)
    assert path.with_name(f"_{name}").read_bytes() == half
    fill(again, [int(cell_id, 16) for cell_id in lost])
    assert len(again.read("trials")) == 5
    assert len(again.read("curves")) == 15
    after = Store(store.root)
    after.open(SWEEP, {}, RESOLVED)
    assert len(after.finished()) == 5
    assert len(pd.read_parquet(store.root / "trials")) == 5
    assert len(pd.read_parquet(store.root / "curves")) == 15


NTK_AT = (5, 10)


@pytest.fixture
def along(tmp_path):
    """The results of a sweep with statistics along its runs: cells that ended in each way there is."""
    store = Store(tmp_path / "along")
    store.open(replace(SWEEP, ntk_at=NTK_AT), {}, RESOLVED)
    ends = {"whole": (10, "completed", 1.0), "early": (5, "target_reached", 1.0), "lost": (10, "diverged", math.nan)}
    for name, (until, status, loss) in ends.items():
        points = [{"cell_id": name, "iteration": t, "train_loss": 1.0 if t < until else loss} for t in range(until + 1)]
        rows = [
            {"init_id": "i", "cell_id": name, "iteration": t}
            for t in NTK_AT
            if points[t:] and points[t]["train_loss"] == 1
        ]
        store.write_trial(trial(name, status), points, rows)
    linear = trial("linear", model_options='{"depth": 1, "linearized": true}')
    store.write_trial(linear, [{"cell_id": "linear", "iteration": t, "train_loss": 1.0} for t in (0, 5, 10)])
    return store


def test_cells_with_statistics_along_the_run_are_finished_with_as_many_as_they_can_have(along):
    assert along.finished() == {"whole", "early", "lost", "linear"}


@pytest.mark.parametrize("part", ["loose", "merged"])
def test_cells_whose_statistics_along_the_run_are_damaged_are_run_again(along, part):
    if part == "merged":
        along.parts.merge()
    path = next((along.root / "ntk").glob("merged-*" if part == "merged" else "whole.parquet"))
    path.write_bytes(path.read_bytes()[:-9])
    again = Store(along.root)
    rest = {"early", "lost", "linear"} if part == "loose" else {"linear"}
    assert again.finished() == rest
    again.open(replace(SWEEP, ntk_at=NTK_AT), {}, RESOLVED)
    assert again.finished() == rest
    assert path.with_name(f"_{path.name}").exists()


def test_cells_that_two_drivers_have_merged_are_kept_once(store, monkeypatch):
    monkeypatch.setattr("raysat.storage.store.COMPACT_AFTER", 99)
    fill(store, range(6))
    uncompacted = {path: path.read_bytes() for path in store.root.glob("*/00?.parquet")}
    for numbers in ([0, 1, 2, 3], [2, 3, 4], [4], [0, 1, 2, 3, 4]):  # each put back and merged by another
        store.parts.uncompacted = {f"{k:03x}" for k in numbers}
        store.parts.merged = {table: set() for table in TABLES}
        for path, content in uncompacted.items():
            path.write_bytes(content)
        store.parts.merge()
    assert len(pd.read_parquet(store.root / "trials")) > 6
    for _ in range(2):
        Store(store.root).open(SWEEP, {}, RESOLVED)
        assert sorted(pd.read_parquet(store.root / "trials")["cell_id"]) == [f"{k:03x}" for k in range(6)]
        assert len(pd.read_parquet(store.root / "curves")) == 18


def test_a_storage_that_stops_answering_is_one_sentence(store, monkeypatch, capsys):
    def read_bytes(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    for read in (lambda: store.read("trials"), store.finished, store.statistics):
        with pytest.raises(InputError, match=r"cannot be read and written \(.*Input/output error\): fix"):
            read()
    assert status_main([str(store.root)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def heard(store, **changes):
    """The record of a driver in mid-sweep, on another machine unless it says otherwise."""
    about = {"at": datetime.now(UTC).isoformat(), "hostname": "elsewhere", "pid": 1, "ended": 3, "total": 9}
    store.write_status(about | changes)


def test_another_driver_that_lives_is_named(store):
    assert other_driver(store, lambda _: pytest.fail("waited")) == ""
    heard(store)
    said = other_driver(store, lambda seconds: heard(store, ended=4))
    assert said.endswith(
        "process 1 on elsewhere runs this sweep: wait for its end or stop it, or use another --results."
    )
    assert other_driver(store, lambda _: None) == ""  # it was killed a moment ago


@pytest.mark.parametrize("gone", ["ended", "silent", "killed", "this one"])
def test_a_driver_that_is_gone_is_not_waited_for(store, gone):
    if gone == "ended":
        heard(store, ended=9)
    elif gone == "silent":
        heard(store, at=(datetime.now(UTC) - timedelta(seconds=SILENCE + 1)).isoformat())
    else:
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait(60)
        heard(store, hostname=platform.node(), pid=process.pid if gone == "killed" else os.getpid())
    assert other_driver(store, lambda _: pytest.fail("waited")) == ""
