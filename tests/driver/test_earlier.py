"""What a resumed sweep reads before its first cell."""

from collections import Counter
from functools import partial

import pytest

from raysat.driver import loop
from raysat.storage import partfiles
from raysat.storage.store import Store
from raysat.sweep import main

SWEEP = """
from raysat import Sweep, fixed, grid, mlp, theory
sweep = Sweep(name="tiny", dataset="{dataset}", n_train=16, n_test=8, models=[mlp(1)], widths=[4],
              batch_sizes=[1, 4, 16], stepsizes=[{stepsize}], iterations=8, seeds={seeds}{more})
"""
OWN = """
import torch
from raysat import Dataset

def load():
    x = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
    return Dataset(x[:16], x[:16, :1], x[16:], x[16:, :1])
"""
KINDS = {
    "plain": {"stepsize": "theory()"},
    "statistics along the run": {"stepsize": "fixed(0.05)", "more": ", ntk_at=[2, 4]"},
    "one that grows": {"stepsize": "grid(auto=True)"},
    "code of one's own": {"stepsize": "fixed(0.05)", "dataset": "my_points:load"},
}


@pytest.fixture
def reads(monkeypatch):
    """How often each part-file was read when the first job of this process began."""
    counts, first = Counter(), []

    def counted(path, read=partfiles._content):
        counts[path] += 1
        return read(path)

    def begun(job, act):
        first.append(dict(counts)) if not first else None
        return act(job)

    monkeypatch.setattr(partfiles, "_content", counted)
    for name in ("run_trials", "compute_statistics"):
        monkeypatch.setattr(loop, name, partial(begun, act=getattr(loop, name)))
    monkeypatch.setattr("raysat.report.finish", lambda *_: None)
    return counts, first


@pytest.mark.parametrize("merged", [False, True], ids=["uncompacted", "merged"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_part_file_is_read_once_before_the_first_cell(kind, merged, reads, tmp_path):
    counts, first = reads
    path, root = tmp_path / "tiny.py", tmp_path / "tiny"
    (tmp_path / "my_points.py").write_text(OWN)
    command = [str(path), "--results", str(tmp_path), "--inline", "--quiet"]
    fields = {"dataset": "digits", "more": "", **KINDS[kind]}
    path.write_text(SWEEP.format(**fields, seeds=2))
    assert main(command) == 0
    if merged:
        store = Store(root)
        store.parts.uncompacted = store.finished()
        store.parts.merge()
    there = {file for file in root.glob("*/*.parquet") if file.parent.name in partfiles.KEYS}
    ended = len(Store(root).finished())
    path.write_text(SWEEP.format(**fields, seeds=3))
    counts.clear()
    first.clear()
    assert main(command) == 0
    assert {file: first[0].get(file, 0) for file in there} == dict.fromkeys(there, 1)
    assert len(Store(root).finished()) > ended
    assert any(file.name.startswith("merged-") for file in there) == merged


def test_what_was_read_is_not_kept_beyond_the_first_cell(reads, tmp_path, monkeypatch):
    kept = []
    made = Store.__init__

    def watched(self, root):
        made(self, root)
        kept.append(self)

    monkeypatch.setattr(Store, "__init__", watched)
    monkeypatch.setattr(loop, "run_trials", lambda job: (_ for _ in ()).throw(AssertionError(held(kept))))
    (tmp_path / "tiny.py").write_text(SWEEP.format(dataset="digits", stepsize="fixed(0.05)", seeds=1, more=""))
    assert main([str(tmp_path / "tiny.py"), "--results", str(tmp_path), "--inline", "--quiet"]) == 1
    errors = Store(tmp_path / "tiny").read("trials")["error"]
    assert errors.str.contains("nothing is held").all()


def held(stores):
    return "something is held" if any(store.parts._kept is not None for store in stores) else "nothing is held"
