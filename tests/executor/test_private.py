"""Fast paths through Ray's private parts: each switches itself off where Ray is not what it was."""

import logging
from dataclasses import dataclass
from types import SimpleNamespace

import pandas as pd
import pytest
from ray._private import services, worker
from ray._private.node import Node

from raysat.executor import private
from raysat.sweep import main

SWEEP = """
from raysat import Sweep, fixed, mlp
sweep = Sweep(name="few", dataset="digits", n_train=64, models=[mlp(1)], widths=[8], batch_sizes=[1, 8, 64],
              stepsizes=[fixed(0.01)], iterations=20, seeds=2)
"""


@pytest.fixture(autouse=True)
def afresh(monkeypatch):
    monkeypatch.setattr(private, "_off", set())
    monkeypatch.delenv(private.SWITCH, raising=False)


@dataclass(frozen=True)
class Trial:
    trial_id: str


def controller():
    ended, alive = Trial("a"), Trial("b")
    return SimpleNamespace(
        _actor_manager=SimpleNamespace(_pending_actors_to_enqueued_actor_tasks={}, _pending_actors_to_attrs={}),
        _stopped_trials={ended},
        _trial_to_actor={},
        _trials_to_cache={ended},
        _trials=[ended, alive],
        _trial_metadata={"a": 1, "b": 2},
    )


PARTS = ("_actor_manager", "_stopped_trials", "_trials", "_trial_metadata", "_trials_to_cache")


def test_what_has_ended_is_forgotten_and_nothing_else():
    made = controller()
    private.forget_ended(made)
    assert [trial.trial_id for trial in made._trials] == ["b"]
    assert made._trial_metadata == {"b": 2}
    assert made._stopped_trials == made._trials_to_cache == set()


@pytest.mark.parametrize(
    "gone", ["_actor_manager", "_stopped_trials", "_trials", "_trial_metadata", "_trials_to_cache"]
)
def test_of_another_controller_nothing_is_changed_and_it_is_said_once(gone, caplog):
    made = controller()
    delattr(made, gone)
    before = {name: repr(value) for name, value in vars(made).items()}
    with caplog.at_level(logging.WARNING):
        private.forget_ended(made)
        private.forget_ended(made)
    assert {name: repr(value) for name, value in vars(made).items()} == before
    assert [gone in record.getMessage() for record in caplog.records] == [True]
    assert not private.is_on("forget_ended")


@pytest.mark.parametrize(("owner", "name"), [(Node, "start_log_monitor"), (services, "get_node")])
def test_where_ray_starts_otherwise_nothing_stays_patched(owner, name, monkeypatch):
    before = Node.start_monitor
    monkeypatch.delattr(owner, name)
    with private.quick_start():
        assert Node.start_monitor is before
    assert not private.is_on("quick_start")


def test_the_start_is_patched_while_it_lasts():
    before = Node.start_monitor, services.get_node
    with private.quick_start():
        assert Node.start_monitor is not before[0]
        assert services.get_node is not before[1]
    assert (Node.start_monitor, services.get_node) == before
    assert private.is_on("quick_start")


def test_processes_that_are_named_otherwise_are_not_watched(monkeypatch):
    monkeypatch.setattr(worker, "_global_node", SimpleNamespace(all_processes={"raylet": [object()]}))
    assert private.processes() == ({}, "")
    assert not private.is_on("processes")


def test_one_switch_turns_all_of_them_off(monkeypatch):
    monkeypatch.setenv(private.SWITCH, "1")
    made, before = controller(), Node.start_monitor
    private.forget_ended(made)
    assert len(made._trials) == 2
    with private.quick_start():
        assert Node.start_monitor is before
    assert private.processes() == ({}, "")


@pytest.mark.slow
def test_a_sweep_without_them_has_the_same_rows(tmp_path, monkeypatch):
    file = tmp_path / "few.py"
    file.write_text(SWEEP)
    rows = []
    for switch in ("0", "1"):
        monkeypatch.setenv(private.SWITCH, switch)
        results = tmp_path / switch
        assert main([str(file), "--results", str(results)]) == 0
        rows.append(pd.read_parquet(results / "few" / "trials").set_index("cell_id")[["status", "loss_final", "h"]])
    pd.testing.assert_frame_equal(rows[0].sort_index(), rows[1].sort_index())
    assert len(rows[0]) == 6
