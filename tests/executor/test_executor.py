"""What the executors promise whoever hands them jobs; what happens on clusters is in tests/cluster."""

import gc
import os
import threading
from collections import Counter
from types import SimpleNamespace

import pytest
import yaml
from ray import cloudpickle

from raysat.executor import InProcess, OnRay, cluster, tune
from raysat.trial.job import Job


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

    def on_start(self, job):
        pass

    def on_progress(self, job, iteration, losses):
        pass

    def on_tick(self):
        pass

    def on_end(self, outcome):
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


def test_the_driver_asks_nothing_of_rays_object_store(tmp_path, make_cell, monkeypatch):
    """The store dies with the raylet, and Ray's core ends a driver that asks it then.

    Of lists a trial needs the spectral measures alone, of which it makes the limit of stable stepsizes.
    """
    monkeypatch.setattr("ray.put", None)
    cell = make_cell(batch_size=1)
    work, jobs = Work([cell]), iter([Job("s", cell.init, cell, {"gamma": 2.0, "top": [1.0], "density_nodes": [3.0]})])
    work.next = lambda: next(jobs, None)
    with OnRay(tmp_path / "tune") as executor:
        executor.run(work, long, work)
    found = {"gamma": 2.0, "density_nodes": [3.0]}
    assert [outcome.value for outcome in work.ended_jobs] == [(found, list(range(100_000)))]


def long(job):
    return dict(job.statistics), list(range(100_000))


def test_an_outcome_in_parts_of_a_job_that_is_tried_again():
    """Its process died between two parts."""
    ended = []
    callbacks = tune._Callbacks(SimpleNamespace(end=lambda *outcome: ended.append(outcome)))
    trial = SimpleNamespace(config={"job": "a job"})
    outcome = cloudpickle.dumps((list(range(100)), ""))
    parts = [(begin, outcome[begin : begin + 50]) for begin in range(0, len(outcome), 50)]
    for part in (*parts[:2], *parts):
        callbacks.on_trial_result(1, [], trial, {"outcome": part, "done": part is parts[-1]})
    assert ended == [("'a job'", list(range(100)), "")]


def test_a_process_that_is_lost_between_two_jobs_costs_neither(tmp_path, make_cell):
    """Each job's process ends once, some milliseconds after the job: some when Tune is about to give it the next."""

    def mortal(job):
        mark = tmp_path / f"mark-{job.key}"
        if job.cell and not mark.exists():
            mark.touch()
            threading.Timer(0.003 * (job.cell.batch_size % 8), os._exit, [1]).start()
        return job.key, {}

    work = Work([make_cell(batch_size=b) for b in range(1, 9)])
    with OnRay(tmp_path / "tune") as executor:
        executor.run(work, mortal, work)
    assert [outcome.error for outcome in work.ended_jobs if outcome.error] == []
    assert sorted(outcome.value[0] for outcome in work.ended_jobs) == sorted(
        outcome.job.key for outcome in work.ended_jobs
    )
    assert len(work.ended_jobs) == 1 + 8


def test_ray_keeps_no_trial_that_has_ended(tmp_path, make_cell):
    """Else the driver's memory and Tune's time at each step grow with the number of cells."""
    work = Work([make_cell(batch_size=b) for b in range(1, 41)])
    kept = Counter()

    def ended(outcome, before=work.on_end):
        before(outcome)
        if len(work.ended_jobs) == 36:
            named = type.__dict__["__name__"].__get__  # a metaclass may have one of its own
            kept.update(named(type(one)) for one in gc.get_objects())

    work.on_end = ended
    with OnRay(tmp_path / "tune", cpus=max(1, os.cpu_count() // 2)) as executor:
        executor.run(work, where, work)
    assert len(work.ended_jobs) == 41
    assert 0 < kept["Trial"] <= 16
    assert kept["TrackedActorTask"] <= 16


def test_what_the_launcher_may_start_counts_among_the_machines(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)
    assert cluster._launchable() == []
    kinds = {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 8},
        "unsaid": {"resources": {}, "max_workers": 2},  # of machines that one has
    }
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump({"available_node_types": kinds}))
    assert cluster._launchable() == [{"CPU": 8, "GPU": 1}]


@pytest.mark.parametrize(
    ("last", "lost"),
    [
        ("The actor's node was terminated unexpectedly: health check failed", True),
        ("The actor died because its node has died.", True),
        ("Worker unexpectedly exits with a connection error code 2.", False),
    ],
)
def test_only_the_last_failure_says_whether_a_node_was_lost(tmp_path, last, lost):
    path = tmp_path / "error.txt"
    path.write_text(f"Failure # 1 (occurred at noon)\nits node has died\nFailure # 2 (occurred later)\n{last}\n")
    assert tune._lost_its_node(SimpleNamespace(error_file=str(path))) is lost
    assert not tune._lost_its_node(SimpleNamespace(error_file=None))
