"""Tests that go on as another user, one without a name or a home."""

import os
import sys
from pathlib import Path

import pytest

import raysat


def _may_read(path: str) -> bool:
    path = Path(path).resolve()
    return all(folder.stat().st_mode & 0o005 == 0o005 for folder in (path, *path.parents[:-1]))


other_user = pytest.mark.skipif(
    os.getuid() != 0 or not _may_read(sys.prefix) or not _may_read(os.path.dirname(raysat.__file__)),
    reason="only root may become another user, who must be able to read the environment's packages",
)
