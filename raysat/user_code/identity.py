"""The identity of user code: the code on which a result depends, and whether it has changed since.

It is determined twice, each time from syntax (`raysat.user_code.syntax`), so that comments, layout, and functions next
to the one that is used do not count.

**Before the run**: the code that a reference `module:function` reaches in its own module and in the user's modules that
are imported with it. Its digest is part of the identity of each initialization and cell (`Code`); if it differs from
that of a results folder, the folder holds another sweep.

**During the run**: the user's files that are imported before a row is made, also inside functions, by `importlib`, or
by path. The row stores their digests (`user_files`): for compiled files a digest of their bytes, and for modules that
the user's code tried to import and that do not exist an empty one. If one of them has changed, disappeared or appeared,
the row is one of other code, and its cell runs again.

The user's files are those below the folder of the sweep file and the folders on `sys.path`, except the installation;
packages that are installed in place (`pip install -e`) are among them. Names are relative to these folders, and so the
same on every machine; a file elsewhere has its full path.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.abc import MetaPathFinder
from importlib.machinery import BYTECODE_SUFFIXES, EXTENSION_SUFFIXES
from pathlib import Path, PurePath
from types import FrameType, ModuleType
from typing import NamedTuple

from raysat.spec.cells import Initialization, identity
from raysat.spec.references import is_reference
from raysat.spec.training import PLAIN, Training, words_of
from raysat.user_code import plugins
from raysat.user_code.syntax import digest, digests

Files = dict[str, str]
"""Digests by file."""

_NOTHING = digest("")

ABSENT = ""
"""Replaces the digest of a module that was looked for and not found."""

_COMPILED = (*EXTENSION_SUFFIXES, *BYTECODE_SUFFIXES)

_recordings: list[dict[str, str | None]] = []
"""The texts of executed files, by path; None, by file name, for a module that was looked for and not found."""


class Code(NamedTuple):
    """The code of a sweep, as stored in `sweep.json`.

    Attributes:
        files: The digest of the part of each file that a reference reaches, by reference.
        ids: The code's id in the identity of initializations, by the references that they name. An id stays as it was
            when the results folder was made, even if a later raysat computes ids in another way.
    """

    files: dict[str, Files]
    ids: dict[str, str]

    @classmethod
    def of(cls, sources: plugins.Sources, groups: Iterable[Iterable[str]], before: object, earlier: str) -> Code:
        """Compute the code of groups of references; an initialization names each group.

        Args:
            sources: The user's modules.
            groups: The groups.
            before: The code stored in the results folder: the same as plain data, the digest of texts of an earlier
                raysat, or nothing.
            earlier: That digest of texts now.
        """
        groups = [tuple(group) for group in groups]
        files = {one: reached((one,), sources, deep=False) for group in groups for one in group}
        known = before["ids"] if isinstance(before, Mapping) else {}
        if earlier and before == earlier:
            known = {" ".join(group): earlier for group in groups}
        ids = {}
        for group in groups:
            own = identity("code", {one: files[one] for one in group})[:16] if group else ""
            ids[" ".join(group)] = known.get(" ".join(group), own)
        return cls(files, ids)

    def plain(self, before: object) -> dict | str:
        """Return the code as it is stored, with entries of references that are no longer named."""
        if not isinstance(before, Mapping):
            before = {"files": {}, "ids": {}}
        both = {"files": {**before["files"], **self.files}, "ids": {**before["ids"], **self.ids}}
        return both if both["files"] else ""


def differences(before: object, now: object) -> list[str]:
    """The files that have changed since a results folder was made.

    A folder of an earlier raysat has one digest of all texts: if it differs, any of the files may have changed.

    Args:
        before: The code stored in the folder.
        now: The code now, both as plain data.
    """
    if not isinstance(now, Mapping):
        return []
    if isinstance(before, str) and before:
        named = sorted({file for files in now["files"].values() for file in files})
        return [] if before in now["ids"].values() else [" or ".join(named)]
    changed = set()
    for reference, there in (before["files"] if isinstance(before, Mapping) else {}).items():
        here = now["files"].get(reference, there)
        changed |= {file for file in {*here, *there} if here.get(file, _NOTHING) != there.get(file, _NOTHING)}
    return sorted(changed)


def references_in(init: Initialization, training: Training = PLAIN) -> tuple[str, ...]:
    """Return the import paths that an initialization and a training name, sorted."""
    return references_of(init.dataset, init.loss, init.model.builder, *training.names)


def references_of(*names: object) -> tuple[str, ...]:
    """Return those of some names that are import paths, sorted."""
    return tuple(sorted({name for name in names if isinstance(name, str) and is_reference(name)}))


def reached(references: tuple[str, ...], sources: plugins.Sources, *, deep: bool) -> Files:
    """Return digests of what some references reach in each file; with `deep` also by imports inside functions."""
    return dict(_reached(references, tuple(sorted(sources.items(), key=lambda item: item[0])), deep))


@lru_cache(maxsize=64)
def _reached(references: tuple[str, ...], sources: tuple, deep: bool) -> Files:
    texts = {name: source.text for name, source in sources}
    packages = {name for name, source in sources if source.is_package}
    found = digests(references, texts, packages, deep=deep)
    of = dict(sources)
    # modules that do not travel: each machine has its own copy, which counts as a whole
    whole = {name: digest(of[name].text) for name in found if not of[name].travels}
    return {plugins.file_of(name, of[name].path): one for name, one in (found | whole).items()}


@contextmanager
def recorded() -> Iterator[dict[str, str | None]]:
    """Record the files that Python executes inside the block, by path, with their texts."""
    _listen()
    files: dict[str, str | None] = {}
    _recordings.append(files)
    try:
        yield files
    finally:
        _recordings.pop()


@cache
def _listen() -> None:
    """Install an audit hook on execution, the only way to see every kind of import."""
    sys.addaudithook(_heard)
    sys.meta_path.append(_Missed())


class _Missed(MetaPathFinder):
    """The last finder: records modules that the user's code looks for and no other finder has; finds nothing."""

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> None:
        if _recordings and _asked_by_user():
            note({name.replace(".", "/") + ".py": None})


def _asked_by_user() -> bool:
    """Return whether the importing code is the user's, and not a library's that tries an optional import."""
    frame: FrameType | None = sys._getframe(2)
    while frame and (frame.f_code.co_filename[:1] == "<" or frame.f_globals.get("__package__") == "importlib"):
        frame = frame.f_back
    return frame is not None and not plugins.is_installed(Path(os.path.abspath(frame.f_code.co_filename)))


def _heard(event: str, arguments: tuple) -> None:
    if event != "exec" or not _recordings:
        return
    code = arguments[0]
    path = getattr(code, "co_filename", "")
    if path[:1] == "<" or code.co_name != "<module>":
        return
    path = os.path.abspath(path)
    if not plugins.is_installed(Path(path)) and (text := _text(path)) is not None:
        note({path: text})


def note(files: Mapping[str, str | None]) -> None:
    """Record files as executed now; they were executed when an object was made that is reused now."""
    for recording in _recordings:
        recording.update({path: text for path, text in files.items() if path not in recording})


def _text(path: str) -> str | None:
    """The text of a file that is executed; None if absent, as for a file that was compiled elsewhere."""
    for source in plugins.installed().values():
        if source.path == path and source.travels:
            return source.text
    try:
        return plugins.read(Path(path))
    except (OSError, ValueError, SyntaxError):
        return None


def user_files(init: Initialization, training: Training = PLAIN) -> str | None:
    """The user's files that have been imported, as JSON for a row; None if none was recorded."""
    if not _recordings:
        return None
    sources, found = plugins.installed(), {}
    own = reached(references_in(init, training), sources, deep=True)
    here = folders(sources)
    travelled = {plugins.file_of(name, source.path) for name, source in sources.items() if source.travels}
    modules = {str(path): name for name, path in plugins.imported()}
    for path in compiled():
        if file := _called(path, here):
            found[file] = _as_loaded(path)
    for path, text in dict(_recordings[-1]).items():  # a copy: another thread may import meanwhile
        if text is None:
            found.setdefault(path, ABSENT)
            continue
        name = modules.get(path, "")
        file = plugins.file_of(name, path) if name else _called(Path(path), here)
        if file:
            found[file] = own[file] if file in own and file in travelled else digest(text)
    return json.dumps(found, sort_keys=True) if found else None


@dataclass(frozen=True)
class Present:
    """The user's files as they are now.

    Attributes:
        sources: The user's modules.
        folders: The folders in which other files are searched.
        references: The references whose modules these are.
    """

    sources: plugins.Sources
    folders: tuple[Path, ...]
    references: tuple[str, ...]

    @classmethod
    def here(cls, init: Initialization, training: Training = PLAIN) -> Present:
        """Read the files as a job has them."""
        sources, own = plugins.installed(), references_in(init, training)
        return cls(sources, folders(sources) if own else (), own)

    def changed(self, row: Mapping) -> list[str]:
        """The files that have changed or disappeared since a row of `trials` or `ntk` was made."""
        own = references_of(row["dataset"], row["loss"], row["model"], *words_of(row.get("training")))
        if not isinstance(row.get("user_files"), str) or not set(own) <= set(self.references):
            return []
        return [file for file, one in json.loads(row["user_files"]).items() if self._digest(own, file) != one]

    def _digest(self, references: tuple[str, ...], file: str) -> str:
        if file.endswith(_COMPILED):
            return next(filter(None, (_of_bytes(folder / file) for folder in self.folders)), ABSENT)
        if found := reached(references, self.sources, deep=True).get(file):
            return found
        places = [folder / file for folder in self.folders]
        name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in [*places, plugins.found(name)]:
            try:
                if path is not None and not plugins.is_installed(path):
                    return digest(plugins.read(path))
            except (OSError, ValueError, SyntaxError):
                continue
        return ABSENT


def compiled() -> Iterator[Path]:
    """Yield the files of the user's imported modules that have no text: extensions, and bytecode without source.

    A process keeps them for all its jobs, and each job may use them.
    """
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.endswith(_COMPILED) and not plugins.is_installed(path := Path(file)):
            yield path


@cache
def _as_loaded(path: Path) -> str:
    """The digest of a compiled module as the process has loaded it, even if its file is replaced later."""
    return _of_bytes(path)


def _of_bytes(path: Path) -> str:
    """The digest of a file's bytes; `ABSENT` if it does not exist."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return ABSENT


def folders(sources: plugins.Sources) -> tuple[Path, ...]:
    """The user's folders: those of modules, and the others on `sys.path`, the innermost first."""
    files = ((source.path, plugins.file_of(name, source.path)) for name, source in sources.items() if source.path)
    roots = {Path(path.removesuffix(file)) for path, file in files}
    roots |= {Path(folder).resolve() for folder in sys.path if Path(folder or ".").is_dir()}
    return tuple(sorted(roots, key=lambda folder: -len(folder.parts)))


def _called(path: Path, folders: Iterable[Path]) -> str:
    """Return a file's name relative to the user's folders; empty if a program has written the file."""
    inside = next((path.relative_to(folder) for folder in folders if folder in path.parents), path)
    made = any(part.startswith((".", "torchinductor_")) for part in inside.parts)
    return "" if made else PurePath(inside).as_posix()
