"""The doctor names what is wrong with a results folder; repaired, it is sound, and the sweep completes it."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raysat import Sweep, asynchronous, mlp, theory
from raysat.doctor import look, main
from raysat.storage.checkpoint import Checkpoint, Progress
from raysat.storage.checkup import findings
from raysat.storage.recall import sweep_of
from raysat.storage.schema import arrow_schema
from raysat.storage.store import Store
from raysat.sweep import main as sweep_main

TINY = """
from raysat import Sweep, grid, mlp, theory
sweep = Sweep(name="tiny", dataset="digits", n_train=16, n_test=4, models=[mlp(1)], widths=[2], batch_sizes=[1, 16],
              stepsizes=[theory(), *grid([0.1, 0.2])], iterations=20, ntk_at=[2], spectrum=4)
"""
COMPARED = ["cell_id", "status", "batch_size", "stepsize", "eta", "loss_init", "loss_final", "h", "b_star"]


def run(path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raysat.report.finish", lambda *_: None)
        return sweep_main([str(path), "--results", str(path.parent / "results"), "--inline", "--quiet"])


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    path = tmp_path_factory.mktemp("doctor") / "tiny.py"
    path.write_text(TINY)
    assert run(path) == 0
    return path.parent


@pytest.fixture
def folder(once, tmp_path):
    """The results, of which nothing is wrong, beside their sweep file."""
    return Path(shutil.copytree(once, tmp_path / "copy")) / "results" / "tiny"


def table(folder, name="trials"):
    return pd.read_parquet(folder / name)


def ids(folder):
    return sorted(path.stem for path in (folder / "trials").glob("[0-9a-f]*.parquet"))


def doctor(folder, capsys, *options):
    code = main([str(folder), *options])
    captured = capsys.readouterr()
    assert captured.err == ""
    return code, captured.out


def test_a_sound_folder_is_sound_and_says_what_a_next_run_does(folder, capsys):
    code, said = doctor(folder, capsys)
    assert code == 0
    assert said == (
        f"{folder}: sound.\n"
        "The next run of the sweep: 6 cells have ended and stay; those that the sweep asks for beyond them run.\n"
    )


def test_what_it_verifies_is_there_to_be_verified(folder):
    """Else all ids could be passed over."""
    contents = look(Store(folder))
    kinds = {finding.kind for finding in findings(changed(contents, seed=1))}
    assert kinds == {"another id"}


def changed(contents, **values):
    path, part = next((path, part) for path, part in contents.parts["trials"].items() if len(part))
    parts = contents.parts | {"trials": contents.parts["trials"] | {path: part.assign(**values)}}
    return contents.__class__(**{**vars(contents), "parts": parts})


@pytest.mark.parametrize("values", [{"batch_size": 16}, {"width": 3}, {"stepsize": "theory(1)"}, {"n": 9}])
def test_a_row_whose_columns_are_not_those_of_its_id_is_named(folder, values):
    contents = look(Store(folder))
    part = next(part for part in contents.parts["trials"].values() if len(part))
    values = {name: 1 if part[name].iloc[0] == 16 else value for name, value in values.items()}
    values = {name: "grid" if part[name].iloc[0] == value else value for name, value in values.items()}
    (finding,) = findings(changed(contents, **values))
    assert finding.kind == "another id"
    assert part["cell_id"].iloc[0] in finding.text


def bit(path):
    content, column = bytearray(path.read_bytes()), pq.ParquetFile(path).metadata.row_group(0).column(0)
    first = column.dictionary_page_offset or column.data_page_offset
    content[first + column.total_compressed_size - 1] ^= 16  # in the values themselves: few of the other bits count
    path.write_bytes(content)


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def swap_columns(path):
    rows = pq.read_table(path)
    size = 16 if rows["batch_size"][0].as_py() == 1 else 1
    place = rows.schema.get_field_index("batch_size")
    pq.write_table(rows.set_column(place, rows.schema.field(place), pa.array([size])), path)


def shorten(path):
    rows = pq.read_table(path)
    pq.write_table(rows.slice(0, len(rows) - 1), path)


def merged(folder, names=(0, 1)):
    """A part-file of several cells beside those of each."""
    parts = [pq.read_table(folder / "trials" / f"{ids(folder)[k]}.parquet") for k in names]
    pq.write_table(pa.concat_tables(parts), folder / "trials" / f"merged-{len(names)}{names[0]}.parquet")


def orphan_statistics(folder):
    path = next((folder / "ntk").glob("[0-9a-f]*.parquet"))
    rows = pq.read_table(path)
    rows = rows.slice(0, 1).set_column(0, "cell_id", pa.array([None], pa.string()))
    place = rows.schema.get_field_index("init_id")
    rows = rows.set_column(place, "init_id", pa.array(["0" * 16])).cast(arrow_schema("ntk"))
    pq.write_table(rows, folder / "ntk" / f"{'0' * 16}.parquet")


def checkpoint(folder, cell_id, iteration=3, name=None):
    store = Checkpoint(folder / "checkpoints" / f"{cell_id}.pt")
    assert store.save(Progress(iteration=iteration, weights={"w": torch.zeros(2)}))
    if name:
        (folder / "checkpoints" / f"{cell_id}.pt").rename(folder / "checkpoints" / f"{name}.pt")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


TEMPORARY = ("trials/.aa.parquet.123", "checkpoints/.bb.pt.9", ".sweep.json.4")

HARM = {
    "a damaged row": ("damaged file", lambda f: bit(f / "trials" / f"{ids(f)[0]}.parquet")),
    "a damaged curve": ("damaged file", lambda f: bit(f / "curves" / f"{ids(f)[0]}.parquet")),
    "damaged statistics": ("damaged file", lambda f: halve(min((f / "ntk").glob("[0-9a-f]*")))),
    "a damaged schema": ("damaged file", lambda f: (f / "trials" / "schema.parquet").write_bytes(b"PAR1")),
    "no schema": ("no schema", lambda f: (f / "curves" / "schema.parquet").unlink()),
    "no folder of trials": ("orphans", lambda f: shutil.rmtree(f / "trials")),
    "no folder of curves": ("no curve", lambda f: shutil.rmtree(f / "curves")),
    "no folder of statistics": ("no schema", lambda f: shutil.rmtree(f / "ntk")),
    "a row without its curve": ("no curve", lambda f: (f / "curves" / f"{ids(f)[1]}.parquet").unlink()),
    "a curve without its row": ("orphans", lambda f: (f / "trials" / f"{ids(f)[1]}.parquet").unlink()),
    "a shorter curve": ("another curve", lambda f: shorten(f / "curves" / f"{ids(f)[0]}.parquet")),
    "statistics of no cell": ("orphans", orphan_statistics),
    "rows twice": ("rows twice", merged),
    "rows in two merged files": ("rows twice", lambda f: [merged(f, (0, 1)), merged(f, (1, 2, 3))]),
    "a copy": ("misnamed file", lambda f: shutil.copy(min((f / "trials").iterdir()), f / "trials" / "ab.parquet")),
    "another's columns": ("another id", lambda f: swap_columns(f / "trials" / f"{ids(f)[0]}.parquet")),
    "temporary files": ("unfinished files", lambda f: [(f / name).write_bytes(b"half") for name in TEMPORARY]),
    "a stale checkpoint": ("stale checkpoints", lambda f: checkpoint(f, ids(f)[0])),
    "a damaged checkpoint": ("damaged file", lambda f: (f / "checkpoints" / "ab.pt").write_bytes(b"PK\3\4 half")),
    "another's checkpoint": ("damaged file", lambda f: checkpoint(f, "ab", name="cd")),
    "a checkpoint beyond T": ("strange checkpoint", lambda f: checkpoint(f, "ab", 21)),
    "a probe": ("unfinished files", lambda f: (f / "checkpoints" / ".probe-0a").touch()),
    "status": ("no status", lambda f: (f / "status.json").write_text("{")),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
def test_what_is_wrong_is_named_repaired_and_completed(folder, capsys, harm):
    kind, act = HARM[harm]
    before = table(folder).set_index("cell_id")
    act(folder)
    files = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, said = doctor(folder, capsys)
    assert code == 1
    assert any(line.startswith(f"{kind}: ") for line in said.splitlines()), said
    assert {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files, "it only looks"
    code, said = doctor(folder, capsys, "--repair")
    assert code == 0, said
    assert "Repaired: " in said
    assert doctor(folder, capsys)[0] == 0
    assert run(folder.parent.parent / "tiny.py") == 0
    after = table(folder).set_index("cell_id").loc[before.index]
    pd.testing.assert_frame_equal(after[COMPARED[1:]], before[COMPARED[1:]])
    assert len(table(folder)) == len(before)
    assert doctor(folder, capsys)[0] == 0


def test_all_at_once(folder, capsys):
    before = table(folder).set_index("cell_id")
    for kind in ("a damaged row", "a row without its curve", "statistics of no cell", "temporary files", "status"):
        HARM[kind][1](folder)
    merged(folder, (2, 3))
    swap_columns(folder / "trials" / f"{ids(folder)[4]}.parquet")
    assert doctor(folder, capsys, "--repair")[0] == 0
    assert run(folder.parent.parent / "tiny.py") == 0
    pd.testing.assert_frame_equal(
        table(folder).set_index("cell_id").loc[before.index][COMPARED[1:]], before[COMPARED[1:]]
    )
    assert doctor(folder, capsys)[0] == 0


MOVED_BY_ROWS = {"curves", "ntk"}


def test_nothing_is_deleted_by_a_repair(folder, capsys):
    for kind in ("a damaged row", "temporary files", "a stale checkpoint", "status"):
        HARM[kind][1](folder)
    contents = sorted(
        path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.parent.name not in MOVED_BY_ROWS
    )
    rows = {name: len(table(folder, name)) for name in MOVED_BY_ROWS}
    assert doctor(folder, capsys, "--repair")[0] == 0
    kept = sorted(
        path.read_bytes() for path in folder.rglob("*") if path.is_file() and not MOVED_BY_ROWS & {*path.parts}
    )
    assert kept == contents
    for name, count in rows.items():
        assert sum(len(pd.read_parquet(path)) for path in folder.rglob(f"{name}/*.parquet")) == count


@pytest.mark.parametrize(("content", "kind"), [("{", "no record"), ('{"schema": 1, "sweep": 3}', "no record")])
def test_a_record_that_cannot_be_read_is_made_anew_by_the_next_run(folder, capsys, content, kind):
    (folder / "sweep.json").write_text(content)
    code, said = doctor(folder, capsys, "--repair")
    assert code == 1
    assert f"Left: {kind}: " in said
    assert run(folder.parent.parent / "tiny.py") == 0
    assert doctor(folder, capsys)[0] == 0
    assert len(table(folder)) == 6


def test_what_it_cannot_repair_it_leaves_and_names(folder, capsys):
    edit(folder / "sweep.json", schema=0)
    (folder / "notes.txt").write_text("mine")
    code, said = doctor(folder, capsys, "--repair")
    assert code == 1
    assert "another schema: schema version 0" in said
    assert "foreign files: notes.txt" in said
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_failed_cell_and_one_that_is_on_its_way_are_no_findings(folder, capsys):
    cell_id = ids(folder)[0]
    row = pq.read_table(folder / "trials" / f"{cell_id}.parquet").to_pylist()[0]
    Store(folder).write_trial({**row, "status": "failed", "error": "boom"}, [])
    checkpoint(folder, cell_id, 7)
    code, said = doctor(folder, capsys)
    assert code == 0
    assert "5 cells have ended and stay" in said
    assert "1 that failed among them" in said
    assert f"Of them go on {cell_id} from iteration 7." in said


def test_beside_a_driver_at_work_nothing_is_repaired(folder, capsys, monkeypatch):
    monkeypatch.setattr("raysat.doctor.other_driver", lambda store: "somebody works here: wait.")
    HARM["a probe"][1](folder)
    assert main([str(folder), "--repair"]) == 2
    assert capsys.readouterr().err == "raysat: somebody works here: wait.\n"
    assert (folder / "checkpoints" / ".probe-0a").exists()


OWN = """
from torch import nn

def build(width, input_shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))
"""


def test_the_users_code_is_compared_where_its_file_is_named(tmp_path, capsys):
    (tmp_path / "my_net.py").write_text(OWN)
    path = tmp_path / "own.py"
    path.write_text(TINY.replace('"tiny"', '"own"').replace("[mlp(1)]", '["my_net:build"]'))
    assert run(path) == 0
    folder = tmp_path / "results" / "own"
    assert doctor(folder, capsys, "--file", str(path))[0] == 0
    (tmp_path / "my_net.py").write_text(OWN.replace("outputs))", "outputs, bias=False))"))
    assert doctor(folder, capsys)[0] == 0, "it runs no code unless told to"
    code, said = doctor(folder, capsys, "--file", str(path))
    assert code == 1
    assert "other code: my_net.py changed since the results were made" in said


def test_a_file_that_was_imported_while_a_cell_ran_is_compared_too(tmp_path, capsys):
    (tmp_path / "my_net.py").write_text(
        OWN.replace("    return", "    import my_options\n\n    return").replace(
            "outputs))", "outputs, bias=my_options.BIAS))"
        )
    )
    (tmp_path / "my_options.py").write_text("BIAS = True\n")
    path = tmp_path / "own.py"
    path.write_text(TINY.replace('"tiny"', '"own"').replace("[mlp(1)]", '["my_net:build"]'))
    assert run(path) == 0
    folder = tmp_path / "results" / "own"
    assert doctor(folder, capsys, "--file", str(path))[0] == 0
    (tmp_path / "my_options.py").write_text("BIAS = False\n")
    code, said = doctor(folder, capsys, "--file", str(path))
    assert code == 1
    assert "other code: my_options.py changed since the results were made" in said


@pytest.mark.parametrize("name", ["nowhere", "thesis"])
def test_another_folder_is_one_sentence(tmp_path, capsys, name):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    assert main([str(tmp_path / name)]) == 2
    assert (
        capsys.readouterr().err == f"raysat: {tmp_path / name} holds no sweep: give a results folder, RESULTS/NAME.\n"
    )


def test_a_sweep_is_what_its_record_says():
    sweep = Sweep("s", "digits", [mlp(2)], [1, 4], [theory()], samples=64, widths=[4], trainings=[asynchronous(4)])
    store = Store(Path(os.devnull))
    record = {"sweep": json.loads(json.dumps(vars(sweep), default=vars))}
    assert sweep_of(record) == sweep
    assert sweep_of({"sweep": record["sweep"] | {"models": 3}}) is None
    assert store.record() is None
