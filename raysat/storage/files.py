"""Local files, and files on a store that Arrow reaches by URI; writing so that a reader never sees half of one.

A `Location` is a `pathlib.Path`, or a `Remote`, which has the methods of `pathlib.Path` that raysat uses.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, unquote, urlsplit

from raysat.errors import InputError
from raysat.messages.failures import first_sentence

# Arrow is imported only to access a store: every worker imports this module, and local folders do not need it.
if TYPE_CHECKING:
    import argparse

    from pyarrow import fs

_ATTEMPTS, _CONNECT, _SILENCE, _IN_ALL = 2, 2.0, 3.0, 15.0
"""How long to wait for a store: attempts at a request, seconds to connect and seconds without a byte (all three for
S3), and seconds in all (Google). Default: some 7 seconds for a request to S3; the caller tries again later."""


class Remote:
    """A path on an object store: `s3://bucket/path`, `gs://`, `abfs://`, `hdfs://`, in the words of `pathlib.Path`.

    The store is not contacted before the first use of the path, which raises `OSError` if the store does not answer.

    Args:
        uri: The address. It may have credentials (`s3://KEY:SECRET@bucket/path`) and options (`?region=...`). They
            reach the workers with the object, but appear in no text: `str` and `repr` are the address without them.

    Raises:
        InputError: Arrow does not know such an address.
    """

    def __init__(self, uri: str) -> None:
        from pyarrow import ArrowException

        self._uri = uri
        try:
            _check(uri)
        except (ArrowException, ValueError, NotImplementedError):  # their texts repeat the address
            scheme, _, rest = uri.partition("://")
            shown = rest.rpartition("@")[2].partition("?")[0]
            escape = "; write / as %2F, + as %2B and @ as %40 in a key or a secret" if "@" in rest else ""
            raise InputError(
                f"{scheme}://{shown} is no address that Arrow knows: give a folder, or an address of S3 (s3://), "
                f"Google Cloud Storage (gs://), Azure (abfs://) or HDFS (hdfs://){escape}."
            ) from None

    @property
    def _base(self) -> str:
        return urlsplit(self._uri)._replace(path="").geturl()

    @property
    def _at(self) -> tuple[fs.FileSystem, str]:
        filesystem, base = _connect(self._base)
        return filesystem, base.rstrip("/") + unquote(urlsplit(self._uri).path).rstrip("/")

    def __str__(self) -> str:
        parts = urlsplit(self._uri)
        user, at, host = parts.netloc.rpartition("@")
        named = user.partition(":")[0] + at if parts.scheme in _AZURE else ""  # a container or an account
        return f"{parts.scheme}://{named}{host}{unquote(parts.path)}"

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and self._uri == other._uri

    def __hash__(self) -> int:
        return hash(self._uri)

    def __truediv__(self, name: str) -> Remote:
        parts = urlsplit(self._uri)
        return Remote(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}").geturl())

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(unquote(urlsplit(self._uri).path)).name

    @property
    def suffix(self) -> str:
        """The name's extension, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def stem(self) -> str:
        """The name without its extension."""
        return PurePosixPath(self.name).stem

    def with_name(self, name: str) -> Remote:
        """The path in the same folder with another name."""
        parts = urlsplit(self._uri)
        return Remote(parts._replace(path=f"{parts.path.rstrip('/').rpartition('/')[0]}/{quote(name)}").geturl())

    def __lt__(self, other: Remote) -> bool:
        return self._uri < other._uri

    def exists(self) -> bool:
        """Return whether there is a file or a folder."""
        from pyarrow import fs

        filesystem, path = self._at
        return filesystem.get_file_info(path).type != fs.FileType.NotFound

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: writing a file creates its folders."""

    def iterdir(self) -> Iterator[Remote]:
        """Yield the entries of the folder; none if it does not exist."""
        from pyarrow import fs

        filesystem, path = self._at
        for info in filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True)):
            yield self / info.base_name

    def glob(self, pattern: str) -> Iterator[Remote]:
        """The entries of the folder whose names match."""
        return (entry for entry in self.iterdir() if fnmatch(entry.name, pattern))

    def read_bytes(self) -> bytes:
        """The whole content."""
        filesystem, path = self._at
        with filesystem.open_input_stream(path) as stream:
            return stream.read()

    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole content, decoded."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """Write the whole content: a single atomic operation on an object store."""
        filesystem, path = self._at
        with filesystem.open_output_stream(path) as stream:
            stream.write(content)

    def rename(self, target: Remote) -> None:
        """Move the file to another path on the same store."""
        filesystem, path = self._at
        filesystem.move(path, target._at[1])

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the file."""
        filesystem, path = self._at
        try:
            filesystem.delete_file(path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def walk(self) -> Iterator[str]:
        """Yield the files in the folder and below, as relative paths."""
        from pyarrow import fs

        filesystem, path = self._at
        for info in filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True)):
            if info.is_file:
                yield info.path[len(path) :].lstrip("/")

    def remove(self) -> None:
        """Delete the folder with all its content."""
        filesystem, path = self._at
        filesystem.delete_dir(path)


Location = Path | Remote


_AZURE = ("abfs", "abfss")
_UNSAID = {"s3": "region=us-east-1", "gs": f"retry_limit_seconds={_IN_ALL:g}"}
"""Options added to an address that lacks them: for S3, because Arrow would ask for the bucket's region at once; for
Google, because Arrow would wait for 15 minutes."""


def _check(uri: str) -> None:
    """Raise an error of Arrow's, or `ValueError`, if an address is not valid; no store is contacted."""
    parts = urlsplit(uri)
    _, at, bucket = parts.netloc.rpartition("@")
    if at and "@" in parts.path:
        raise ValueError("which @ ends the secret")
    if parts.scheme in _UNSAID and (not bucket or ":" in bucket):
        raise ValueError("no bucket has a port: this is a key, and a secret with a / in it")
    if parts.scheme not in ("hdfs", "viewfs"):  # Arrow connects to these at once
        _client(parts._replace(path="").geturl())


@lru_cache(maxsize=8)
def _client(base: str) -> tuple[fs.FileSystem, str]:
    """Arrow's file system of `scheme://host?options`, and the prefix of its paths."""
    from pyarrow import fs

    parts = urlsplit(base)
    unsaid = _UNSAID.get(parts.scheme, "")
    if unsaid.partition("=")[0] not in parse_qs(parts.query):
        parts = parts._replace(query="&".join(filter(None, (parts.query, unsaid))))
    return fs.FileSystem.from_uri(parts.geturl())


@lru_cache(maxsize=8)
def _connect(base: str) -> tuple[fs.FileSystem, str]:
    """The same, in the bucket's region and with the timeouts above, which an S3 address cannot express."""
    from pyarrow import fs

    filesystem, prefix = _client(base)
    if filesystem.type_name == "s3":
        make, (options,) = filesystem.__reduce__()  # the address as the arguments of S3FileSystem
        if "region" not in parse_qs(urlsplit(base).query):  # for a store other than Amazon's, None: AWS_REGION
            options["region"] = None if options["endpoint_override"] else fs.resolve_s3_region(prefix)
        retry = fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS)
        filesystem = make(options | {"connect_timeout": _CONNECT, "request_timeout": _SILENCE, "retry_strategy": retry})
    return filesystem, prefix


def location(address: str | Location) -> Location:
    """Parse what a user wrote: a local folder, `file:///folder`, or an address that Arrow knows."""
    if not isinstance(address, str):
        return address
    if address.startswith("file://"):
        return Path(unquote(urlsplit(address).path))
    return Remote(address) if "://" in address else Path(address)


def write_aside(path: Location, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)`, then rename or put: a reader sees the whole file or the one before it.

    The temporary name starts with a dot, so that Parquet readers ignore the file.
    """
    if isinstance(path, Remote):
        with TemporaryDirectory(prefix="raysat-") as folder:
            written = Path(folder) / path.name
            write(written)
            path.write_bytes(written.read_bytes())
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(aside)
        with open(aside, "rb") as written:
            os.fsync(written.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def walk(folder: Location) -> Iterator[str]:
    """Yield the relative paths of all files and links in a folder and below, and of empty folders, with a `/`.

    Links are not followed.
    """
    if isinstance(folder, Remote):
        yield from folder.walk()
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                yield entry.name
            elif below := list(walk(folder / entry.name)):
                yield from (f"{entry.name}/{name}" for name in below)
            else:
                yield f"{entry.name}/"


def remove(folder: Location) -> None:
    """Delete a folder with all its content; a link to a folder stays, and the content of its target is deleted."""
    if isinstance(folder, Remote):
        folder.remove()
        return
    for entry in list(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    if not folder.is_symlink():
        folder.rmdir()


@contextmanager
def written(folder: Location) -> Iterator[None]:
    """Turn an `OSError` into an `InputError` that says, in one sentence, that a command's output cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({first_sentence(error)}): give --output FOLDER, one that can."
        ) from None


def output_option(parser: argparse.ArgumentParser) -> None:
    """Add the option with which a command that reads a results folder writes its output elsewhere."""
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="where to write, such as beside results that may only be read, or its address [the results folder]",
    )
