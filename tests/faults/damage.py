"""What may become of a file between two runs of a sweep."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random


def _truncated(path: Path, random: Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: random.randrange(1, len(content))])


def _flipped(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def _swapped(path: Path, random: Random) -> None:
    """Its content and that of another file of the folder change places; where there is no other, it gets its name."""
    others = [other for other in path.parent.glob("[!.]*") if other.is_file() and other != path]
    if path.suffix == ".pt":
        others = [path.with_name(f"{row.stem}.pt") for row in (path.parent.parent / "ntk").glob("[0-9a-f]*.parquet")]
    other = random.choice(sorted(others))
    aside = path.with_name(".aside")
    path.rename(aside)
    if other.exists():
        other.rename(path)
    aside.rename(other)


def _a_folder(path: Path, random: Random) -> None:
    path.unlink()
    path.mkdir()


def _a_dangling_link(path: Path, random: Random) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


WAYS: dict[str, Callable[[Path, Random], object]] = {
    "truncated": _truncated,
    "emptied": lambda path, random: path.write_bytes(b""),
    "flipped": _flipped,
    "swapped": _swapped,
    "removed": lambda path, random: path.unlink(),
    "a folder": _a_folder,
    "a dangling link": _a_dangling_link,
    "doubled": lambda path, random: shutil.copyfile(path, path.with_name(f"copy-of-{path.name}")),
}


def damage(root: Path, file: str, way: str, seed: int) -> str:
    """Do it to one of the files that match a pattern. Returns which; empty where there is none."""
    random = Random(seed)
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    files = [path for path in files if path.name[0] != "." and re.match(file, str(path.relative_to(root)))]
    if not files:
        return ""
    path = random.choice(files)
    WAYS[way](path, random)
    return str(path.relative_to(root))
