"""Files on an object store, against a server that speaks S3, and on this machine."""

import pickle
from pathlib import Path
from urllib.parse import quote

import pytest

from raysat.errors import InputError
from raysat.storage import files
from raysat.storage.files import Remote, location, remove, write_aside

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
    with pytest.raises(InputError, match=r"s[34]://bucket/some/folder is no address that Arrow knows") as refused:
        location(address)
    assert "hush" not in str(refused.value)
    assert "HIDDEN" not in str(refused.value)


@pytest.mark.parametrize("secret", ["hu/sh", "12/sh", "/sh", "h[ush", "h@u/sh", "hu?sh", "hu sh"])
def test_a_secret_that_is_not_escaped_shows_in_no_text(secret):
    with pytest.raises(InputError, match=r"^s3://bucket/x is no address that Arrow knows.* write / as %2F") as refused:
        location(f"s3://AKIAHIDDEN:{secret}@bucket/x")
    assert refused.value.__suppress_context__
    place = location(f"s3://AKIAHIDDEN:{quote(secret, safe='')}@bucket/x?region=us-east-1")
    assert str(place / "y") == "s3://bucket/x/y"


AZURE = "abfs://container{}@account.dfs.core.windows.net/some/folder"


def test_an_address_of_azure_shows_its_container():
    assert str(location(AZURE.format(":aHVzaA=="))) == str(location(AZURE.format(""))) == AZURE.format("")


@pytest.mark.parametrize("address", ["s3:///folder", "abfs://container/folder", "gs://KEY:/hush@bucket"])
def test_an_address_without_what_arrow_needs_is_refused_at_once(address):
    with pytest.raises(InputError, match="is no address that Arrow knows: give a folder"):
        location(address)


def test_the_place_of_a_store_is_made_without_asking_it_and_its_absence_is_no_fault_of_the_address(monkeypatch):
    """The region of a bucket is asked for at its first use, and nothing answers on a machine without network."""

    asked = []

    def resolve(bucket):
        asked.append(bucket)
        raise OSError(f"When resolving region for bucket '{bucket}': could not resolve host")

    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setattr("pyarrow.fs.resolve_s3_region", resolve)
    place = location("s3://unheard-of/folder") / "file"
    sent = pickle.loads(pickle.dumps(place))
    assert not asked
    for use in (sent.exists, sent.read_bytes, lambda: sent.write_bytes(b"1"), lambda: list(sent.iterdir())):
        with pytest.raises(OSError, match="could not resolve host"):
            use()


@pytest.mark.parametrize("options", ["", "?region=eu-west-1", "?endpoint_override=localhost:9"])
def test_a_bucket_is_reached_in_its_own_region(monkeypatch, options):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_REGION", "of-here")
    monkeypatch.setattr("pyarrow.fs.resolve_s3_region", lambda bucket: f"of-{bucket}")
    files._connect.cache_clear()
    filesystem, _ = (location(f"s3://a-bucket{options}") / "file")._at
    assert filesystem.region == {"": "of-a-bucket", "?region=eu-west-1": "eu-west-1"}.get(options, "of-here")
    files._connect.cache_clear()
