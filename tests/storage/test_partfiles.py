"""Part-files that are moved, copied, removed or replaced between two runs: their content counts, and not their name."""

import pandas as pd
import pytest

from raysat import Sweep, mlp, theory
from raysat.storage.partfiles import KEYS
from raysat.storage.store import Store
from raysat.sweep import main

SWEEP = Sweep(
    name="s", dataset="digits", models=[mlp()], widths=[8], batch_sizes=[1], stepsizes=[theory()], iterations=10
)
RESOLVED = {"n": 100, "n_test": 50, "code": ""}
CELLS = ["a", "b", "c", "d", "e"]


def opened(root):
    store = Store(root)
    store.open(SWEEP, {"raysat": "x"}, RESOLVED)
    return store


def write(store, cell_id):
    curve = [{"cell_id": cell_id, "iteration": t, "train_loss": 1.0 / (1 + t)} for t in range(3)]
    store.write_trial({"cell_id": cell_id, "status": "completed", "batch_size": 1}, curve)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Three cells merged, two not, and two rows of statistics."""
    monkeypatch.setattr("raysat.storage.store.COMPACT_AFTER", 3)
    store = opened(tmp_path / "s")
    for init_id in ("i", "j"):
        store.write_ntk({"init_id": init_id, "iteration": 0, "gamma": 1.0})
    for cell_id in CELLS:
        write(store, cell_id)
    assert len(list(store.root.glob("trials/merged-*"))) == 1
    return store.root


def rows(root, table):
    """A table as anyone reads it, sorted, with each row once."""
    found = pd.read_parquet(root / table)
    assert not found.duplicated(KEYS[table]).any()
    return found.sort_values(KEYS[table], ignore_index=True)


def swap(one, other):
    aside = one.with_name(".aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


NAMES = ["d.parquet", "e.parquet", "schema.parquet", "merged"]


@pytest.mark.parametrize("table", ["trials", "curves"])
@pytest.mark.parametrize(("one", "other"), [(a, b) for a in NAMES for b in NAMES if a < b])
def test_swapped_part_files_lose_and_double_no_row_then_or_later(root, table, one, other, monkeypatch):
    before = {name: rows(root, name) for name in KEYS}
    found = [next((root / table).glob(f"{name}*")) for name in (one, other)]
    swap(*found)
    store = opened(root)
    assert store.finished() == set(CELLS)
    write(store, "f")  # one more: those that are not merged yet are merged
    write(store, "g")
    for name in KEYS:
        pd.testing.assert_frame_equal(rows(root, name).iloc[: len(before[name])], before[name])


@pytest.mark.parametrize("name", ["a copy.parquet", "0 copy.parquet", "merged-copy.parquet"])
@pytest.mark.parametrize("of", ["d.parquet", "merged", "i.parquet"])
def test_a_copy_beside_its_part_file_doubles_no_row(root, of, name):
    before = {table: rows(root, table) for table in KEYS}
    for table in KEYS:
        for path in list((root / table).glob(f"{of}*")):
            (root / table / name).write_bytes(path.read_bytes())
    opened(root)
    for table in KEYS:
        pd.testing.assert_frame_equal(rows(root, table), before[table])


def test_what_is_left_of_cells_that_run_again_doubles_none_of_their_rows(root):
    before = {table: rows(root, table) for table in KEYS}
    next(root.glob("trials/merged-*")).unlink()
    store = opened(root)
    assert store.finished() == {"d", "e"}
    for cell_id in "abc":
        write(store, cell_id)
    for table in KEYS:
        pd.testing.assert_frame_equal(rows(root, table), before[table])
    assert len(list(root.glob("set-aside/curves/*.parquet"))) == 1


@pytest.mark.parametrize("instead", ["a folder", "a dangling link"])
def test_what_is_no_file_in_the_place_of_a_part_file_is_set_aside_like_a_damaged_one(root, instead):
    path = root / "curves" / "d.parquet"
    path.unlink()
    path.mkdir() if instead == "a folder" else path.symlink_to(root / "nowhere")
    assert Store(root).finished() == set(CELLS) - {"d"}
    write(opened(root), "d")
    assert len(rows(root, "curves")) == 3 * len(CELLS)
    assert path.with_name("_d.parquet").is_symlink() or path.with_name("_d.parquet").is_dir()


def test_a_checkpoint_that_cannot_be_dropped_costs_no_row(root):
    store = opened(root)
    (store.checkpoints / "f.pt").mkdir()
    write(store, "f")
    assert "f" in store.finished()


SMALL = """
from raysat import Sweep, fixed, mlp
sweep = Sweep(name="small", dataset="digits", n_train=16, models=[mlp(1)], widths=[4], batch_sizes=[1, 16],
              stepsizes=[fixed(0.1)], iterations=3, seeds=2)
"""


def test_of_a_finished_sweep_damaged_statistics_come_again_and_what_was_left_is_brought_in_order(tmp_path, capsys):
    (tmp_path / "small.py").write_text(SMALL)
    command = [str(tmp_path / "small.py"), "--results", str(tmp_path), "--inline"]
    assert main(command) == 0
    root = tmp_path / "small"
    whole = rows(root, "ntk")
    damaged = sorted(root.glob("ntk/[0-9a-f]*.parquet"))[0]
    damaged.write_bytes(damaged.read_bytes()[:99])
    left = next(root.glob("trials/[0-9a-f]*.parquet"))
    left.with_name("merged-left.parquet").write_bytes(left.read_bytes())
    capsys.readouterr()
    assert main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "0 of 4 cells to run, statistics of 1 initializations to compute again" in said
    stable = ["init_id", "gamma", "k_op", "b_star", "w0_digest"]
    pd.testing.assert_frame_equal(rows(root, "ntk")[stable], whole[stable])
    assert len(rows(root, "trials")) == 4
    left.with_name("merged-again.parquet").write_bytes(next(root.glob("trials/merged-*")).read_bytes())
    assert main(command) == 0
    assert "all 4 cells are finished" in capsys.readouterr().out
    assert len(rows(root, "trials")) == 4
