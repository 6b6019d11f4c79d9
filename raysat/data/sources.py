"""The files of the built-in data sets: found in a folder, or downloaded, and verified each time they are read.

A folder of data has one folder for each data set, with the files in their original formats:

    mnist/train-images-idx3-ubyte.gz        cifar10/cifar-10-batches-py/data_batch_1
    svhn/train_32x32.mat                    tinyshakespeare/input.txt

The environment variable RAYSAT_DATA may name such a folder, which is searched first. The cache is another one. A sweep
that runs on several nodes also puts its files into its storage, for workers without internet.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from raysat.errors import InputError
from raysat.spec.catalogue import SOURCES
from raysat.storage.files import Location, write_aside
from raysat.storage.retry import retry_read

_elsewhere: list[Location] = []


def read(name: str) -> Iterator[bytes]:
    """Yield the contents of a data set's files, in the order of its `SOURCES` entry.

    Each file is read once, when its turn comes, so that the verified bytes are those returned.

    Raises:
        InputError: A file is not found and cannot be downloaded, or its digest is not the published one.
    """
    source = SOURCES[name]
    _fetch(name, [file for file in source.files if _find(name, file) is None])
    missing = [file for file in source.files if _find(name, file) is None]
    if missing:
        _download(name, missing)
    for file, digest in source.files.items():
        path = _find(name, file)
        assert path is not None  # found above, or downloaded since
        content = path.read_bytes()
        algorithm, expected = digest.split(":")
        found = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
        if found != expected:
            raise InputError(
                f"{path} has the {algorithm} digest {found}, but {name} has {expected}: "
                f"remove the file to download it again from {source.address}, or put the original in its place."
            )
        yield content


def look_also_in(place: Location | None) -> None:
    """Set a place from which missing files are copied rather than downloaded; None for no such place."""
    _elsewhere[:] = [place] if place else []


def put(name: str, place: Location) -> None:
    """Copy those of a data set's files that are missing in a place for `look_also_in` to it."""
    for file in SOURCES[name].files if name in SOURCES else ():
        found, target = _find(name, file), place / name / file
        if found and not target.exists():
            _write(target, found.read_bytes())


def user() -> str:
    """This user's name, or number if it has no name, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def folders() -> tuple[Path, ...]:
    """The folders in which data are searched: RAYSAT_DATA if it is set, then the cache, which receives downloads."""
    chosen = os.environ.get("RAYSAT_DATA")
    return (Path(chosen).expanduser(), _cache()) if chosen else (_cache(),)


def _cache() -> Path:
    """The user's cache; for a user without a home, a folder among the temporary ones."""
    import pooch  # here: it takes a fifth of a second, and data sets that come with a package do not need it

    with suppress(RuntimeError):
        if (cache := Path(pooch.os_cache("raysat"))).is_absolute():
            return cache
    return Path(gettempdir()) / f"raysat-{user()}" / "cache"


def _find(name: str, file: str) -> Path | None:
    return next((path for folder in folders() if (path := folder / name / file).is_file()), None)


def _fetch(name: str, files: Sequence[str]) -> None:
    """Copy files from the place of `look_also_in` into the cache, as far as they exist there."""
    for place in _elsewhere:
        with suppress(OSError):
            for file in files:
                with suppress(FileNotFoundError):
                    _write(folders()[-1] / name / file, retry_read((place / name / file).read_bytes))


def _write(target: Location, content: bytes) -> None:
    """Write a file atomically, and make its folder."""
    if isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_aside(target, lambda aside: aside.write_bytes(content))


def _download(name: str, files: Sequence[str]) -> None:
    """Download files into the cache. Each appears whole or not at all, even if other processes do the same."""
    from raysat.data.downloading import retrieve  # here: only downloads need its imports

    source = SOURCES[name]
    folder = folders()[-1] / name
    try:
        if source.archive is None:
            for file in files:
                retrieve(source.address + file, source.files[file], folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=folder) as aside:
                archive = retrieve(source.address, source.archive, Path(aside))
                _unpack(archive, files, Path(aside), folder)
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
        wrong = isinstance(error, ValueError) and not isinstance(error, OSError)
        reason = "wrong digest" if wrong else getattr(error, "strerror", None) or type(error).__name__
        raise InputError(
            f"{name} needs {', '.join(files)}, not found in {' or '.join(str(f / name) for f in folders())}, and "
            f"{source.address} could not be downloaded ({reason}): connect this machine to the internet, or set "
            f"RAYSAT_DATA to a folder that has {name}/{files[0]}{' and the others' if len(files) > 1 else ''}."
        ) from None


def _unpack(archive: Path, files: Sequence[str], aside: Path, folder: Path) -> None:
    """Extract named members, and nothing else, from an archive; no path in the archive is used for writing."""
    with tarfile.open(archive) as tar:
        for file in files:
            partial, target = aside / "partial", folder / file
            member = tar.extractfile(file)
            assert member is not None  # a file of an archive whose digest is verified
            with member, partial.open("wb") as out:
                shutil.copyfileobj(member, out)
            target.parent.mkdir(exist_ok=True)
            partial.replace(target)
