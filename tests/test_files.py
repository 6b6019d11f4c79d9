"""Files on an object store, against a server that speaks S3, and on this machine."""

import pickle
from pathlib import Path

import pytest

from raysat.files import Remote, location, remove, write_aside
from raysat.spec import InputError

SECRET = "s3://AKIAHIDDEN:hush@bucket/some/folder?region=us-east-1"


@pytest.fixture(params=["here", "s3"])
def folder(request, tmp_path):
    """The same words work on both."""
    return tmp_path / "folder" if request.param == "here" else location(request.getfixturevalue("bucket")) / "folder"


def test_what_is_written_can_be_found_moved_and_deleted(folder):
    assert not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("a.txt", "b c.txt", ".hidden.txt"):
        write_aside(folder / name, lambda path, name=name: path.write_text(name))
    assert folder.exists()
    assert {path.name for path in folder.iterdir()} == {"a.txt", "b c.txt", ".hidden.txt"}
    assert [path.stem for path in sorted(folder.glob("[!.]*.txt"))] == ["a", "b c"]
    assert (folder / "b c.txt").read_text() == "b c.txt"
    (folder / "a.txt").rename((folder / "a.txt").with_name("_a.txt"))
    assert (folder / "_a.txt").read_bytes() == b"a.txt"
    assert not (folder / "a.txt").exists()
    (folder / "_a.txt").unlink()
    (folder / "_a.txt").unlink(missing_ok=True)
    for missing in ((folder / "_a.txt").read_bytes, (folder / "_a.txt").unlink):
        with pytest.raises(FileNotFoundError):
            missing()
    remove(folder)
    assert not folder.exists()


def test_a_write_that_fails_leaves_what_was_there(folder):
    folder.mkdir(parents=True, exist_ok=True)
    write_aside(folder / "file", lambda path: path.write_text("before"))

    def fail(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_aside(folder / "file", fail)
    assert (folder / "file").read_text() == "before"
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_an_address_goes_to_workers_whole_and_into_texts_without_credentials(bucket):
    place = location(bucket.replace("s3://", "s3://AKIAHIDDEN:hush@") + "/results?region=us-east-1") / "a sweep"
    place.write_bytes(b"1")
    sent = pickle.loads(pickle.dumps(place))
    assert sent == place
    assert sent.read_bytes() == b"1"
    assert str(place) == repr(place) == f"{bucket}/results/a sweep"


def test_local_addresses_are_paths():
    assert location("results") == Path("results")
    assert location("file:///mnt/shared%20disk") == Path("/mnt/shared disk")
    assert isinstance(location(SECRET), Remote)


@pytest.mark.parametrize("address", [SECRET.replace("s3:", "s4:"), SECRET.replace("region", "religion")])
def test_an_address_that_arrow_does_not_know_is_refused_without_its_credentials(address):
    with pytest.raises(InputError, match=r"s[34]://bucket cannot be reached: give a folder, or an address") as refused:
        location(address)
    assert "hush" not in str(refused.value)
    assert "HIDDEN" not in str(refused.value)
