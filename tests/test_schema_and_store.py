import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from raysat import InputError, Sweep, mlp, theory
from raysat import store as store_module
from raysat.files import write_aside
from raysat.schema import SCHEMA_VERSION, TABLES, arrow_schema, as_markdown
from raysat.store import Store

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
    page = Path(__file__).parents[1] / "docs" / "columns.md"
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
    monkeypatch.setattr("raysat.store.LOOSE", 4)


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
        patch.setattr("raysat.store.ThreadPoolExecutor", OneByOne)
        patch.setattr(store_module, "write_aside", until_death(write_aside))
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
    list_parts = Store._parts

    def then_merge(self, table):
        paths = list_parts(self, table)
        if next(listings, 0) is None:
            fill(store, [3])
        return paths

    monkeypatch.setattr(Store, "_parts", then_merge)
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
