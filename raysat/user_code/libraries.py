"""The functions, classes and constants of PyTorch, NumPy, Python and raysat that jobs use.

User code may replace them. A constant is a value that nothing but user code rebinds.
"""

from __future__ import annotations

import builtins
import json
import math
import os
import pathlib
import random
import sys
import time
from collections.abc import Iterable
from functools import cache, partial
from types import FunctionType

import numpy as np
import torch

_WRITTEN = "__code__", "__defaults__"

_CONSTANTS = int, float, str, torch.dtype, torch.Generator

_METHODS = FunctionType, classmethod, staticmethod, property


class _Names(dict):
    """Objects by name, compared by identity: their own `__eq__` may say anything."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and self.keys() == other.keys() and all(other[k] is self[k] for k in self)

    __hash__ = None


@cache
def _library() -> tuple[tuple[object, frozenset[str] | None], ...]:
    """The modules and classes that a job uses; for a module with the names that count, for a class with None: all do.

    A module gains names as its parts are loaded, and these must stay; a name added to a class hides an inherited one.
    """
    nn, optim = torch.nn, torch.optim
    modules = [torch, nn, nn.functional, nn.init, nn.utils, torch.autograd, torch.func, torch.linalg, torch.fft]
    modules += [torch.special, torch.random, torch.cuda, torch.utils.data, optim, optim.lr_scheduler]
    modules += [np, np.random, np.linalg, np.fft, random, math, time, json, os, builtins]
    modules += [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == "raysat"]
    classes = [torch.Tensor, torch.autograd.Function, torch.utils.data.DataLoader, random.Random, pathlib.Path]
    classes += [one for of in (nn, optim, optim.lr_scheduler) for one in vars(of).values() if isinstance(one, type)]
    classes += [base for one in classes for base in one.__mro__ if base.__module__.startswith("torch.")]
    of_classes = ((one, None) for one in dict.fromkeys(classes) if one.__module__.partition(".")[0] != "typing")
    return (*((one, frozenset(filter(partial(_is_kept, one), _names(one, None)))) for one in modules), *of_classes)


def _is_kept(module: object, name: str) -> bool:
    value = vars(module)[name]
    return callable(value) or isinstance(value, _CONSTANTS)


def _names(place: object, names: frozenset[str] | None) -> _Names:
    """Return the objects of a module or class: under some names, or, given None, under all but its private ones."""
    return _Names(
        (name, one)
        for name, one in tuple(vars(place).items())
        if (name in names if names is not None else name[:1] != "_" or name[:2] == "__" or isinstance(one, _METHODS))
    )


def read() -> tuple[tuple[_Names, ...], _Names]:
    """Return the object of each name, and the code and defaults of those functions that are written in Python."""
    found = tuple(_names(*one) for one in _library())
    written = (one for names in found for one in names.values() if isinstance(one, FunctionType))
    return found, _Names(((one, name), getattr(one, name)) for one in written for name in _WRITTEN)


def write(before: tuple[Iterable[_Names], _Names]) -> None:
    """Restore what was read."""
    for (place, names), there in zip(_library(), before[0], strict=True):
        here = _names(place, names)
        for name in here.keys() - there.keys():
            delattr(place, name)
        for name, one in there.items():
            if here.get(name) is not one:
                setattr(place, name, one)
    for (function, name), value in before[1].items():
        if getattr(function, name) is not value:
            setattr(function, name, value)
