"""The folders of the package are rooms in the order of the data: each imports from those above it alone."""

import ast
import importlib
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

PACKAGE = Path(__file__).parents[1] / "raysat"
ROOMS = (
    *("text", "errors", "messages", "spec", "user_code", "saturation", "storage", "losses", "data", "models"),
    *("compute", "ntk", "sgd", "trial", "executor", "driver", "analysis", "plots", "report"),
)
"""From top to bottom. All other modules at the root are below the rooms, and imported by none of them."""

FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imported(path):
    """The modules of the package that a file imports, also inside of functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "raysat")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "raysat":
            assert not node.level, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names)


def room(module):
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_room_imports_from_the_rooms_above_it_alone(path):
    here = room(name_of(path))
    if here in ROOMS:
        for module in imported(path):
            assert room(module) in ROOMS[: ROOMS.index(here) + 1], f"{here} imports {module}"


def test_the_root_has_what_a_user_types_or_imports():
    at_root = [name for name in MODULES if name.count(".") == 1 and MODULES[name].name != "__init__.py"]
    assert len(at_root) + 1 <= 16
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} <= set(ROOMS)


def test_signatures_are_checked_in_modules_that_exist():
    """A name in `--jaxtyping-packages` that does not exist is no error: its signatures would go unchecked."""
    options = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"]
    (names,) = re.findall(r"--jaxtyping-packages=(\S+)", options)
    *checked, checker = names.split(",")
    assert checker == "beartype.beartype"
    assert set(checked) <= set(MODULES)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_module_and_no_function_is_too_long_to_be_read(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 80, node.name


def test_no_name_is_a_module_and_something_else():
    """A function that a package exports under the name of one of its modules would hide the module."""
    for name, path in MODULES.items():
        package, _, last = name.rpartition(".")
        if package and path.name not in ("__init__.py", "__main__.py"):
            importlib.import_module(name)
            assert isinstance(getattr(sys.modules[package], last), ModuleType), name
