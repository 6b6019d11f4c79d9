"""Results of an earlier raysat, whose statistics have no certificates: what stays, what runs again, what is said."""

import math
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysat.driver.outdated import CERTIFICATES, Consequences, is_certified
from raysat.storage.schema import arrow_schema
from raysat.storage.store import Store
from raysat.sweep import main

SWEEP = """
from raysat import Sweep, fixed, fixed_fraction, grid, mlp, theory
sweep = Sweep(name="old", dataset="digits", models=[mlp(1)], widths=[8], batch_sizes=[4, 64], n_train=64, n_test=0,
              stepsizes=[fixed(0.1), theory(), fixed_fraction(), grid([0.05]), grid(auto=True)], iterations=25, seeds=2)
"""
NEW = (
    *("statistics_dtype", "frozen_norms", "off", "error", "way", "gamma_check", "k_op_check", "k_op_upper"),
    *("noise_check", "kernel_check", "w0_digest", "base_stepsize"),
)
"""The columns that the earlier raysat did not write."""

MADE = ("theory(1)", "fixed_fraction(1)", "grid_relative")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A finished sweep, its folder and its file."""
    folder = tmp_path_factory.mktemp("old")
    (folder / "sweep.py").write_text(SWEEP)
    assert main([str(folder / "sweep.py"), "--results", str(folder / "results"), "--inline", "--quiet"]) == 0
    return folder


@pytest.fixture
def old(results, tmp_path):
    """The same as the earlier raysat has left it."""
    root = tmp_path / "results" / "old"
    for path in (results / "results" / "old").rglob("*"):
        if path.is_file() and path.suffix in (".parquet", ".json"):
            target = root / path.relative_to(results / "results" / "old")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    (root / "checkpoints").mkdir()
    (tmp_path / "sweep.py").write_text(SWEEP)
    for path in [*(root / "ntk").glob("*.parquet"), *(root / "trials").glob("*.parquet")]:
        part = pq.read_table(path)
        _write(part.drop_columns([name for name in NEW if name in part.column_names]), path)
    return tmp_path


def _write(table, path):
    pq.write_table(table, path, write_page_checksum=True)


def tamper(folder, factor):
    """Let gamma of one seed be wrong, and all trials' rows with it. Returns its init_id."""
    root = folder / "results" / "old"
    path = next(path for path in sorted((root / "ntk").glob("*.parquet")) if pq.read_table(path).num_rows)
    (row,) = pq.read_table(path).to_pylist()
    _write(pa.Table.from_pylist([row | {"gamma": factor * row["gamma"]}], schema=pq.read_schema(path)), path)
    for path in (root / "trials").glob("*.parquet"):
        rows = pq.read_table(path).to_pylist()
        wrong = [r | {"gamma": factor * r["gamma"]} if r["init_id"] == row["init_id"] else r for r in rows]
        _write(pa.Table.from_pylist(wrong, schema=pq.read_schema(path)), path)
    return row["init_id"]


def again(folder):
    return main([str(folder / "sweep.py"), "--results", str(folder / "results"), "--inline"])


def trials(folder):
    return Store(folder / "results" / "old").read("trials").set_index("cell_id").sort_index()


def test_where_they_agree_all_cells_stay_and_a_line_says_so(results, old, capsys):
    before = trials(old)
    assert again(old) == 0
    printed = capsys.readouterr().out
    said = "Statistics of 2 initializations, stored without certificates, were computed again and agree: their cells"
    assert said in printed
    assert "0 of " in printed
    after, ntk = trials(old), Store(old / "results" / "old").read("ntk")
    assert ntk["w0_digest"].notna().all()
    assert (after["finished_at"] == before["finished_at"]).all()
    assert not (old / "results" / "old" / "set-aside").exists()
    assert again(old) == 0
    assert "are finished" in capsys.readouterr().out
    columns = [name for name in after.columns if name not in ("sweep", "attempts")]
    pd.testing.assert_frame_equal(after[columns], trials(results)[columns], check_exact=False, rtol=1e-9)


@pytest.mark.parametrize("part", ["uncompacted", "merged"])
def test_where_gamma_was_wrong_what_was_made_of_it_runs_again_and_is_set_aside(results, old, capsys, part):
    init_id = tamper(old, 3.0)
    root = old / "results" / "old"
    if part == "merged":
        store = Store(root)
        store.parts.uncompacted = store.finished()
        store.parts.merge()
        assert list((root / "trials").glob("merged-*"))
    before = trials(old)
    mine = before["init_id"] == init_id
    made = before["stepsize"].isin(MADE)
    assert again(old) == 0
    printed = " ".join(capsys.readouterr().out.split())
    said = rf"seed \d: an earlier run stored gamma .* and k_op .*; they are .*: {(mine & made).sum()} cells whose"
    assert re.search(said, printed)
    after = trials(old)
    ran = after.index[~after["finished_at"].isin(before["finished_at"])]
    assert set(ran) >= set(before.index[mine & made]) & set(after.index)
    assert not set(ran) & set(before.index[~(mine & made)])
    aside = pd.concat([pd.read_parquet(path) for path in (root / "set-aside" / "trials").iterdir()])
    assert set(aside["cell_id"]) == set(before.index[mine & made])
    right = trials(results)
    assert set(after.index) == set(right.index)
    for name in ("h", "eta", "gamma", "b_star", "beta", "eta_beta", "eta_limit"):
        np.testing.assert_allclose(after[name], right[name], rtol=1e-9, err_msg=name)
    assert len(pd.read_parquet(root / "trials")) == len(after), "plain pandas sees each row once"
    assert again(old) == 0
    assert "are finished" in capsys.readouterr().out


def test_a_driver_that_dies_after_the_rows_were_set_aside_does_not_lose_the_statistics(old, capsys, monkeypatch):
    tamper(old, 3.0)
    with monkeypatch.context() as patch:

        def die(self, row):
            raise KeyboardInterrupt

        patch.setattr(Store, "write_ntk", die)
        assert again(old) == 130
    before = trials(old)
    assert again(old) == 0
    assert "an earlier run stored" in capsys.readouterr().out
    assert len(trials(old)) > len(before)


ROW = {"dataset": "d", "model": "m", "width": 8, "seed": 0, "k_op": 1.0, "k_op_residual": 1e-3}
TRIAL = {"batch_size": 4, "n": 64, "sampling": "without_replacement", "training": "sgd"}
TRIAL |= {"eta": 0.5, "status": "completed"}


def consequences(before, now, tolerance=1e-3):
    made = pd.DataFrame(
        [TRIAL | {"cell_id": label, "stepsize": label} for label in ("fixed(1)", "grid", *MADE)]
        + [TRIAL | {"cell_id": "failed", "stepsize": "theory(2)", "status": "failed"}]
    )
    return Consequences.of(ROW | before, ROW | now, made, tolerance)


@pytest.mark.parametrize("apart", [0.0, 0.004, 0.006, -0.006, 2.0])
def test_five_residuals_are_the_tolerance(apart):
    found = consequences({"gamma": 10 * (1 + apart)}, {"gamma": 10.0})
    assert found.again == (set(MADE) if abs(apart) > 0.005 else set())
    assert bool(found.line) == bool(found.again)
    assert set(found.rows) == {"fixed(1)", "grid", "failed", *MADE} - found.again
    assert found.rows["fixed(1)"]["gamma"] == 10.0
    # Lemma 3.1 for b = 4 of 64: gamma/4 (1 - 3/63) + 3 * 64 / (4 * 63) k_op
    beta = 10 / 4 * 60 / 63 + 3 * 64 / (4 * 63)
    assert found.rows["grid"]["eta_beta"] == pytest.approx(0.5 * beta)
    assert found.rows["grid"]["eta_limit"] == pytest.approx(2.0)
    assert "loss_init" not in found.rows["grid"]


def test_statistics_that_are_none_any_more_leave_none_in_the_rows():
    none = {"gamma": None, "k_op": None, "base_stepsize": 0.1, "k_op_residual": None}
    found = consequences({"gamma": 10.0, "base_stepsize": math.nan}, none)
    assert found.again == set(MADE)
    assert "they are none and none" in found.line
    for name in ("gamma", "b_star", "beta", "eta_beta", "eta_limit"):
        assert found.rows["fixed(1)"][name] is None


def test_what_is_certified():
    row = {"method": "gram", "w0_digest": "ab 1 2", **dict.fromkeys(CERTIFICATES, 1e-9)}
    assert is_certified(row)
    assert is_certified({"method": "refused", "w0_digest": "ab 1 2"})
    for name in ("w0_digest", *CERTIFICATES):
        assert not is_certified(row | {name: None})
        assert not is_certified(row | {name: math.nan})
    assert not is_certified({"method": "refused"})
    assert set(NEW) <= set(arrow_schema("ntk").names)
