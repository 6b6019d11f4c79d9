"""The user's own modules: found where the sweep file's Python finds them, and sent to the workers.

A sweep names its own data set or model by import path, `module:function`. The sources of the named modules, and of the
user's modules that they import, are plain data: a worker on another machine imports them from the text. The user's
modules are those in the folder of the sweep file, and those that the named modules import from elsewhere on `sys.path`
(a `src` folder), but not installed ones. A package that is installed in place (`pip install -e`) counts as the user's
own for identity (`raysat.user_code.identity`), but is not sent.

A job imports the user's modules again and forgets them at its end (`anew`), so that their state does not reach another
job, and the job knows which of them it has used.

A module has the same `__file__` on every machine, so that it finds the files next to it on a machine that has the
folder. Those files are not sent: if they are missing, one sentence says so (`explained`).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.abc
import importlib.metadata
import importlib.util
import linecache
import os
import platform
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from raysat.errors import InputError
from raysat.messages.failures import in_words
from raysat.user_code import process
from raysat.user_code.syntax import statements


@dataclass(frozen=True)
class Source:
    """A module of the user's own.

    Attributes:
        text: Its text.
        path: The file in which it was found.
        travels: Whether it is sent to the workers; otherwise it is installed there, possibly in place.
    """

    text: str
    path: str = ""
    travels: bool = True

    @property
    def is_package(self) -> bool:
        """Whether it is the module of a package, `__init__.py`."""
        return Path(self.path).name == "__init__.py"

    @property
    def is_here(self) -> bool:
        """Whether this machine has the file, with the same text."""
        try:
            return bool(self.path) and read(Path(self.path)) == self.text
        except (OSError, ValueError, SyntaxError):
            return False


INSTALLED = {"site-packages", "dist-packages"}
"""The folders in which packages are installed."""

Sources = Mapping[str, Source]
"""Modules by name."""


def read(path: Path) -> str:
    """Read a module's text, in the encoding that it declares."""
    return importlib.util.decode_source(path.read_bytes())


def resolve(reference: str) -> Callable[..., Any]:
    """Return the function that an import path `module:function` names.

    Raises:
        InputError: There is no such module or function. Errors raised inside the module are passed on.
    """
    module_name, _, function_name = reference.partition(":")
    try:
        if module_name not in sys.modules:
            with process.undisturbed(but=process.LASTING), explained(reference):
                importlib.import_module(module_name)
        function = getattr(sys.modules[module_name], function_name, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise InputError(
            f"{reference!r} names the module {error.name}, which cannot be found: "
            f"put {error.name.replace('.', '/')}.py next to the sweep file."
        ) from None
    if not callable(function):
        raise InputError(f"{reference!r}: {module_name} has no function {function_name}; define it there.")
    return function


@contextmanager
def explained(reference: str) -> Iterator[None]:
    """Explain in one sentence a missing file that was next to a module and was not sent with it.

    Raises:
        InputError: Such a file is missing.
    """
    try:
        yield
    except FileNotFoundError as error:
        if not (behind := _left_behind(f"{error.filename} {error}")):
            raise
        raise InputError(
            f"{reference!r} reads a file of {behind}, which is not on {platform.node()}: modules are sent to "
            "other machines, the files next to them are not; put them where every machine finds them at the same path."
        ) from error


def _left_behind(text: str) -> str:
    """The folder of a module that is not on this machine, if an error's text names a path in it; else empty."""
    folders = (Path(source.path).parent for source in installed().values() if source.path and not source.is_here)
    return next((str(folder) for folder in folders if f"{folder}/" in text), "")


def gather(folder: Path, references: Sequence[str]) -> dict[str, Source]:
    """Collect the sources of the modules that some import paths name, and of the user's modules that they import.

    Args:
        folder: The folder of the sweep file; it is put on `sys.path`.
        references: Import paths `module:function`.

    Raises:
        InputError: There is no such module or function, or its module does not run.
    """
    install({})  # the files in the folder count, not those of an earlier sweep in this process
    importlib.invalidate_caches()
    folder = folder.resolve()
    for reference in references:
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
        with in_words(lambda why, reference=reference: f"{reference!r} cannot be imported ({why}): fix it."):
            resolve(reference)
    return _with_imports(folder, (reference.partition(":")[0] for reference in references), found) if references else {}


def earlier_digest(folder: Path, references: Sequence[str]) -> str:
    """Return the digest of an earlier raysat for references: the hash of the texts of their imported modules."""
    modules = (reference.partition(":")[0] for reference in references)
    sources = _with_imports(folder.resolve(), modules, _file)
    return digest({name: source for name, source in sources.items() if source.travels})


def _with_imports(folder: Path, names: Iterable[str], file: Callable[[str], Path | None]) -> dict[str, Source]:
    """The user's modules: those of some names, imported ones in the folder, and the modules that they import."""
    beside = []
    for name in list(sys.modules):
        path = _file(name)  # a virtual environment in the folder is not the user's own: its root is another folder
        if path and _root(name, path) == folder and not _is(name, "raysat") and name != "__main__":
            beside.append(name)
    waiting = [*beside, *names]
    seen, sources = set(waiting), {}
    while waiting:
        name = waiting.pop()
        path = file(name)
        if path is None or not (name in beside or is_own(name, path)):
            continue
        try:
            text = read(path)
        except (OSError, ValueError, SyntaxError):
            continue
        sources[name] = Source(text, str(path), name in beside or not _is_installed(name.partition(".")[0]))
        more = set(_imports(name, sources[name])) - seen
        seen |= more
        waiting += more
    return sources


def _file(name: str) -> Path | None:
    """The source file of an imported module; None if it has none."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return _text_file(name, file) if isinstance(file, str) else None


@cache
def _text_file(name: str, file: str) -> Path | None:
    """A module's file: links are resolved in the folder where its name begins, but not below, where the name counts."""
    if not file.endswith(".py"):
        return None
    path = Path(os.path.abspath(file))
    root = _root(name, path)
    return root.resolve() / path.relative_to(root) if root else path.resolve()


def found(name: str) -> Path | None:
    """The source file from which a module was, or would be, imported."""
    if name in sys.modules:
        return _file(name)
    inside, parts = None, name.split(".")
    for k in range(len(parts)):
        spec = _spec(".".join(parts[: k + 1]), inside)
        if spec is None:
            return None
        inside = spec.submodule_search_locations or []
    return _text_file(name, spec.origin or "")


def imported_from(files: Collection[str]) -> dict[str, Source]:
    """The sources of the user's modules that were imported from some files and are sent to the workers."""
    return {
        name: Source(read(path), str(path))
        for name, path in imported()
        if str(path) in files and is_own(name, path) and not _is_installed(name.partition(".")[0])
    }


def imported() -> Iterator[tuple[str, Path]]:
    """Yield the imported modules with a source file whose path agrees with their name."""
    for name in list(sys.modules):
        path = _file(name)
        if path and _root(name, path):
            yield name, path


def file_of(name: str, path: str) -> str:
    """The file of a module relative to the folder in which its name begins."""
    return name.replace(".", "/") + ("/__init__.py" if Path(path).name == "__init__.py" else ".py")


def _spec(name: str, inside: Sequence[str] | None) -> ModuleSpec | None:
    """Find a module's spec without importing the packages that contain it."""
    for finder in sys.meta_path:
        try:
            if spec := finder.find_spec(name, inside):
                return spec
        except (ImportError, AttributeError, ValueError, OSError):  # a third party's finder may fail
            continue
    return None


def _root(name: str, path: Path) -> Path | None:
    """The folder in which a module's name begins: `src` for `pkg.mod` in `src/pkg/mod.py`; None if they disagree."""
    inner = path.parent if path.name == "__init__.py" else path.with_suffix("")
    parts = name.split(".")
    return inner.parents[len(parts) - 1] if list(inner.parts[-len(parts) :]) == parts else None


def is_own(name: str, path: Path) -> bool:
    """Return whether a module is the user's own, in any folder; one that is installed in place is."""
    return _root(name, path) is not None and not is_installed(path.resolve())


def is_installed(path: Path) -> bool:
    """Return whether a file belongs to Python, to an installed package or to raysat."""
    return bool(INSTALLED & set(path.parts)) or any(folder in path.parents for folder in _installation())


@cache
def _installation() -> tuple[Path, ...]:
    python = (sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib"))
    return (*map(Path, python), *(Path(folder).resolve() for folder in python), Path(__file__).resolve().parents[1])


@cache
def _is_installed(top: str) -> bool:
    """Return whether a package of that name is installed, also if in place."""
    try:
        importlib.metadata.distribution(top)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return False
    return True


def _is(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def _imports(name: str, source: Source) -> Iterator[str]:
    """Yield the names that a module may import anywhere in it, and those of the packages that contain it."""
    package = name if source.is_package else name.rpartition(".")[0]
    named = [name]
    for statement in statements(package, source.text):
        for one in statement.imports:
            named += [one.module, *[f"{one.module}.{one.attribute}"] * bool(one.attribute)]
    for one in named:
        parts = one.split(".")
        yield from (".".join(parts[: k + 1]) for k in range(len(parts)))


def digest(sources: Sources) -> str:
    """The hash of the texts of some sources; empty for none."""
    if not sources:
        return ""
    text = "\0".join(f"{name}\0{sources[name].text}" for name in sorted(sources))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, sources: Sources) -> None:
        self.sources = dict(sources)
        self.carried = {name: source for name, source in sources.items() if source.travels}

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        package = any(other.startswith(f"{name}.") for other in self.carried)
        if name not in self.carried:  # a package without a file of its own
            return ModuleSpec(name, None, is_package=True) if package else None
        source = self.carried[name]
        here, package = source.is_here, package or source.is_package
        inside = [str(Path(source.path).parent)] * here if package else None
        # Its path also on a machine without it: a missing file next to it is then reported under that path.
        return importlib.util.spec_from_file_location(
            name, source.path or f"<{name}.py>", loader=self, submodule_search_locations=inside
        )

    def exec_module(self, module: ModuleType) -> None:
        text, spec = self.sources[module.__name__].text, module.__spec__
        assert spec is not None  # that of `find_spec`, which names an origin
        assert spec.origin is not None
        origin = spec.origin
        linecache.cache[origin] = (len(text), None, text.splitlines(True), origin)  # tracebacks show the lines
        with process.undisturbed(but=process.LASTING):
            exec(compile(text, origin, "exec"), module.__dict__)


def _present() -> _Finder | None:
    return next((finder for finder in sys.meta_path if isinstance(finder, _Finder)), None)


def installed() -> dict[str, Source]:
    """The sources that `install` last received in this process."""
    present = _present()
    return present.sources if present else {}


def install(sources: Sources) -> None:
    """Make `import` use these sources in this process, in place of modules imported under the same names."""
    present = _present()
    if present is not None and present.sources == dict(sources):
        return
    if present is not None:
        sys.meta_path.remove(present)
    _forget({*sources, *(present.sources if present else ())})
    if sources:
        sys.meta_path.insert(0, _Finder(sources))


@contextmanager
def anew(sources: Sources) -> Iterator[None]:
    """Import the user's modules again inside the block, from these sources, and forget them at its end.

    Modules that the sweep file has imported for itself are hidden meanwhile: a module that is not among the sources is
    imported as in any other process.
    """
    install(sources)
    _forget(sources)
    hidden = {name: sys.modules.pop(name) for name, path in list(imported()) if _is_hidden(name, path)}
    try:
        with forgotten():
            yield
    finally:
        _forget(sources)
        sys.modules.update(hidden)


@contextmanager
def forgotten() -> Iterator[None]:
    """Forget, when the block ends, the user's modules that were imported inside it."""
    before = set(sys.modules)
    try:
        yield
    finally:
        new = ((name, _file(name)) for name in set(sys.modules) - before)
        _forget({name for name, path in new if path and is_own(name, path)})


@cache
def _is_hidden(name: str, path: Path) -> bool:
    """Return whether it is a user's module that can be imported twice; an installed one may not allow that."""
    return name != "__main__" and is_own(name, path) and not _is_installed(name.partition(".")[0])


def _forget(names: Iterable[str]) -> None:
    for name in names:
        sys.modules.pop(name, None)
