"""What version 0.1.0 wrote: its ids, its bits and its results stay what they are."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import raysat
from raysat.driver import sweepfile
from raysat.storage.store import Store
from raysat.sweep import main

TESTS = Path(__file__).parent
SWEEP = TESTS / "assets" / "recorded.py"
RESULTS = TESTS / "assets" / "results-0.1.0"
IDS = {
    "asgd": (36, "e704c3e1f654f7c7"),
    "cifar": (204, "a7f600e027b6b351"),
    "critical_batch": (144, "40d00e8c6f6a4b8f"),
    "generalization": (108, "ee5236d60e1087b0"),
    "linear": (90, "5daa5acc16418d53"),
    "mnist": (306, "cf38a486ec390d5d"),
    "digits": (120, "b7515a6e77c9c92c"),
    "quickstart": (90, "8302815ff4adb15e"),
    "shakespeare": (36, "2294cb537f84b193"),
    "svhn": (108, "f389a5b0c3032e04"),
    "width": (210, "ce16de91dcd668a4"),
}
"""How many cells each sweep file has, at n = 10^6, and the digest of their sorted ids, as version 0.1.0 makes them."""

CURVES = ["iteration", "train_loss", "test_loss"]


@pytest.fixture
def recorded(tmp_path):
    """A copy of the results that version 0.1.0 wrote."""
    shutil.copytree(RESULTS, tmp_path / "results")
    return tmp_path / "results"


@pytest.mark.parametrize("name", IDS)
def test_cell_ids_of_the_sweep_files(name):
    cells = sweepfile.load(TESTS.parent / "sweeps" / f"{name}.py").cells(10**6, 0)
    ids = "".join(sorted(cell.cell_id for cell in cells))
    assert (len(cells), hashlib.sha256(ids.encode()).hexdigest()[:16]) == IDS[name]


def test_results_of_version_0_1_0_go_on_without_a_cell_run_again(recorded, capsys):
    before = {path: path.read_bytes() for path in recorded.rglob("*.parquet")}
    assert main([str(SWEEP), "--results", str(recorded), "--inline"]) == 0
    assert "all 6 cells are finished" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before


def test_results_of_version_0_1_0_are_read(recorded):
    results = raysat.load(recorded / "recorded")
    assert len(results.trials) == 6
    assert len(results.ntk) == 2
    assert results.curves.groupby("cell_id").size().min() >= 2


def test_new_trials_have_the_recorded_bits(tmp_path, recorded):
    """To the bit where processor and PyTorch are those of the record; elsewhere they differ by rounding."""
    assert main([str(SWEEP), "--results", str(tmp_path / "new"), "--inline", "--quiet"]) == 0
    old, new = Store(recorded / "recorded"), Store(tmp_path / "new" / "recorded")
    before, now = (store.read("trials").set_index("cell_id").sort_index() for store in (old, new))
    assert now.index.tolist() == before.index.tolist()
    assert now["engine"].tolist() == before["engine"].tolist()
    # The library of the products tells processors of one name apart that have AVX-512 or lack it.
    same = _machine(old) == _machine(new) and now["matmul"].tolist() == before["matmul"].tolist()
    tolerance = 0 if same else 1e-4
    for cell_id in now.index:
        first, second = (_curve(store, cell_id) for store in (old, new))
        np.testing.assert_allclose(second, first, rtol=tolerance, atol=0)


def _machine(store: Store) -> tuple[str, str]:
    record = store.record()
    return record["machine"]["processor"], record["versions"]["torch"]


def _curve(store: Store, cell_id: str) -> np.ndarray:
    curves: pd.DataFrame = store.read("curves")
    return curves.loc[curves["cell_id"] == cell_id, CURVES].sort_values("iteration").to_numpy()
