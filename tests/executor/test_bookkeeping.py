"""What the executor on Ray Tune remembers, without Ray."""

from types import SimpleNamespace

import pytest

from raysat.executor.bookkeeping import RETRIES, Bookkeeping


class Listening:
    """Writes down what it is told."""

    def __init__(self):
        self.heard = []

    def on_start(self, job):
        self.heard.append(("started", job.key))

    def on_progress(self, job, iteration, losses):
        self.heard.append(("told", job.key, iteration))

    def on_end(self, outcome):
        self.heard.append(("ended", outcome.job.key, outcome.value, outcome.error, outcome.died))


class Naming:
    """A source of jobs by name. One whose name begins with `after` comes when something has ended."""

    waiting = True

    def __init__(self, callbacks, *names):
        self.callbacks, self.names = callbacks, list(names)

    def next(self):
        if not self.names or (self.names[0].startswith("after") and not self.ends()):
            return None
        return SimpleNamespace(key=self.names.pop(0))

    def ends(self):
        return any(kind == "ended" for kind, *_ in self.callbacks.heard)


@pytest.fixture
def book():
    def make(*names):
        callbacks = Listening()
        return Bookkeeping(Naming(callbacks, *names), callbacks)

    return make


def test_outcomes_are_handed_on_a_step_later(book):
    jobs = book("a", "b")
    jobs.next(), jobs.next()
    jobs.start("a")
    jobs.end("a", 1)
    jobs.hand_on()
    assert jobs.callbacks.heard == [("started", "a")]
    jobs.end("b", 2)
    jobs.hand_on()
    assert jobs.callbacks.heard[1:] == [("ended", "a", 1, "", False)]
    jobs.hand_on_all()
    assert jobs.callbacks.heard[2:] == [("ended", "b", 2, "", False)]


def test_a_job_that_depends_on_an_end_gets_it_at_once(book):
    jobs = book("a", "after a")
    assert jobs.next().key == "a"
    assert jobs.next() is None
    jobs.end("a", 1)
    assert jobs.next().key == "after a"


def test_a_job_whose_outcome_comes_twice_ends_once(book):
    jobs = book("a")
    jobs.next()
    jobs.end("a", 1)
    jobs.end("a", 1)
    jobs.hand_on_all()
    assert len(jobs.callbacks.heard) == 1


def test_a_process_that_leaves_has_not_started_its_job(book):
    jobs = book("a")
    jobs.next()
    jobs.leave("a")
    assert not jobs.counts("a", lost_node=False)
    jobs.start("a")
    assert jobs.callbacks.heard == []
    jobs.start("a")
    assert jobs.callbacks.heard == [("started", "a")]


def test_a_death_counts_unless_the_job_came_further_or_its_node_was_lost(book):
    jobs = book("a")
    jobs.next()
    assert jobs.counts("a", lost_node=False)
    assert not jobs.counts("a", lost_node=True)
    jobs.report("a", 10, {})
    assert not jobs.counts("a", lost_node=False)
    assert jobs.counts("a", lost_node=False)
    jobs.report("a", 10, {})  # it has come no further than before
    assert jobs.counts("a", lost_node=False)
    jobs.report("a", 20, {})
    assert not jobs.counts("a", lost_node=False)


def test_a_job_that_was_given_up_with_tries_left_is_given_anew_and_then_fails(book):
    jobs = book("a")
    for _ in range(RETRIES + 1):
        assert jobs.next().key == "a"
        jobs.give_up("a", "lost", tries_left=True)
    assert jobs.next() is None
    jobs.hand_on_all()
    assert jobs.callbacks.heard == [("ended", "a", None, "lost", True)]


def test_a_job_without_tries_left_fails_with_words(book):
    jobs = book("a")
    jobs.next()
    jobs.give_up("a", "", tries_left=False)
    jobs.hand_on_all()
    assert jobs.callbacks.heard == [("ended", "a", None, "the trial's process died", True)]


def test_nobody_is_told_of_a_job_that_does_not_run(book):
    jobs = book()
    jobs.start("a")
    jobs.report("a", 3, {})
    jobs.end("a", 1)
    jobs.hand_on_all()
    assert jobs.callbacks.heard == []
