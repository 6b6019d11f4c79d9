"""The user's own modules: found where the sweep file's Python finds them, carried to wherever trials run.

A sweep names its own data set or model by import path, `module:function`. The sources of the named modules, and of
whatever they import of the user's own, are plain data: their digest tells whether a result is still theirs, and a
worker on another machine imports them from the text. The user's own is what lies in the folder of the sweep file, and
what the named modules import from elsewhere on `sys.path` (a `src` folder), but no installed package.

A module has its `__file__` wherever it runs, so that on a machine that has the folder it finds what lies beside it. The
files that lie there do not travel: where they are missed, one sentence says so (`explained`).
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.abc
import importlib.metadata
import importlib.util
import linecache
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from raysat.failures import named
from raysat.validation import InputError


@dataclass(frozen=True)
class Source:
    """A module of the user's own.

    Attributes:
        text: Its text.
        path: Its file, where it was found.
    """

    text: str
    path: str = ""

    @property
    def is_here(self) -> bool:
        """Whether this machine has the file, with the same text."""
        try:
            return bool(self.path) and Path(self.path).read_text() == self.text
        except (OSError, ValueError):
            return False


INSTALLED = {"site-packages", "dist-packages"}
"""The folders in which packages are installed."""

Sources = Mapping[str, Source]
"""Modules by name."""


def resolve(reference: str) -> Callable[..., object]:
    """The function that an import path `module:function` names.

    Raises:
        InputError: There is no such module or function. What goes wrong inside the module is the module's own error.
    """
    module_name, _, function_name = reference.partition(":")
    try:
        with explained(reference):
            function = getattr(importlib.import_module(module_name), function_name, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise InputError(
            f"{reference!r} names the module {error.name}, which cannot be found: "
            f"put {error.name.replace('.', '/')}.py beside the sweep file."
        ) from None
    if not callable(function):
        raise InputError(f"{reference!r}: {module_name} has no function {function_name}; define it there.")
    return function


@contextmanager
def explained(reference: str) -> Iterator[None]:
    """Say in one sentence what a file is that is missing beside a module which has travelled without it.

    Raises:
        InputError: Such a file is missing.
    """
    try:
        yield
    except FileNotFoundError as error:
        if not (behind := _left_behind(f"{error.filename} {error}")):
            raise
        raise InputError(
            f"{reference!r} reads a file of {behind}, which is not on {platform.node()}: modules travel to other "
            "machines, the files beside them do not; put them where every machine finds them at the same path."
        ) from error


def _left_behind(text: str) -> str:
    """The folder of a module that is not on this machine, where an error's text names something in it."""
    folders = (Path(source.path).parent for source in installed().values() if source.path and not source.is_here)
    return next((str(folder) for folder in folders if f"{folder}/" in text), "")


def gather(folder: Path, references: Sequence[str]) -> dict[str, Source]:
    """The sources of what some import paths name, and of what that imports of the user's own.

    Args:
        folder: Where the sweep file lies; it is put on `sys.path`.
        references: Import paths `module:function`.

    Raises:
        InputError: There is no such module or function, or its module does not run.
    """
    install({})  # what lies in the folder counts, not what an earlier sweep of this process brought
    folder = folder.resolve()
    for reference in references:
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
        try:
            resolve(reference)
        except (InputError, KeyboardInterrupt):
            raise
        except BaseException as error:  # also the SystemExit of a user's sys.exit
            raise InputError(f"{reference!r} cannot be imported ({named(error)}): mend it.") from error
    if not references:
        return {}
    sources = {}
    for name in list(sys.modules):
        path = _file(name)  # an environment that lies in the folder is not the user's own
        if path and _root(name, path) == folder and not _is(name, "raysat"):
            sources[name] = Source(path.read_text(), str(path))
    waiting = [*sources, *(reference.partition(":")[0] for reference in references)]
    seen = set(waiting)
    while waiting:
        name = waiting.pop()
        if name not in sources:
            path = _file(name)
            if path is None or not _is_own(name, path):
                continue
            sources[name] = Source(path.read_text(), str(path))
        more = set(_imports(name, sources[name])) - seen
        seen |= more
        waiting += more
    return sources


def _file(name: str) -> Path | None:
    """The text file that a module was imported from."""
    path = Path(getattr(sys.modules.get(name), "__file__", None) or "")
    return path.resolve() if path.suffix == ".py" else None


def _root(name: str, path: Path) -> Path | None:
    """The folder in which a module's file lies as its name says: `src` of `src/pkg/mod.py`, of `pkg.mod`."""
    inner = path.parent if path.name == "__init__.py" else path.with_suffix("")
    parts = name.split(".")
    return inner.parents[len(parts) - 1] if list(inner.parts[-len(parts) :]) == parts else None


def _is_own(name: str, path: Path) -> bool:
    """Whether a module is the user's own although it does not lie beside the sweep file."""
    top = name.partition(".")[0]
    if _root(name, path) is None or _is(name, "raysat") or top in sys.stdlib_module_names:
        return False
    return not INSTALLED & set(path.parts) and not _is_installed(top)


@cache
def _is_installed(top: str) -> bool:
    """Whether a package of that name is installed, be it from a folder of its developer's."""
    try:
        importlib.metadata.distribution(top)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return False
    return True


def _is(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def _imports(name: str, source: Source) -> Iterator[str]:
    """The modules that a module imports, of those that are imported, and the packages that it lies in."""
    package = name if Path(source.path).name == "__init__.py" else name.rpartition(".")[0]
    named = [name]
    for node in ast.walk(ast.parse(source.text)):
        if isinstance(node, ast.Import):
            named += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join(filter(None, (*above, node.module)))
            named += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    for one in named:
        parts = one.split(".")
        yield from (whole for k in range(len(parts)) if (whole := ".".join(parts[: k + 1])) in sys.modules)


def digest(sources: Sources) -> str:
    """The hash of the texts of some sources; empty for none."""
    if not sources:
        return ""
    text = "\0".join(f"{name}\0{sources[name].text}" for name in sorted(sources))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, sources: Sources) -> None:
        self.sources = dict(sources)

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        package = any(other.startswith(f"{name}.") for other in self.sources)
        if name not in self.sources:  # a package without a file of its own
            return ModuleSpec(name, None, is_package=True) if package else None
        source = self.sources[name]
        here, package = source.is_here, package or Path(source.path).name == "__init__.py"
        inside = [str(Path(source.path).parent)] * here if package else None
        # Its path also where it is not: what it reads from beside itself is then missed there, by that name.
        return importlib.util.spec_from_file_location(
            name, source.path or f"<{name}.py>", loader=self, submodule_search_locations=inside
        )

    def exec_module(self, module: ModuleType) -> None:
        text, origin = self.sources[module.__name__].text, module.__spec__.origin
        linecache.cache[origin] = (len(text), None, text.splitlines(True), origin)  # tracebacks show the lines
        exec(compile(text, origin, "exec"), module.__dict__)


def _present() -> _Finder | None:
    return next((finder for finder in sys.meta_path if isinstance(finder, _Finder)), None)


def installed() -> dict[str, Source]:
    """The sources that `install` was last given in this process."""
    present = _present()
    return present.sources if present else {}


def install(sources: Sources) -> None:
    """Make `import` find modules by these sources in this process, instead of what it had under the same names."""
    present = _present()
    if present is not None and present.sources == dict(sources):
        return
    if present is not None:
        sys.meta_path.remove(present)
    for name in {*sources, *(present.sources if present else ())}:
        sys.modules.pop(name, None)
    if sources:
        sys.meta_path.insert(0, _Finder(sources))
