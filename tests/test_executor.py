"""What the executors promise whoever hands them jobs; what happens on clusters is in tests/cluster."""

import os

import pytest

from raysat.executor import InProcess, OnRay
from raysat.trial import Job


class Work:
    """Statistics of one initialization, then cells that need them; it collects what comes of them."""

    def __init__(self, cells):
        self.shared = Job("s", cells[0].init)
        self.cells, self.first, self.running, self.ended_jobs = list(cells), True, 0, []

    @property
    def waiting(self):
        return self.running > 0

    def next(self):
        if self.first:
            self.first = False
            job = self.shared
        elif self.cells and self.ended_jobs:
            cell = self.cells.pop()
            job = Job("s", cell.init, cell, statistics={"gamma": 2.0})
        else:
            return None
        self.running += 1
        return job

    def started(self, job):
        pass

    def told(self, job, iteration, loss):
        pass

    def tick(self):
        pass

    def ended(self, outcome):
        self.running -= 1
        self.ended_jobs.append(outcome)


def where(job):
    if job.cell is not None and job.cell.batch_size == 3:
        raise ValueError("three")
    return os.getpid(), dict(job.statistics)


@pytest.fixture(params=["in process", "on Ray"])
def executor(request, tmp_path):
    return InProcess() if request.param == "in process" else OnRay(tmp_path / "tune")


def test_jobs_that_wait_for_others_short_ones_and_one_that_fails(executor, make_cell):
    """All outcomes come, each once; on several cores short jobs are shared out, although a process starts slowly."""
    work = Work([make_cell(batch_size=b) for b in range(1, 13)])
    with executor:
        executor.run(work, where, work)
    first, *others = work.ended_jobs
    assert first.job.cell is None
    assert first.value[1] == {}
    assert sorted(outcome.job.cell.batch_size for outcome in others) == list(range(1, 13))
    assert [outcome.job.cell.batch_size for outcome in others if outcome.error] == [3]
    good = [outcome.value for outcome in others if not outcome.error]
    assert all(statistics == {"gamma": 2.0} for _, statistics in good)
    processes = {process for process, _ in good}
    if isinstance(executor, InProcess):
        assert processes == {os.getpid()}
    else:
        assert len(processes) >= min(2, os.cpu_count())
