"""The user's own modules: found beside the sweep file, carried to wherever trials run, part of every identity.

A sweep names its own data set or model by import path, `module:function`. The sources of the named modules, and of
whatever they import from the same folder, are plain data: their digest tells whether a result is still theirs, and a
worker on another machine imports them from the text.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.abc
import importlib.util
import linecache
import sys
from collections.abc import Iterable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

Sources = Mapping[str, str]
"""Source text by module name."""


def gather(folder: Path, modules: Iterable[str]) -> dict[str, str]:
    """The sources of some modules and of what they import from the same folder.

    Args:
        folder: Where the sweep file lies; it is put on `sys.path`.
        modules: Names of modules to import.
    """
    folder = folder.resolve()
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    for name in modules:
        importlib.import_module(name)
    sources = {}
    for name, module in list(sys.modules.items()):
        path = Path(getattr(module, "__file__", None) or "")
        if name != "__main__" and path.suffix == ".py" and folder in path.resolve().parents:
            sources[name] = path.read_text()
    return sources


def digest(sources: Sources) -> str:
    """The hash of some sources; empty for none."""
    if not sources:
        return ""
    text = "\0".join(f"{name}\0{sources[name]}" for name in sorted(sources))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, sources: Sources) -> None:
        self.sources = dict(sources)

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self.sources:
            return None
        package = any(other.startswith(f"{name}.") for other in self.sources)
        return importlib.util.spec_from_loader(name, self, origin=f"<{name}.py>", is_package=package)

    def exec_module(self, module: ModuleType) -> None:
        text = self.sources[module.__name__]
        origin = f"<{module.__name__}.py>"
        linecache.cache[origin] = (len(text), None, text.splitlines(True), origin)  # tracebacks show the lines
        exec(compile(text, origin, "exec"), module.__dict__)


def install(sources: Sources) -> None:
    """Make `import` find modules by these sources in this process, instead of what it had under the same names."""
    present = next((finder for finder in sys.meta_path if isinstance(finder, _Finder)), None)
    if present is not None and present.sources == dict(sources):
        return
    if present is not None:
        sys.meta_path.remove(present)
    for name in {*sources, *(present.sources if present else ())}:
        sys.modules.pop(name, None)
    if sources:
        sys.meta_path.insert(0, _Finder(sources))
