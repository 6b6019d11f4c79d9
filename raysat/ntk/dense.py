"""K of a few samples as a matrix, in float64 if the network runs in it, and checked on random vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raysat.data.fields import Inputs
from raysat.errors import InputError
from raysat.losses import LOSSES
from raysat.messages.failures import first_sentence
from raysat.models.unpacked import adapt
from raysat.ntk import grams, plain
from raysat.ntk.certificate import TOLERANCE, check_kernel
from raysat.ntk.context import cast, differentiable
from raysat.ntk.grams import Parts, without_rules
from raysat.ntk.look import check_weights, floating_to, looked_at
from raysat.ntk.refusal import NoStatistics
from raysat.ntk.survey import Survey, survey


@dataclass(frozen=True)
class DenseKernel:
    """K as a matrix, with its check against plain autograd.

    Attributes:
        matrix: K for the squared error. Shape: [n C, n C].
        check: Largest relative difference of `u^T K u` from plain autograd, over random vectors u.
    """

    matrix: Float[Tensor, "size size"]
    check: float


def dense_kernel(network: nn.Module, x: Inputs | Mapping | Sequence) -> Float[Tensor, "size size"]:
    """Return K of a few samples as a matrix of size nC, for the squared error, without a bound on memory.

    It is computed in float64, so that small eigenvalues stand out from rounding, from the same weights; if the network
    does not run in float64, in its own dtype.

    Raises:
        NoStatistics: The network has no statistics, or no implementation agrees with plain autograd.
    """
    return checked_kernel(network, x).matrix


def checked_kernel(network: nn.Module, x: Inputs | Mapping | Sequence) -> DenseKernel:
    """Return the matrix of `dense_kernel` with its check."""
    network, x = adapt(network, x)
    try:
        return _in(torch.float64, network, x)
    except NoStatistics:
        return _in(None, network, x)


def _in(dtype: torch.dtype | None, network: nn.Module, x: Inputs) -> DenseKernel:
    """Return the kernel computed in a dtype; None for the network's own."""
    check_weights(network)
    with cast(network, dtype) if dtype else nullcontext():
        x = floating_to(x, dtype) if dtype else x
        with looked_at(network, x, None, LOSSES["mse"]) as look:
            with differentiable(look.network):
                surveyed = survey(look.network, look.few, look.x, len(look.x))
            errors = []
            for parts in _ways(look.network, surveyed):
                try:
                    with differentiable(look.network):
                        matrix = grams.kernel(look.network, look.x, parts)
                    check = check_kernel(look.network, look.x, LOSSES["mse"], matrix, look.shape)
                except InputError:
                    raise
                except Exception as error:  # the next implementation does not depend on the one that failed
                    errors.append(first_sentence(error))
                    look.state.repair()  # a transform that failed midway may have left its tensors as parameters
                    continue
                if check <= TOLERANCE[matrix.dtype]:
                    return DenseKernel(matrix, check)
                errors.append(f"off by {check:.1e}")
            raise NoStatistics(
                f"no way to the dense kernel agrees with plain autograd ({'; '.join(errors)}): set dense_samples=0."
            )


def _ways(network: nn.Module, surveyed: Survey) -> Iterator[Parts]:
    """Yield the implementations, the fastest first; the last uses nothing but plain autograd."""
    if surveyed.covered:
        yield Parts(surveyed, surveyed.rest, grams.jacobians)
        yield Parts(surveyed, surveyed.rest, plain.rows)
    yield without_rules(network, grams.jacobians)
    yield without_rules(network, plain.rows)
