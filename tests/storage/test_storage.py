"""Sweeps whose results are on an object store, and on folders that nodes do not share."""

import io
import math
import os
from dataclasses import replace
from hashlib import sha256

import pandas as pd
import pooch
import pytest
from cluster.nodes import ray_nodes

from raysat import analysis, report
from raysat.data import sources
from raysat.driver.loop import _warn_where_unshared
from raysat.errors import InputError
from raysat.executor import OnRay
from raysat.report.__main__ import main as report_main
from raysat.sgd.engine import FusedEngine
from raysat.storage import retry
from raysat.storage.checkpoint import Checkpoint
from raysat.storage.files import location
from raysat.storage.store import Store
from raysat.sweep import main
from raysat.trial import train as trial_module
from raysat.trial.initial import compute_statistics
from raysat.trial.job import Job
from raysat.trial.train import run_trial

SMALL = """
from raysat import Sweep, mlp, theory
sweep = Sweep(name="small", dataset="digits", n_train=64, models=[mlp(1)], widths=[8], batch_sizes=[1, 8, 64],
              stepsizes=[theory()], iterations=20, seeds=2)
"""


@pytest.fixture
def sweep_file(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(SMALL)
    return str(path)


def everything(folder):
    """All bytes under an address."""
    for path in folder.iterdir():
        if path.suffix:
            yield path.read_bytes()
        else:
            yield from everything(path)


@pytest.mark.slow
def test_a_sweep_on_s3_is_run_resumed_analyzed_and_reported_and_keeps_no_secret(
    bucket, sweep_file, capsys, caplog, monkeypatch
):
    address = bucket.replace("s3://", "s3://AKIAHIDDEN:hush@") + "/results"
    command = [sweep_file, "--results", address + "?region=us-east-1", "--inline"]
    with monkeypatch.context() as patch:
        patch.setattr(report, "finish", lambda *_: None)
        assert main([*command, "--set", "seeds=1"]) == 0
    assert main(command) == 0
    store = Store(f"{bucket}/results/small")
    trials = store.read("trials")
    assert len(trials) == 6
    assert set(trials["status"]) == {"completed"}
    assert len(store.read("ntk")) == 2
    assert analysis.main([f"{address}/small"]) == 0
    said = capsys.readouterr().out
    assert "Sweep small: 3 of 6 cells to run" in said
    assert f"{bucket}/results/small/report.html" in said
    assert b"</html>" in (store.root / "report.html").read_bytes()
    fits = pd.read_parquet(io.BytesIO((store.root / "analysis.parquet").read_bytes()))
    assert not fits.empty
    assert len(list((store.root / "figures").glob("*.png"))) > 0
    kept = b"".join(everything(store.root))
    for secret in ("hush", "AKIAHIDDEN", os.environ["AWS_SECRET_ACCESS_KEY"]):
        assert secret.encode() not in kept
        assert secret not in said + caplog.text
    store.clear()
    assert not store.root.exists()


@pytest.mark.parametrize("command", [analysis.main, report_main])
def test_an_address_without_a_sweep_is_one_line(bucket, command, capsys):
    assert command([f"{bucket}/nothing"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_store_that_does_not_answer_is_one_line_before_any_work(sweep_file, bucket, capsys):
    assert main([sweep_file, "--results", "s3://no-such-bucket/x?region=us-east-1", "--inline"]) == 2
    captured = capsys.readouterr()
    assert "s3://no-such-bucket/x/small cannot be read and written" in captured.err
    assert captured.err.count("\n") == 1
    assert "completed" not in captured.out


def test_a_trial_resumes_from_s3_and_does_without_checkpoints_where_they_cannot_be_kept(make_cell, bucket, monkeypatch):
    monkeypatch.setattr(trial_module, "STEPS_AT_ONCE", 1)  # a step at a time, each with its checkpoint
    monkeypatch.setattr(trial_module, "CHECKPOINT_SHARE", math.inf)
    job = Job("s", make_cell().init, make_cell(), checkpoint_seconds=1e-9)
    job = replace(job, statistics=compute_statistics(job))
    whole, whole_curve, _ = run_trial(job)
    kept = replace(job, checkpoints=location(f"{bucket}/checkpoints"))
    steps = iter(range(100))

    def killed(engine, batches, run=FusedEngine.run):
        if next(steps) == 7:
            raise KeyboardInterrupt
        run(engine, batches)

    with monkeypatch.context() as patch:
        patch.setattr(FusedEngine, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            run_trial(kept)
    assert 0 < Checkpoint(kept.checkpoints / f"{job.cell.cell_id}.pt").load().iteration < 50
    row, curve, _ = run_trial(kept)
    assert [point["train_loss"] for point in curve] == [point["train_loss"] for point in whole_curve]
    assert row["attempts"] == 2
    row, *_ = run_trial(replace(job, checkpoints=location("s3://no-such-bucket/checkpoints?region=us-east-1")))
    assert (row["loss_final"], row["attempts"]) == (whole["loss_final"], 1)


@pytest.mark.parametrize("where", ["s3", "shared folder"])
def test_a_worker_without_internet_takes_the_data_from_storage(where, request, tmp_path, monkeypatch):
    results = request.getfixturevalue("bucket") if where == "s3" else tmp_path
    place = Store(f"{results}/small").data
    text = b"to be, or not to be " * 100
    digests = {"input.txt": f"sha256:{sha256(text).hexdigest()}"}
    source = replace(sources.SOURCES["tinyshakespeare"], files=digests)
    monkeypatch.setitem(sources.SOURCES, "tinyshakespeare", source)
    monkeypatch.setattr("raysat.data.downloading.retrieve", lambda *_: (_ for _ in ()).throw(OSError("no internet")))
    driver, worker = tmp_path / "driver", tmp_path / "worker"
    (driver / "tinyshakespeare").mkdir(parents=True)
    (driver / "tinyshakespeare" / "input.txt").write_bytes(text)
    monkeypatch.setenv("RAYSAT_DATA", str(driver))
    sources.put("tinyshakespeare", place)
    sources.put("digits", place)  # comes with a package
    assert [path.name for path in place.iterdir()] == ["tinyshakespeare"]
    monkeypatch.delenv("RAYSAT_DATA")
    monkeypatch.setattr(pooch, "os_cache", lambda _: worker)
    with pytest.raises(InputError, match="connect this machine to the internet"):
        list(sources.read("tinyshakespeare"))
    sources.look_also_in(place)
    try:
        assert list(sources.read("tinyshakespeare")) == [text]
    finally:
        sources.look_also_in(None)
    assert list(sources.read("tinyshakespeare")) == [text]  # from the worker's own cache
    assert [path.name for path in (worker / "tinyshakespeare").iterdir()] == ["input.txt"]
    (place / "tinyshakespeare" / "input.txt").write_bytes(b"something else")
    (worker / "tinyshakespeare" / "input.txt").unlink()
    sources.look_also_in(place)
    try:
        with pytest.raises(InputError, match="put the original in its place"):
            list(sources.read("tinyshakespeare"))
    finally:
        sources.look_also_in(None)


def test_a_worker_waits_for_a_storage_that_is_away_for_a_moment(tmp_path, monkeypatch):
    class Away(type(tmp_path)):
        tries = iter(range(2))

        def read_bytes(self):
            if next(self.tries, None) is not None:
                raise OSError(5, "Input/output error")
            return super().read_bytes()

    place = tmp_path / "data"
    (place / "tinyshakespeare").mkdir(parents=True)
    (place / "tinyshakespeare" / "input.txt").write_bytes(b"text")
    monkeypatch.setattr(sources, "retry_read", retry.RetryPolicy(lambda _: None))
    monkeypatch.setattr(sources, "folders", lambda: (tmp_path / "cache",))
    sources.look_also_in(Away(place))
    try:
        sources._fetch("tinyshakespeare", ["input.txt"])
    finally:
        sources.look_also_in(None)
    assert (tmp_path / "cache" / "tinyshakespeare" / "input.txt").read_bytes() == b"text"


@pytest.mark.slow
def test_nodes_that_do_not_see_the_checkpoints_are_named_with_the_remedy(tmp_path):
    said = []
    with ray_nodes(num_cpus=1) as cluster:
        cluster.add_node(num_cpus=1)
        with OnRay(tmp_path / "tune", address=cluster.address) as executor:
            store = Store(tmp_path / "results")
            store.checkpoints.mkdir(parents=True)
            _warn_where_unshared(store, executor, said.append)
            assert said == []
            hosts = executor.hosts_without(tmp_path / "of the driver alone")
            assert hosts == [cluster.head_node.node_ip_address]
            executor.hosts_without = lambda _: hosts
            _warn_where_unshared(store, executor, said.append)
    assert f"is not shared with {hosts[0]}: results arrive all the same" in said[0]
    assert "s3://bucket/path" in said[0]
    assert list(store.checkpoints.iterdir()) == []
