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
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from raysat.validation import InputError

Sources = Mapping[str, str]
"""Source text by module name."""


def resolve(reference: str) -> Callable[..., object]:
    """The function that an import path `module:function` names.

    Raises:
        InputError: There is no such module or function. What goes wrong inside the module is the module's own error.
    """
    module_name, _, function_name = reference.partition(":")
    try:
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


def gather(folder: Path, references: Sequence[str]) -> dict[str, str]:
    """The sources of what some import paths name, and of what that imports from the same folder.

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
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{reference!r} cannot be imported ({type(error).__name__}: {error}): mend it.") from error
    if not references:
        return {}
    sources = {}
    for name, module in list(sys.modules.items()):
        path = Path(getattr(module, "__file__", None) or "").resolve()
        own = folder.joinpath(*name.split("."))  # an environment that lies in the folder is not the user's own
        if path in (own.with_suffix(".py"), own / "__init__.py") and name.partition(".")[0] != "raysat":
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


def _present() -> _Finder | None:
    return next((finder for finder in sys.meta_path if isinstance(finder, _Finder)), None)


def installed() -> dict[str, str]:
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
