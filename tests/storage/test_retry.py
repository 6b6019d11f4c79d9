from contextlib import nullcontext

import pytest

from raysat.storage.retry import LONGEST, PAUSES, RetryingWriter, RetryPolicy


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.now += seconds


class Disk:
    """A storage that is away until a moment."""

    def __init__(self, clock, back_at):
        self.clock, self.back_at, self.kept, self.tries = clock, back_at, [], 0

    def write(self, what):
        self.tries += 1
        if self.clock() < self.back_at:
            raise OSError(28, "No space left on device")
        self.kept.append(what)


def make(back_at):
    clock, said = Clock(), []
    disk = Disk(clock, back_at)
    return clock, disk, said, RetryingWriter("results/small", said.append, clock, clock.sleep)


def test_what_could_not_be_written_for_a_minute_is_written_once_and_in_order():
    clock, disk, said, writer = make(back_at=160.0)
    for what in "abc":
        writer.do(lambda what=what: disk.write(what))
    assert disk.tries == 1  # nobody knocks again at once
    assert "No space left on device" in said[0]
    clock.now += 70
    writer.do(lambda: disk.write("d"))
    assert disk.kept == ["a", "b", "c", "d"]
    assert said[-1] == "results/small can be written again: 4 results that waited are stored."


def test_the_end_waits_for_the_storage_ever_more_patiently():
    clock, disk, said, writer = make(back_at=1000.0)
    writer.do(lambda: disk.write("a"))
    writer.finish()
    assert disk.kept == ["a"]
    assert 1000 <= clock.now <= 1000 + LONGEST
    assert disk.tries < 30
    assert len(said) == disk.tries


def refused():
    raise ValueError("no column speed")


def test_what_no_table_can_hold_holds_nothing_up_and_is_replaced_by_the_reason():
    _, disk, said, writer = make(back_at=0)
    writer.do(refused, instead=lambda why: lambda: disk.write(why.splitlines()[-1]))
    writer.do(refused)
    writer.do(lambda: disk.write("b"))
    assert disk.kept == ["ValueError: no column speed", "b"]
    why = "(ValueError: no column speed): the next run computes it again."
    assert said == [f"A result cannot be stored in results/small {why}"]


def test_what_is_abandoned_is_tried_once_more_and_counted():
    clock, disk, said, writer = make(back_at=101.0)
    writer.do(lambda: disk.write("a"))
    clock.now = 101.5  # before the next try is due
    disk.back_at = 1e9
    writer.close_now()
    assert disk.tries == 2
    assert "1 results could not be written to results/small; their cells will run again" in said[-1]


def read_of(outcomes):
    """A read that ends as told, one after the other."""

    def read():
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return read


def test_a_read_is_tried_again_for_a_minute_and_then_once_until_the_storage_has_answered():
    slept = []
    retry_policy = RetryPolicy(slept.append)

    def waited(*outcomes, error=None):
        slept.clear()
        with pytest.raises(OSError, match=error) if error else nullcontext():
            assert retry_policy(read_of(iter(outcomes))) == 7
        return slept

    away = OSError("away")
    assert waited(away, away, 7) == list(PAUSES[:2])
    assert sum(waited(*[away] * len(PAUSES), OSError("for good"), error="for good")) == 60
    assert waited(away, error="away") == []
    assert waited(7) == []
    assert waited(away, 7) == [PAUSES[0]]


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, NotADirectoryError, ValueError])
def test_what_no_waiting_changes_is_not_waited_for(error):
    with pytest.raises(error):
        RetryPolicy(lambda _: pytest.fail("waited"))(read_of(iter([error("for good")])))
