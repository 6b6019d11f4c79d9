"""One copy of a data set for all processes of a machine: the first one writes it to files, and each maps the files.

The operating system keeps a mapped file in memory once for all its readers. The files are in the machine's folder for
temporary files, under `raysat-<user>`, which may be deleted at any time, also in part: an incomplete copy is made
again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import numpy as np
import torch

from raysat.data.dataset import Dataset
from raysat.data.loading import load
from raysat.data.sources import user
from raysat.spec import catalogue
from raysat.spec.references import is_reference

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None

log = logging.getLogger(__name__)

_TENSORS = ("x", "y", "x_test", "y_test")
_OPTIONS = ("classes", "vocabulary", "outputs", "threshold")


def load_shared(
    name: str, *, n_train: int | None, n_test: int | None, preprocessing: str = "center", dtype: str = "float32"
) -> Dataset:
    """Load a data set as `raysat.data.load` does, into memory that the processes of this machine share.

    The result of a user's own loader, `module:function`, is not shared, because changes of the files that it reads
    cannot be detected. Each process then has its own copy.

    Args:
        name: See `load`, as for all arguments.
        n_train: Training samples.
        n_test: Test samples.
        preprocessing: How inputs are preprocessed.
        dtype: Of x and y.

    Returns:
        The samples. Writing to the tensors changes them in this process only, and costs it a copy.

    Raises:
        InputError: See `load`.
    """
    if is_reference(name):
        return load(name, n_train=n_train, n_test=n_test, preprocessing=preprocessing, dtype=dtype)
    return _load(name, n_train, n_test, preprocessing, dtype)


def folder() -> Path:
    """Return the folder of the shared files, which belongs to this user alone."""
    path = Path(gettempdir()) / f"raysat-{user()}"
    path.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to another user")
    return path


@lru_cache(maxsize=2)
def _load(name: str, n_train: int | None, n_test: int | None, preprocessing: str, dtype: str) -> Dataset:
    identity = repr((name, n_train, n_test, preprocessing, dtype, _code()))
    options = {"n_train": n_train, "n_test": n_test, "preprocessing": preprocessing, "dtype": dtype}
    try:
        path = folder() / hashlib.sha256(identity.encode()).hexdigest()[:16]
        if (shared := _read(path)) is not None:
            return shared
        with _file_lock(path):
            return _read(path) or _made(load(name, **options, keep=False), path)
    except OSError as error:
        log.warning("%s is not shared between processes: %s", name, error)
        return load(name, **options)


@cache
def _code() -> str:
    """Digest of the modules that make a data set, so that a change to them is not missed. Read once a process."""
    digest = hashlib.sha256()
    for source in (*sorted(Path(__file__).parent.glob("*.py")), Path(catalogue.__file__)):
        digest.update(source.read_bytes())
    return digest.hexdigest()


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """Let one process of this machine in at a time; without `fcntl`, all at once."""
    with path.with_suffix(".lock").open("w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _made(dataset: Dataset, path: Path) -> Dataset:
    """Write the samples aside and rename. Returns them as the other processes will map them."""
    tensors = {name: tensor.numpy() for name in _TENSORS if (tensor := getattr(dataset, name)) is not None}
    about = {
        "shapes": {name: tensor.shape for name, tensor in tensors.items()},
        "options": {name: getattr(dataset, name) for name in _OPTIONS},
    }
    shutil.rmtree(path, ignore_errors=True)  # an incomplete copy; processes that have mapped it keep their memory
    with TemporaryDirectory(dir=path.parent, prefix=".") as aside:
        made = Path(aside) / "made"
        made.mkdir()
        for name, tensor in tensors.items():
            np.save(made / f"{name}.npy", tensor)
        (made / "about.json").write_text(json.dumps(about))
        made.rename(path)
    return _read(path) or dataset


def _read(path: Path) -> Dataset | None:
    """Read the samples in a folder; None if it is not complete."""
    try:
        about = json.loads((path / "about.json").read_text())
        # mode c, copy on write: torch warns about memory that is read-only
        shapes, options = about["shapes"], about["options"]
        arrays = {name: np.load(path / f"{name}.npy", mmap_mode="c", allow_pickle=False) for name in shapes}
        if any(list(arrays[name].shape) != shape for name, shape in shapes.items()):
            return None
        return Dataset(**{name: torch.from_numpy(array) for name, array in arrays.items()}, **options)
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None  # not complete, in whichever way
