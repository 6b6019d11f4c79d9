"""Download of one file, verified, with a progress bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pooch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn


def retrieve(address: str, digest: str, folder: Path) -> Path:
    """Download one file under its own name, verify it, and only then move it into the folder.

    Args:
        address: Its address.
        digest: `algorithm:hexadecimal`.
        folder: The folder in which it is stored.

    Returns:
        Its path.

    Raises:
        OSError: It cannot be downloaded.
        ValueError: Its digest differs.
    """
    name = address.rpartition("/")[-1]
    pooch.get_logger().setLevel("WARNING")
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        downloader: Any = pooch.HTTPDownloader  # its annotations allow no progress bar but its own
        fetch = downloader(progressbar=_Bar(progress, name), chunk_size=1 << 16)
        return Path(pooch.retrieve(address, digest, fname=name, path=folder, downloader=fetch))


class _Bar:
    """The interface that pooch expects of a progress bar, drawn by rich."""

    def __init__(self, progress: Progress, name: str) -> None:
        self.total = 0
        self._progress = progress
        self._task = progress.add_task(name, total=None)

    def update(self, size: int) -> None:
        self._progress.update(self._task, advance=size, total=self.total or None)

    def reset(self) -> None:
        self._progress.update(self._task, completed=0)

    def close(self) -> None:
        """Do nothing: the display ends with its context, also if a download fails."""
