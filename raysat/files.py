"""Files, here or on a store that Arrow reaches by URI; writing them so that no reader and no crash sees half of one.

A `Location` is a `pathlib.Path` or a `Remote`, which has those of its methods that raysat uses.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from raysat.validation import InputError


class Remote:
    """A path on an object store: `s3://bucket/path`, `gs://`, `abfs://`, `hdfs://`, in the words of `pathlib.Path`.

    Args:
        uri: The address. It may have credentials (`s3://KEY:SECRET@bucket/path`) and options (`?region=...`). They
            reach the workers with the object, but no text: `str` and `repr` are the address without them.

    Raises:
        InputError: Arrow knows no such address.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        _connect(self._base)

    @property
    def _base(self) -> str:
        return urlsplit(self._uri)._replace(path="").geturl()

    @property
    def _at(self) -> tuple[fs.FileSystem, str]:
        filesystem, base = _connect(self._base)
        return filesystem, base.rstrip("/") + unquote(urlsplit(self._uri).path).rstrip("/")

    def __str__(self) -> str:
        parts = urlsplit(self._uri)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{unquote(parts.path)}"

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
        """The path beside this one that has another name."""
        parts = urlsplit(self._uri)
        return Remote(parts._replace(path=f"{parts.path.rstrip('/').rpartition('/')[0]}/{quote(name)}").geturl())

    def __lt__(self, other: Remote) -> bool:
        return self._uri < other._uri

    def exists(self) -> bool:
        """Whether there is a file or a folder."""
        filesystem, path = self._at
        return filesystem.get_file_info(path).type != fs.FileType.NotFound

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: writing a file is enough."""

    def iterdir(self) -> Iterator[Remote]:
        """What the folder has; nothing where there is none."""
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
        """Put the whole content: on an object store, one atomic act."""
        filesystem, path = self._at
        with filesystem.open_output_stream(path) as stream:
            stream.write(content)

    def rename(self, target: Remote) -> None:
        """Give the file another place on the same store."""
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

    def remove(self) -> None:
        """Delete the folder and all in it."""
        filesystem, path = self._at
        filesystem.delete_dir(path)


Location = Path | Remote


@lru_cache(maxsize=8)
def _connect(base: str) -> tuple[fs.FileSystem, str]:
    """The file system of `scheme://host?options`, and what its paths begin with."""
    parts = urlsplit(base)
    try:
        return fs.FileSystem.from_uri(base)
    except (pa.ArrowException, ValueError, OSError, NotImplementedError) as error:
        reason = "" if isinstance(error, ValueError) else f" ({type(error).__name__})"  # its text repeats the address
        raise InputError(
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]} cannot be reached{reason}: give a folder, or an "
            "address of S3 (s3://), Google Cloud Storage (gs://), Azure (abfs://) or HDFS (hdfs://)."
        ) from None


def location(address: str | Location) -> Location:
    """The place that a user wrote: a local folder, `file:///folder`, or an address that Arrow knows."""
    if not isinstance(address, str):
        return address
    if address.startswith("file://"):
        return Path(unquote(urlsplit(address).path))
    return Remote(address) if "://" in address else Path(address)


def write_aside(path: Location, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)`, then rename or put: a reader sees the whole file or the one before it.

    The temporary name starts with a dot, which Parquet readers pass over.
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


def remove(folder: Location) -> None:
    """Delete a folder and all in it."""
    if isinstance(folder, Remote):
        folder.remove()
    else:
        shutil.rmtree(folder)
