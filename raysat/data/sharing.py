"""One copy of a data set for all processes of a machine: the first one writes it to a file, and each maps the file.

The operating system keeps a mapped file in memory once, whoever reads it. The files lie in the machine's folder for
temporary files, under `raysat-<user>`, which may be deleted at any time.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import os
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import numpy as np
import torch

from raysat.data.dataset import Dataset
from raysat.data.loading import load
from raysat.spec import is_reference

log = logging.getLogger(__name__)

_TENSORS = ("x", "y", "x_test", "y_test")


def load_shared(
    name: str, *, n_train: int | None, n_test: int | None, preprocessing: str = "center", dtype: str = "float32"
) -> Dataset:
    """The same as `raysat.data.load`, in memory that the processes of this machine share.

    A user's own loader, `module:function`, is not shared: nothing says when what it reads has changed. Each process
    then has its copy.

    Args:
        name: See `load`, like all others.
        n_train: Training samples.
        n_test: Test samples.
        preprocessing: How inputs are preprocessed.
        dtype: Of x and y.

    Returns:
        The samples. What is written to the tensors is seen in this process only, and costs it a copy.

    Raises:
        InputError: See `load`.
    """
    if is_reference(name):
        return load(name, n_train=n_train, n_test=n_test, preprocessing=preprocessing, dtype=dtype)
    return _load(name, n_train, n_test, preprocessing, dtype)


def folder() -> Path:
    """Where the shared files lie: of this user alone."""
    path = Path(gettempdir()) / f"raysat-{getpass.getuser()}"
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
        if not path.is_dir():
            _write(load(name, **options, keep=False), path)
        return _read(path)
    except OSError as error:
        log.warning("%s is not shared between processes: %s", name, error)
        return load(name, **options)


def _code() -> str:
    """Digest of the modules that make a data set, so that a change of theirs is not missed."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _write(dataset: Dataset, path: Path) -> None:
    """Write the samples aside and rename; where another process was faster, its files stay."""
    with TemporaryDirectory(dir=path.parent, prefix=".") as aside:
        made = Path(aside) / "made"
        made.mkdir()
        for name in _TENSORS:
            if (tensor := getattr(dataset, name)) is not None:
                np.save(made / f"{name}.npy", tensor.numpy())
        (made / "about.json").write_text(json.dumps({"classes": dataset.classes, "vocabulary": dataset.vocabulary}))
        try:
            made.rename(path)
        except OSError:
            if not path.is_dir():
                raise


def _read(path: Path) -> Dataset:
    tensors = {  # copy on write: torch warns of memory that it may not write to
        name: torch.from_numpy(np.load(file, mmap_mode="c"))
        for name in _TENSORS
        if (file := path / f"{name}.npy").exists()
    }
    return Dataset(**tensors, **json.loads((path / "about.json").read_text()))
