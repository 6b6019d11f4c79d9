"""What the driver hands out, and when, to an executor that ends jobs in an order of its own."""

import io
import math
import re
import shutil

import pytest
from rich.console import Console

from raysat import Sweep, fixed, mlp, theory
from raysat.driver.loop import run
from raysat.driver.plan import plan
from raysat.driver.queue import CellQueue, groups
from raysat.executor import Outcome
from raysat.executor.jobs import attempt
from raysat.storage.rows import none_if_nan
from raysat.storage.store import Store


class Scripted:
    """An executor that does as a test says."""

    gpus = 0.0
    size = staticmethod(lambda: "")
    slots = staticmethod(lambda: 2)
    hosts_without = staticmethod(lambda path: [])

    def __init__(self, script):
        self.run = script


@pytest.fixture
def drive(tmp_path):
    """Runs a sweep of two widths and two batch sizes by a script, and gives what was printed."""

    def drive(script, *stepsizes, **options):
        sweep = Sweep(
            name="small", dataset="digits", models=[mlp(1)], widths=[8, 16], batch_sizes=[1, 2],
            stepsizes=stepsizes or [fixed(0.01)], iterations=2, n_train=16, n_test=0,
        )  # fmt: skip
        laid_out = plan(sweep, tmp_path)
        queue = CellQueue(groups(sweep, laid_out.cells, laid_out.weight), laid_out.weight, {})
        store = Store(tmp_path / "small")
        store.open(sweep, {}, laid_out.data)
        printed = io.StringIO()
        failed = run(laid_out, queue, store, Scripted(script), Console(file=printed, width=200), **options)
        return failed, printed.getvalue().splitlines()

    return drive


def test_a_cell_waits_for_the_statistics_of_its_own_initialization_alone(drive):
    def script(source, function, callbacks):
        def end(job):
            callbacks.on_end(Outcome(job, *attempt(function, job)))

        wide, narrow = source.next(), source.next()
        assert [(job.cell, job.init.width) for job in (wide, narrow)] == [(None, 16), (None, 8)], "the widest first"
        callbacks.on_start(wide)
        callbacks.on_start(narrow)
        assert source.next() is None
        assert source.waiting
        end(narrow)
        trials = source.next(), source.next()
        assert [(job.init.width, job.cell.batch_size) for job in trials] == [(8, 2), (8, 1)]
        assert all(job.statistics["init_id"] == job.init.init_id for job in trials)
        for job in trials:
            callbacks.on_start(job)
            end(job)
        assert source.next() is None
        assert source.waiting, "those of the wide network are still to come"
        end(wide)
        for job in iter(source.next, None):
            assert job.init.width == 16
            callbacks.on_start(job)
            end(job)
        assert not source.waiting

    failed, lines = drive(script)
    assert not failed
    assert [line.split()[0] for line in lines] == ["1/2", "1/4", "2/4", "2/2", "3/4", "4/4"]


def test_cells_whose_statistics_failed_are_failed_and_the_others_run(drive):
    def script(source, function, callbacks):
        wide, narrow = source.next(), source.next()
        for job in (wide, narrow):
            callbacks.on_start(job)
        callbacks.on_end(Outcome(wide, error="ValueError: no kernel"))
        assert source.next() is None
        assert source.waiting
        callbacks.on_end(Outcome(narrow, *attempt(function, narrow)))
        for job in iter(source.next, None):
            assert job.init.width == 8
            callbacks.on_start(job)
            callbacks.on_end(Outcome(job, *attempt(function, job)))
        assert not source.waiting

    failed, lines = drive(script)
    assert [error for _, error in failed] == ["ValueError: no kernel"] * 2
    assert sum("ValueError: no kernel" in line for line in lines) == 1, "the statistics; the two cells refer to it"
    assert sum("the same as before" in line for line in lines) == 2
    assert any(line.startswith("4/4") for line in lines)


def test_where_the_process_of_statistics_dies_stepsizes_that_need_none_are_tried_all_the_same(drive, tmp_path):
    def script(source, function, callbacks):
        for job in iter(source.next, None):
            callbacks.on_start(job)
            if job.cell is None and job.init.width == 16:
                callbacks.on_end(Outcome(job, error="the trial's process died", died=True))
            else:
                callbacks.on_end(Outcome(job, *attempt(function, job)))
        assert not source.waiting

    failed, lines = drive(script)
    assert not failed
    assert sum("no statistics: the trial's process died" in line for line in lines) == 1
    rows = Store(tmp_path / "small").read("trials")
    assert set(rows["status"]) == {"completed"}
    assert rows.set_index("width")["gamma"].isna().to_dict() == {8: False, 16: True}
    ntk = Store(tmp_path / "small").statistics()
    assert sorted(row["method"] for row in ntk.values()) == ["failed", "gram"]


@pytest.mark.parametrize("value", [None, math.nan, 0.0, math.inf])
def test_statistics_that_lack_any_number_are_said_and_stored(drive, tmp_path, value):
    """The line of statistics, and of the cells that cannot be made of them."""
    absent = [("b_star",), ("gamma", "k_op", "b_star", "seconds")]

    def script(source, function, callbacks):
        for job in iter(source.next, None):
            callbacks.on_start(job)
            outcome = Outcome(job, *attempt(function, job))
            if job.cell is None:
                outcome.value.update(dict.fromkeys(absent[which], none_if_nan(value)))
            callbacks.on_end(outcome)

    for which in range(len(absent)):
        failed, lines = drive(script, fixed(0.01), theory())
        assert not [line for line in lines if re.search(r"\bnan|\binf\b|None", line)]
        assert sum("gamma" in line and "b_star" in line for line in lines) == 2
        unusable = which == 1  # b_star is nothing that a stepsize is made of
        assert len(failed) == 4 * unusable
        assert all("theory(1) is made of gamma and k_op" in error for _, error in failed)
        assert len(Store(tmp_path / "small").read("trials")) == 8
        shutil.rmtree(tmp_path / "small")


def test_what_rich_makes_of_a_text_costs_nothing(drive, monkeypatch):
    def script(source, function, callbacks):
        for job in iter(source.next, None):
            callbacks.on_start(job)
            error = "" if job.cell is None else "ValueError: [/] [nope \\ [bold]"
            callbacks.on_end(Outcome(job, error=error) if error else Outcome(job, *attempt(function, job)))

    _, lines = drive(script)
    assert sum(r"failed: ValueError: [/] [nope \ [bold]" in line for line in lines) == 1

    def refuse(*_, **__):
        raise RuntimeError("no such style")

    monkeypatch.setattr(Console, "print", refuse)
    failed, lines = drive(script)
    assert (len(failed), lines) == (4, [])


def test_what_can_be_done_meanwhile_is_begun_once_with_the_first_trial(drive):
    seen = []

    def script(source, function, callbacks):
        for job in iter(source.next, None):
            callbacks.on_start(job)
            seen.append("trial" if job.cell else "statistics")
            callbacks.on_end(Outcome(job, *attempt(function, job)))

    assert not drive(script, on_first_trial=lambda: seen.append("meanwhile"))[0]
    assert seen == ["statistics"] * 2 + ["meanwhile"] + ["trial"] * 4
