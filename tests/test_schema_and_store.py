import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from raysat import InputError, Sweep, mlp, theory
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


def test_the_columns_that_users_rely_on_are_there():
    assert set(ISSUED.split()) <= set(arrow_schema("trials").names)
    curves = "cell_id iteration samples seconds train_loss test_loss test_accuracy"
    assert arrow_schema("curves").names == curves.split()


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
        store.write_trial(trial(status, status), [])
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
