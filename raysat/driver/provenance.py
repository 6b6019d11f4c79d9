"""The provenance of a sweep: versions, machine and commit."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from raysat.messages.credentials import hidden
from raysat.storage.rows import installed


def about(path: Path, settings: Sequence[str] = (), results: str = "results") -> dict[str, Any]:
    """Return versions, machine and commit, for `sweep.json`, and the command that runs the same sweep.

    Args:
        path: The sweep file, as given on the command line.
        settings: The values of `--set`.
        results: The value of `--results`.
    """
    command = [str(path), *(word for setting in settings for word in ("--set", setting))]
    command += ["--results", results] * (results != "results")
    packages = ("torch", "ray", "numpy", "pandas", "pyarrow", "scipy", "matplotlib")
    git = ["git", "-C", str(path.resolve().parent)]
    commit = _output([*git, "rev-parse", "HEAD"])
    return {
        "raysat": installed(),
        "file": path.name,
        "command": hidden(command),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": commit,
        "git_changed": bool(_output([*git, "status", "--porcelain", "--untracked-files=no"])) if commit else None,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "machine": {
            "hostname": platform.node(),
            "system": platform.platform(),
            "processor": _processor(),
            "cpus": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _output(command: Sequence[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
