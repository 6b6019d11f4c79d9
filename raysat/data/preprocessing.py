"""Preprocessing: fitted on the training samples in use, applied to the test samples as well.

It affects b_star strongly: on MNIST, the mean of uncentred data adds a direction of its own to the kernel, which then
determines k_op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from raysat.data.dataset import Dataset
from raysat.data.fields import Fields, each, tensors_of
from raysat.errors import InputError
from raysat.spec.cells import PREPROCESSINGS

Samples = Float[Tensor, "n *shape"]
Change = Callable[[Samples], Samples]
"""Changes samples in float64, in place."""

_VALUES = 1 << 20
"""Values held in float64 at a time: 8 MB, which stays in the cache. All of CIFAR-10 would be 1.2 GB."""


def preprocess(dataset: Dataset, how: str) -> Dataset:
    """Preprocess the inputs of a data set; the targets stay as they are.

    All is computed in float64 and then cast to the type of x. Tokens stay as they are for every `how`, and so do inputs
    of several tensors, such as tokens and a mask, if none is floating; floating ones are refused, because features
    cannot be told from masks here.

    Args:
        dataset: The samples in use.
        how: One of

            - `none`: as they are.
            - `center`: each feature minus its training mean, then all divided by one scalar, the root mean square of
              the result. A feature then has unit variance on average, which the factor 1/sqrt(m_0) of the NTK
              parametrization assumes; b_star of a bias-free ReLU network does not depend on that scalar.
            - `standardize`: minus the mean and divided by the standard deviation of each channel (images, [n, C, H,
              W]) or else of each feature. A constant one is divided by 1.
            - `unit_norm`: each sample divided by its Euclidean norm. A zero sample stays zero.

    Raises:
        InputError: `how` is none of these, or there are several tensors, one of them floating.
    """
    if how not in PREPROCESSINGS:
        raise InputError(f"preprocessing={how!r}: use one of {', '.join(PREPROCESSINGS)}.")
    if how == "none" or not any(tensor.is_floating_point() for tensor in tensors_of(dataset.x)):
        return dataset
    if isinstance(dataset.x, Fields):
        raise InputError(
            f"preprocessing={how!r} is for one floating tensor, and the inputs are {len(dataset.x.tensors)}, some of "
            "them floating: set preprocessing='none', and do in the loader what they need."
        )
    change = _unit_norm if how == "unit_norm" else _affine(dataset.x, how)
    x_test = None if dataset.x_test is None else each(partial(_apply, change), dataset.x_test)
    return replace(dataset, x=_apply(change, dataset.x), x_test=x_test)


def _affine(x: Samples, how: str) -> Change:
    """The map `(x - mean) / scale` of `center` or `standardize`."""
    over = (0, 2, 3) if how == "standardize" and x.ndim == 4 else (0,)
    mean, variance = _moments(x, over)
    scale = (variance.mean() if how == "center" else variance).sqrt()
    scale = torch.where(scale > 0, scale, 1)
    return lambda rows: rows.sub_(mean).div_(scale)


def _unit_norm(rows: Samples) -> Samples:
    norm = rows.flatten(1).norm(dim=1).view(-1, *[1] * (rows.ndim - 1))
    return rows.div_(torch.where(norm > 0, norm, 1))


def _moments(x: Samples, over: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and variance over some dimensions, the first of which is 0, in float64; reduced dimensions are kept as 1.

    Values are taken relative to the first one, so that the variance of a constant is exactly 0.
    """

    def average(change: Change) -> Tensor:
        total = sum(change(rows).sum(0, keepdim=True) for rows in _doubles(x))  # [1, *shape]
        return (cast(Tensor, total) / len(x)).mean(over, keepdim=True)

    first = x[tuple(slice(1 if dim in over else None) for dim in range(x.ndim))].double()
    mean = first + average(lambda rows: rows.sub_(first))
    return mean, average(lambda rows: rows.sub_(mean).square_())


def _apply(change: Change, x: Samples) -> Samples:
    changed = torch.empty_like(x)
    for rows, target in zip(_doubles(x), _pieces(changed), strict=True):
        target.copy_(change(rows))
    return changed


def _doubles(x: Samples) -> Iterator[Float64[Tensor, "rows *shape"]]:
    """Yield the pieces of x in float64, all in the same memory: each may be changed in place; the next overwrites it.

    Allocating memory for every piece would cost more than the arithmetic.
    """
    pieces = _pieces(x)
    buffer = torch.empty_like(pieces[0], dtype=torch.float64)
    for piece in pieces:
        yield buffer[: len(piece)].copy_(piece)


def _pieces(x: Samples) -> tuple[Tensor, ...]:
    return x.split(max(1, _VALUES // x[0].numel()))
