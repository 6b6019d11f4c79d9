import pytest
import torch

from raysat.storage.checkpoint import Checkpoint, Progress
from raysat.storage.retry import PAUSES, RetryPolicy


def progress(iteration):
    return Progress(iteration, {"w": torch.arange(9.0)}, [{"iteration": 0, "test_loss": None}])


class Store:
    """A file on a storage that is away for some reads and writes to come."""

    def __init__(self, path):
        self.path, self.name, self.stem, self.away = path, path.name, path.stem, 0

    def _reach(self):
        self.away -= 1
        if self.away >= 0:
            raise OSError(5, "Input/output error")

    def read_bytes(self):
        self._reach()
        return self.path.read_bytes()

    def with_name(self, name):
        self._reach()
        return self.path.with_name(name)

    def __fspath__(self):
        return str(self.path)


@pytest.fixture
def store(tmp_path):
    """A storage that has a checkpoint of iteration 7."""
    assert Checkpoint(tmp_path / "a.pt").save(progress(7))
    return Store(tmp_path / "a.pt")


def stored(store):
    return Checkpoint(store.path).load().iteration


def test_a_checkpoint_whose_storage_comes_back_within_a_minute_is_taken_up(store):
    slept = []
    store.away = 3
    assert Checkpoint(store, RetryPolicy(slept.append)).load().iteration == 7
    assert slept == list(PAUSES[:3])


def test_where_the_storage_stays_away_the_trial_starts_over_and_the_better_checkpoint_is_kept(store, caplog):
    store.away = len(PAUSES) + 1
    checkpoint = Checkpoint(store, RetryPolicy(lambda _: None))
    assert checkpoint.load() == Progress()
    assert "cannot be read, the trial starts over" in caplog.text
    store.away = 1  # the first save finds it away still
    assert not checkpoint.save(progress(2))
    assert not checkpoint.save(progress(3))
    assert stored(store) == 7
    assert checkpoint.save(progress(8))
    assert stored(store) == 8
    assert checkpoint.save(progress(9))


def test_where_nothing_was_there_the_trial_that_did_not_know_stores_its_own(store):
    store.away = len(PAUSES) + 1
    checkpoint = Checkpoint(store, RetryPolicy(lambda _: None))
    checkpoint.load()
    store.path.unlink()
    assert checkpoint.save(progress(2))
    assert stored(store) == 2


def test_where_there_is_none_or_no_right_to_it_nobody_waits(tmp_path):
    for path in (tmp_path / "a.pt", tmp_path / "no folder" / "a.pt", None):
        assert Checkpoint(path, RetryPolicy(lambda _: pytest.fail("waited"))).load() == Progress()

    class Closed:
        def read_bytes(self):
            raise PermissionError(13, "Permission denied")

    assert Checkpoint(Closed(), RetryPolicy(lambda _: pytest.fail("waited"))).load() == Progress()


def test_saving_says_whether_it_did(tmp_path, monkeypatch, caplog):
    assert not Checkpoint(None).save(progress(1))
    assert Checkpoint(tmp_path / "a.pt").save(progress(1))
    assert not Checkpoint(tmp_path / "no folder" / "a.pt").save(progress(1))
    assert "cannot be written, the trial goes on without" in caplog.text


def test_a_damaged_checkpoint_is_noticed_wherever_the_damage_is(store, caplog):
    """torch.load alone would return other weights: it passes over the checksums that torch.save writes."""
    content = store.path.read_bytes()
    fresh = 0
    attributes = content.rindex(b".a.pt/data/0") - 8  # of an entry, which no checksum covers
    for at in sorted({*range(0, len(content), 7), *range(attributes, attributes + 4)}):
        store.path.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
        found = Checkpoint(store.path).load()
        fresh += found.weights is None
        if found.weights is not None:
            assert torch.equal(found.weights["w"], torch.arange(9.0))
            assert (found.iteration, found.attempts) == (7, 2)
    assert fresh > len(content) / 7 / 3  # the rest is padding
    assert "is damaged, the trial starts over" in caplog.text
    checkpoint = Checkpoint(store.path)
    store.path.write_bytes(content[:-9])
    assert checkpoint.load() == Progress()
    assert checkpoint.save(progress(1))  # what is damaged is of no use to anyone
    assert stored(store) == 1


def test_a_checkpoint_that_memory_is_short_of_is_not_taken_for_damaged(store, monkeypatch):
    def load(*_, **__):
        raise MemoryError

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(MemoryError):
        Checkpoint(store.path).load()


def test_no_bit_of_a_checkpoint_can_change_unseen(tmp_path):
    """Members of the archive have checksums, its list of members has none: a flip there gave other weights."""
    path = tmp_path / "a.pt"
    assert Checkpoint(path).save(progress(7))
    content = path.read_bytes()
    for at in range(0, len(content), 3):
        for bit in (1, 16):
            path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
            assert Checkpoint(path).load() == Progress()


def test_a_checkpoint_of_another_cell_is_none_and_one_of_an_earlier_raysat_is(tmp_path, caplog):
    path = tmp_path / "a.pt"
    assert Checkpoint(path).save(progress(7))
    path.rename(tmp_path / "b.pt")
    assert Checkpoint(tmp_path / "b.pt").load() == Progress()
    assert "it is of cell a" in caplog.text
    torch.save(vars(progress(5)), path)
    assert Checkpoint(path).load().iteration == 5


def test_a_field_under_its_former_name_is_read(tmp_path):
    path, stored = tmp_path / "a.pt", vars(progress(5))
    stored["at_once"] = 3
    del stored["micro_batch"]
    torch.save(stored, path)
    assert (Checkpoint(path).load().iteration, Checkpoint(path).load().micro_batch) == (5, 3)


@pytest.mark.parametrize(
    "changes", [{"iteration": "7"}, {"curve": None}, {"weights": [1]}, {"seconds": [2.0]}, {"at": 1}]
)
def test_values_of_other_types_are_damage(tmp_path, changes):
    path = tmp_path / "a.pt"
    torch.save(vars(progress(7)) | changes, path)
    assert Checkpoint(path).load() == Progress()
