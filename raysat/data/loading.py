"""Loading of data sets by name: the samples that a sweep uses."""

from __future__ import annotations

import ast
import inspect
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from raysat.data.builtin import BUILTIN, fixed_subset
from raysat.data.dataset import Dataset
from raysat.data.preprocessing import preprocess
from raysat.errors import InputError
from raysat.spec.cells import DTYPES
from raysat.spec.references import is_reference
from raysat.user_code import identity, plugins, process
from raysat.user_code.plugins import explained, resolve
from raysat.user_code.seeding import seeded

NAMES = tuple(BUILTIN)
"""The built-in data sets."""

Options = tuple[tuple[str, int | float], ...]


def load(
    name: str,
    *,
    n_train: int | None = None,
    n_test: int | None = None,
    preprocessing: str = "center",
    dtype: str = "float32",
    keep: bool = True,
) -> Dataset:
    """Load a data set, reduce it to a subset, preprocess and cast it. The last two results are kept in memory.

    The files of a built-in data set are searched in the folder named by the environment variable RAYSAT_DATA, then in
    the user's cache, and are downloaded if they are in neither. Their digests are verified every time.

    Args:
        name: One of `NAMES`; `linear(n=.., d=.., power=.., seed=..)`; or `module:function`, a function without
            arguments that returns a `Dataset`.
        n_train: Training samples: a fixed pseudo-random subset in file order, which contains that of any smaller
            n_train. Default: all.
        n_test: Test samples, likewise; 0 for none. Default: all, but at most n_train if that is given.
        preprocessing: `none`, `center`, `standardize` or `unit_norm`, fitted on the training samples in use (see
            `preprocess`). Default: center; the mean of uncentred data adds a direction of its own to the kernel.
        dtype: `float32` or `float64`, of x and y. Tokens and labels are int64 always.
        keep: Keep it in memory for the next call.

    Returns:
        The samples, shared by all callers in this process: treat the tensors as read-only.

    Raises:
        InputError: The name is unknown, a loader needs arguments or returns no `Dataset`, a size or option is
            impossible, or a file is missing or is not the original.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r}: use one of {', '.join(DTYPES)}.")
    builder, options = _imported(name) if is_reference(name) else _built_in(name)
    sources = plugins.installed()
    code = plugins.digest(sources) if name.partition(":")[0] in sources else builder
    wanted = _Wanted(name, builder, options, code)
    make = _load if keep else _load.__wrapped__
    dataset, files = make(wanted, n_train, n_test, preprocessing, dtype, os.environ.get("RAYSAT_DATA"))
    identity.note(files)
    return dataset


def forget_own() -> None:
    """Forget the data sets in memory, so that the user's loaders are called again."""
    _load.cache_clear()


@dataclass(frozen=True)
class _Wanted:
    """A data set's name and builder; a user's builder is compared by its source, as each job imports it again."""

    name: str
    builder: Callable[..., Dataset] = field(compare=False)
    options: Options
    code: object


@lru_cache(maxsize=2)
def _load(
    wanted: _Wanted,
    n_train: int | None,
    n_test: int | None,
    preprocessing: str,
    dtype: str,
    data_folder: str | None,
) -> tuple[Dataset, dict[str, str | None]]:
    """The cached part of `load`, with the files that it has executed.

    The data folder is an argument because the cached result depends on it. A user's loader is seeded, so that it draws
    the same numbers wherever it is called.
    """
    name = wanted.name
    files: dict[str, str | None] = {}
    with ExitStack() as stack:
        if is_reference(name):
            stack.enter_context(process.undisturbed(but=process.LASTING))
            stack.enter_context(seeded(0))
            stack.enter_context(explained(name))
            files = stack.enter_context(identity.recorded())
        dataset = wanted.builder(**dict(wanted.options))
    if not isinstance(dataset, Dataset):
        raise InputError(
            f"dataset={name!r} returned {type(dataset).__name__}: return raysat.data.Dataset(x=..., y=...)."
        )
    dataset = _subset(name, dataset, n_train, n_test)
    target = getattr(torch, dtype)
    if isinstance(dataset.x, Tensor) and dataset.x.is_floating_point():
        # preprocess in the wider type, so that no digits are lost before the cast
        dataset = _cast(dataset, torch.promote_types(dataset.x.dtype, target))
    return _cast(preprocess(dataset, preprocessing), target), files


def _built_in(name: str) -> tuple[Callable[..., Dataset], Options]:
    """The builder of a built-in name, and the options after it, checked against the builder's defaults."""
    base, given = _parse(name)
    if base not in BUILTIN:
        raise InputError(
            f"dataset={name!r} is not known: use one of {', '.join(NAMES)}, linear(n=256, d=64, power=1.0, seed=0), "
            "or an import path 'module:function'."
        )
    defaults = {key: parameter.default for key, parameter in inspect.signature(BUILTIN[base]).parameters.items()}
    for key, value in given.items():
        if key not in defaults:
            remedy = f"the options are {', '.join(defaults)}" if defaults else "write its name alone"
            raise InputError(f"dataset={name!r} has the option {key}, which {base} does not: {remedy}.")
        if type(value) not in {int, type(defaults[key])}:
            kind = "whole number" if isinstance(defaults[key], int) else "number"
            raise InputError(f"dataset={name!r} has {key}={value!r}: give a {kind}.")
    return BUILTIN[base], tuple((key, type(defaults[key])(value)) for key, value in given.items())


def _parse(name: str) -> tuple[str, dict[str, Any]]:
    """Parse `linear(n=64)` into `("linear", {"n": 64})`; a name of another form stays as it is, without options."""
    try:
        call = ast.parse(name, mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
            return call.func.id, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError):
        pass
    return name, {}


def _imported(name: str) -> tuple[Callable[[], Dataset], Options]:
    """The user's loader at an import path."""
    loader = resolve(name)
    try:
        inspect.signature(loader).bind()
    except TypeError:
        raise InputError(f"dataset={name!r} needs arguments: give each of them a default.") from None
    return loader, ()


def _subset(name: str, dataset: Dataset, n_train: int | None, n_test: int | None) -> Dataset:
    """Select the training and test samples in use, in file order."""
    if n_test is None:
        n_test = dataset.n_test if n_train is None else min(n_train, dataset.n_test)
    train = _choose(name, "train", n_train, dataset.n)
    test = _choose(name, "test", n_test, dataset.n_test)
    return replace(
        dataset,
        x=dataset.x[train],
        y=dataset.y[train],
        x_test=dataset.x_test[test] if n_test and dataset.x_test is not None else None,
        y_test=dataset.y_test[test] if n_test and dataset.y_test is not None else None,
    )


def _choose(name: str, split: str, count: int | None, available: int) -> Tensor | slice:
    """Return an index of the samples in use; for all of them a slice, which copies nothing."""
    if count is None or count == available:
        return slice(None)
    least = 1 if split == "train" else 0
    if not least <= count <= available:
        raise InputError(
            f"n_{split}={count}, but {name} has {available} {split} samples: "
            f"give {least} to {available}, or leave n_{split} out to use all."
        )
    return torch.from_numpy(fixed_subset(available, count))


def _cast(dataset: Dataset, dtype: torch.dtype) -> Dataset:
    """Cast floating tensors to another type; tokens, labels and masks stay as they are."""
    return dataset.map(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
