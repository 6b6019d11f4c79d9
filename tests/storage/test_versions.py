"""Results of an earlier schema version are read, analyzed and gone on with, by a step that is invented here."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import raysat
from raysat import InputError
from raysat.analysis.command import main as analysis
from raysat.doctor import main as doctor
from raysat.storage import schema, versions
from raysat.storage.initial import Column
from raysat.storage.store import Store
from raysat.storage.versions import Step
from raysat.sweep import main

ASSETS = Path(__file__).parents[1] / "assets"
SWEEP = ASSETS / "recorded.py"


def renamed_and_added(table, part):
    """Of trials, `matmul` becomes `library`, and the passes over the data have a column."""
    if table != "trials":
        return part
    part = part.rename_columns(["library" if name == "matmul" else name for name in part.column_names])
    samples = pc.multiply(part["iterations_done"].cast(pa.float64()), part["batch_size"].cast(pa.float64()))
    return part.append_column("passes", pc.divide(samples, part["n"].cast(pa.float64())))


def noted(record):
    return {**record, "sweep": {**record["sweep"], "remark": "of version 1"}}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A copy of the results that version 0.1.0 wrote."""
    monkeypatch.setattr("raysat.report.finish", lambda *_: None)
    shutil.copytree(ASSETS / "results-0.1.0", tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def next_version(monkeypatch):
    """Lets this raysat be of the next schema version; what is returned makes it be of the present one again."""
    columns = [replace(one, name="library") if one.name == "matmul" else one for one in schema.TRIALS]
    with monkeypatch.context() as patch:
        patch.setattr(versions, "STEPS", (*versions.STEPS, Step(renamed_and_added, noted)))
        patch.setitem(schema.TABLES, "trials", (*columns, Column("passes", pa.float64(), "", "Of a test.")))
        schema.arrow_schema.cache_clear()

        def back():
            patch.undo()
            schema.arrow_schema.cache_clear()

        yield back
    schema.arrow_schema.cache_clear()


def content(root):
    return {path: path.read_bytes() for path in root.rglob("*.*")}


def version(path):
    return int(pq.read_schema(path).metadata[b"raysat_schema"])


def resumed(results):
    return main([str(SWEEP), "--results", str(results), "--inline"])


def test_results_of_version_0_1_0_are_analyzed(results, capsys):
    before = content(results)
    assert analysis([str(results / "recorded"), "--output", str(results.parent / "made")]) == 0
    out = capsys.readouterr().out
    assert "mlp" in out
    assert "resnet" in out
    assert content(results) == before


def test_reading_brings_up_and_writes_nothing(results, next_version):
    root, before = results / "recorded", content(results)
    old = pq.ParquetDataset(root / "trials").read().to_pandas().set_index("cell_id")
    rows = Store(root).read("trials").set_index("cell_id")
    assert "matmul" not in rows
    assert rows["library"].to_dict() == old["matmul"].to_dict()
    assert set(rows["passes"]) == {20 * 8 / 32}
    record = Store(root).readable()
    assert (record["schema"], record["sweep"]["remark"]) == (2, "of version 1")
    assert len(raysat.load(root).trials) == 6
    assert analysis([str(root), "--output", str(results.parent / "made")]) == 0
    assert content(results) == before


def test_the_next_run_goes_on_without_a_cell_run_again_and_plain_readers_see_one_schema(results, next_version, capsys):
    root = results / "recorded"
    assert resumed(results) == 0
    assert "all 6 cells are finished" in capsys.readouterr().out
    assert {version(path) for path in root.rglob("*.parquet")} == {2}
    assert json.loads((root / "sweep.json").read_text())["schema"] == 2
    plain = pd.read_parquet(root / "trials")
    assert list(plain.columns) == schema.arrow_schema("trials").names
    assert set(plain["passes"]) == {5.0}
    after = content(results)
    assert resumed(results) == 0
    assert content(results) == after


def test_a_folder_in_which_only_some_files_are_brought_up_is_read_as_one(results, next_version):
    root = results / "recorded"
    early = sorted((root / "trials").glob("*.parquet"))[:3]
    kept = {path: path.read_bytes() for path in early}
    assert resumed(results) == 0
    whole = Store(root).read("trials")
    for path, old in kept.items():
        path.write_bytes(old)
    pd.testing.assert_frame_equal(Store(root).read("trials"), whole)


def test_what_a_later_raysat_wrote_is_one_sentence_with_the_remedy_and_stays(results, next_version, capsys):
    root = results / "recorded"
    assert resumed(results) == 0
    next_version()
    before = content(results)
    for command, words in (
        (lambda: resumed(results), "has schema version 2, this raysat writes 1: use another --results"),
        (lambda: analysis([str(root)]), "has schema version 2, this raysat reads 1: use the raysat that wrote it"),
        (lambda: doctor([str(root), "--repair"]), "schema version 2, this raysat reads up to 1: use a newer raysat."),
    ):
        assert command() == 2
        assert words in " ".join(capsys.readouterr().err.split())
    with pytest.raises(InputError, match=r"\w+\.parquet has schema version 2, .*: use a newer raysat\.$"):
        Store(root).read("trials")
    assert content(results) == before


@pytest.mark.parametrize("wrong", [0, -1, "1", None, 1.0])
def test_a_version_that_no_raysat_has_written_is_none(wrong):
    assert not versions.is_read(wrong)
    assert versions.record_brought_up({"schema": wrong}) == {"schema": wrong}


def test_rows_of_a_version_that_no_raysat_has_written_are_no_rows():
    part = pa.table({"cell_id": ["a"]}).replace_schema_metadata({versions.KEY: b"0"})
    with pytest.raises(ValueError, match="schema version 0, which no raysat has written"):
        versions.rows_brought_up("trials", part)
