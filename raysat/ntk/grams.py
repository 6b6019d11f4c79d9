"""Per-sample Gram matrices `J_i J_i^T in R^{C x C}` of the Jacobian, and the kernel between all samples.

With layer rules they take one forward pass and C backward passes down to the outputs of the layers, and no parameter
gradient is formed if a layer is applied once per sample. Only parameters that the rules do not cover
(`raysat.ntk.survey`) contribute explicit rows, of their own columns of the Jacobian.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raysat.compute.memory import saved_per_sample
from raysat.data.fields import Inputs
from raysat.models.functional import call
from raysat.ntk.plain import trained
from raysat.ntk.rules import Outer, formed
from raysat.ntk.survey import Survey
from raysat.ntk.uses import Use, record, shares_of

Rows = Callable[[nn.Module, Inputs, tuple[str, ...]], Float[Tensor, "n outputs p"]]
"""Function that forms the Jacobian of some parameters: `jacobians` or `plain.rows`."""


@dataclass(frozen=True)
class Parts:
    """Split of the parameters into those covered by layer rules and the rest.

    Attributes:
        survey: The parameters that the rules cover.
        rest: Names of the other parameters.
        rows: Function that forms the Jacobian of `rest`.
    """

    survey: Survey
    rest: tuple[str, ...]
    rows: Rows


def without_rules(network: nn.Module, rows: Rows) -> Parts:
    """Return the split in which no rule is used and `rows` forms the Jacobian of all parameters."""
    names = tuple(trained(network))
    return Parts(Survey((), frozenset(), names, ""), names, rows)


def grams(
    network: nn.Module, x: Inputs, parts: Parts
) -> tuple[Float[Tensor, "n outputs"], Float[Tensor, "n outputs outputs"]]:
    """Return outputs `f(w, x_i)`, with their graph, and Gram matrices `J_i J_i^T` of samples that fit in memory."""
    # The columns of J_i are grouped by parameter, so its Gram matrix is the sum of those of the parameters.
    outputs = network(x) if not parts.survey.covered else None
    gram: Tensor | float = 0.0
    if outputs is None:
        outputs, uses, gradient = _passes(network, x, parts.survey)
        gram = outputs.new_zeros(len(x), outputs.shape[1], outputs.shape[1])
        for _, share in shares_of(uses, parts.survey.notes, gradient, parts.survey.covered):
            gram += share.grams() if isinstance(share, Outer) else (rows := formed(share)) @ rows.mT
    if parts.rest:
        rows = parts.rows(network, x, parts.rest)
        gram = gram + rows @ rows.mT
    return outputs, cast(Tensor, gram).detach()


def kernel(network: nn.Module, x: Inputs, parts: Parts) -> Float[Tensor, "size size"]:
    """Return the dense `K = (1/n) J J^T` of a few samples: (nC)^2 numbers, plus the rows of one parameter at a time."""
    total: Tensor | float = 0.0
    if parts.survey.covered:
        outputs, uses, gradient = _passes(network, x, parts.survey)
        size = outputs.numel()
        total = outputs.new_zeros(size, size)
        for _, share in shares_of(uses, parts.survey.notes, gradient, parts.survey.covered):
            if isinstance(share, Outer):
                total += share.kernel().reshape(size, size)  # sample and output become one axis, samples first
            else:
                rows = formed(share).reshape(size, -1)
                total += rows @ rows.T
    if parts.rest:
        rows = parts.rows(network, x, parts.rest).flatten(0, 1)
        total = total + rows @ rows.T
    return (cast(Tensor, total) / len(x)).detach()


def _passes(network: nn.Module, x: Inputs, survey: Survey) -> tuple[Tensor, list[Use], Callable[[int], Tensor]]:
    """Return outputs, uses, and a function from k to the gradients of all C outputs by the k-th use's output.

    Shape of the gradients: [C, *output]. They are stacked on demand, so that only one use's exist twice at a time.
    """
    outputs, uses = record(network, x, survey.notes)
    produced = [use.output for use in uses]
    # One backward pass per output: summing over samples loses nothing, since output c of a sample depends on its own
    # activations only.
    passes = [
        torch.autograd.grad(outputs[:, c].sum(), produced, retain_graph=True, materialize_grads=True, allow_unused=True)
        for c in range(outputs.shape[1])
    ]
    return outputs, uses, lambda k: torch.stack([rows[k] for rows in passes])


def jacobians(network: nn.Module, x: Inputs, names: tuple[str, ...]) -> Float[Tensor, "n outputs p"]:
    """Return the Jacobian of some parameters by `torch.func.vmap(jacrev)`."""
    weights = trained(network)
    chosen = {name: weights[name].detach() for name in names}
    # The other parameters are detached, too: otherwise their graph would be recorded for nothing.
    others = {name: weight.detach() for name, weight in weights.items() if name not in chosen}

    def output(weights: dict[str, Tensor], sample: Inputs) -> Tensor:
        return call(network, others | weights, sample[None])[0]

    rows = torch.func.vmap(torch.func.jacrev(output), (None, 0))(chosen, x)
    return torch.cat([row.reshape(*row.shape[:2], -1) for row in rows.values()], 2)


def bytes_per_sample(network: nn.Module, few: Inputs, parts: Parts) -> int:
    """Return an estimate of the memory that computing the Gram matrix of one sample takes."""
    outputs = network(few[:1]).shape[1]
    weights = trained(network)
    size = next(iter(weights.values())).element_size()
    total = 6 * saved_per_sample(network, few)  # activations, their copies in the backward pass, and temporaries
    if parts.survey.covered:
        _, uses, gradient = _passes(network, few[:1], parts.survey)
        produced = [use.output.numel() for use in uses]
        # Gradients of all outputs by every use's output, and the stack of the largest use with its copy.
        total += (outputs * sum(produced) + 2 * outputs * max(produced, default=0)) * size
        shares = shares_of(uses, parts.survey.notes, gradient, parts.survey.covered)
        total += (
            2 * size * max((formed(share).numel() for _, share in shares if not isinstance(share, Outer)), default=0)
        )
    if parts.rest:
        # The rows and their concatenation, and the backward pass that `jacrev` batches over the C outputs.
        columns = sum(weights[name].numel() for name in parts.rest)
        total += 2 * outputs * columns * size + outputs * saved_per_sample(network, few)
    return total
