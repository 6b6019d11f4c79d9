"""Read a sweep file and `--set` into a validated `Sweep`."""

from __future__ import annotations

import ast
import difflib
import operator
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType

from raysat.errors import InputError
from raysat.messages.failures import named
from raysat.models.architectures import ARCHITECTURES
from raysat.models.linearized import linearized
from raysat.spec.branches import Branches
from raysat.spec.stepsizes import fixed, fixed_fraction, grid, theory
from raysat.spec.sweep import Sweep, powers_of_two
from raysat.spec.training import Training, asynchronous
from raysat.user_code import process

_FUNCTIONS: dict[str, Callable[..., object]] = {
    "fixed": fixed,
    "fixed_fraction": fixed_fraction,
    "theory": theory,
    "grid": grid,
    "powers_of_two": powers_of_two,
    "linearized": linearized,
    "Training": Training,
    "Branches": Branches,
    "asynchronous": asynchronous,
    "range": range,
}
"""The functions that `--set` accepts besides the architectures."""

_OPERATORS: dict[type[ast.AST], Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}


def load(path: Path) -> Sweep:
    """Return the `Sweep` named `sweep` in a sweep file.

    Changes that the file makes to this process are undone, except `sys.path` and the environment of the workers.

    Raises:
        InputError: The file does not exist, does not run, or has no `sweep`.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; give the path of a sweep file, such as sweeps/quickstart.py.")
    module = ModuleType("__sweep__")
    module.__file__ = str(path)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        with process.undisturbed(but=process.FROM_A_FILE):
            exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also the SystemExit of a user's sys.exit
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else "?"
        raise InputError(f"{path}, line {line}: {named(error)}; fix the sweep file.") from error
    sweep = getattr(module, "sweep", None)
    if not isinstance(sweep, Sweep):
        raise InputError(f"{path} has no Sweep: end it with 'sweep = Sweep(...)'.")
    return sweep


def override(sweep: Sweep, settings: Sequence[str]) -> Sweep:
    """Return the sweep with fields replaced by `--set KEY=VALUE`.

    Raises:
        InputError: A field is unknown, or a value cannot be read or is not valid.
    """
    values = {}
    names = [field.name for field in fields(sweep)]
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals:
            raise InputError(f"--set {setting}: write --set KEY=VALUE, such as --set iterations=300.")
        if key not in names:
            close = difflib.get_close_matches(key, names, 1)
            hint = f"did you mean {close[0]}?" if close else f"the fields are {', '.join(names)}."
            raise InputError(f"--set {key}: a Sweep has no such field; {hint}")
        # a string, such as dataset=linear(n=64), needs no quotes
        plain = isinstance(getattr(sweep, key), str) and text.strip() != "None"
        values[key] = text.strip(" '\"") if plain else value(text, f"--set {setting}")
    try:
        return replace(sweep, **values)
    except InputError as error:
        raise InputError(f"--set: {error}") from None


def vocabulary() -> dict[str, Callable[..., object]]:
    """Return the functions that `--set` accepts, by name."""
    return _FUNCTIONS | {name: architecture.describe for name, architecture in ARCHITECTURES.items()}


def value(text: str, where: str) -> object:
    """Evaluate a small expression: literals, lists, dictionaries, arithmetic and the functions of `vocabulary`.

    Example:
        >>> value("[64, 2**7]", "--set widths=...")
        [64, 128]
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise InputError(f"{where}: this is no value; quote it for the shell, as in --set 'widths=[64]'.") from None
    try:
        return _evaluate(tree)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"{where}: {error}; use numbers, lists and {', '.join(vocabulary())}.") from None


def _evaluate(tree: ast.expr) -> object:
    match tree:
        case ast.Constant(value=constant):
            return constant
        case ast.List(elts=elements):
            return [_evaluate(element) for element in elements]
        case ast.Tuple(elts=elements):
            return tuple(_evaluate(element) for element in elements)
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {_evaluate(key): _evaluate(one) for key, one in zip(keys, values, strict=True) if key is not None}
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(left), _evaluate(right))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords) if name in vocabulary():
            named = {keyword.arg: _evaluate(keyword.value) for keyword in keywords if keyword.arg}
            return vocabulary()[name](*map(_evaluate, arguments), **named)
        case ast.Compare():  # a target, such as test_accuracy >= 0.9
            return ast.unparse(tree)
    raise ValueError(f"{ast.unparse(tree)} is not known here")
