"""Products with each sample's own kernel `S_i^T J_i J_i^T S_i`, for samples of many outputs: no Gram matrix is formed.

Three implementations agree: by layer rules, by `torch.func.vmap`, and one sample after the other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raysat.compute.sums import summed
from raysat.data.fields import Inputs
from raysat.errors import InputError
from raysat.losses import Loss
from raysat.models.functional import call
from raysat.ntk import plain
from raysat.ntk.kernel import KernelOperator, Products
from raysat.ntk.plain import trained
from raysat.ntk.refusal import NoStatistics
from raysat.ntk.rules import Outer, OuterSum, Share, formed
from raysat.ntk.survey import Survey
from raysat.ntk.uses import Use, record, rows_of

log = logging.getLogger(__name__)


class ByRules:
    """Products by layer rules: a backward pass down to the outputs of the layers, the rules, and the adjoint of both.

    Let `G u` be the gradients by the layers' outputs, linear in u, and `R G u` the rows of parameter gradients that the
    rules compute from them. The product is `G^T R^T R G u`. The graph of G is recorded once, and `R^T R g` is the
    derivative of `||R g||^2 / 2`, taken layer by layer. The p numbers of a sample's gradient are formed for one layer
    at a time, and not at all for a linear layer with no more positions than inputs: with its inputs A and gradients g
    at all positions, R^T R maps g to `A A^T g`, and `A A^T` is computed once.

    Args:
        network: The network.
        x: The samples.
        loss: The loss, whose Hessian weights the outputs.
        y: Targets, if any.
        survey: The parameters that the rules cover, which must be all.
    """

    def __init__(self, network: nn.Module, x: Inputs, loss: Loss, y: Tensor | None, survey: Survey) -> None:
        self.loss, self.y, self.notes = loss, y, survey.notes
        self.outputs, self.uses = record(network, x, survey.notes)
        self.produced = [use.output for use in self.uses]
        self.groups = _groups(self.uses)
        self.between: dict[str, Tensor] = {}  # A A^T, by parameter
        self.u = torch.zeros_like(self.outputs, requires_grad=True)
        rows = loss.factor(self.outputs.detach(), y, self.u)
        self.graph = torch.autograd.grad(
            self.outputs, self.produced, rows, create_graph=True, allow_unused=True, materialize_grads=True
        )
        if plain.is_cut(self.graph):
            raise RuntimeError("a backward function on the way has no derivative")

    def __call__(self, u: Float[Tensor, "n *outputs"]) -> Float[Tensor, "n *outputs"]:
        """Return the product of each sample."""
        gradients = self._by_outputs(self.loss.factor(self.outputs.detach(), self.y, u))
        images: list[Tensor | None] = [None] * len(gradients)  # R^T R G u, by use
        for group in self.groups:
            leaves = [gradients[k].requires_grad_() for k in group]
            with torch.enable_grad():
                found = torch.autograd.grad(self._energy(group, leaves), leaves)
            for k, image in zip(group, found, strict=True):
                images[k] = image
        # G^T is the backward pass of the recorded u -> G u; a use without a graph has no influence on the outputs.
        pairs = [(g, image) for g, image in zip(self.graph, images, strict=True) if g.requires_grad]
        used, along = zip(*pairs, strict=True)
        (product,) = torch.autograd.grad(used, self.u, along, retain_graph=True)
        return product

    def gradient_squares(self, u: Float[Tensor, "n *outputs"]) -> Float[Tensor, " n"]:
        """Return `||J_i^T u_i||^2` of each sample."""
        gradients = self._by_outputs(u)
        with torch.no_grad():
            rows = (self._rows(group, [gradients[k] for k in group]) for group in self.groups)
            return summed(_square(shares).double() for group in rows for shares in group.values())

    def _by_outputs(self, u: Tensor) -> list[Tensor]:
        """Return the gradients by the output of each use, for a cotangent u of the network's outputs."""
        found = torch.autograd.grad(
            self.outputs, self.produced, u, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return [gradient.detach() for gradient in found]

    def _energy(self, group: Sequence[int], gradients: Sequence[Tensor]) -> Tensor:
        """Return a number whose derivative by the gradients g of a group of uses is that of `||R g||^2 / 2`."""
        parts = []
        for name, shares in self._rows(group, gradients).items():
            (share, *others) = shares
            if isinstance(share, OuterSum) and share.is_short and not others:
                if name not in self.between:
                    self.between[name] = share.between()
                # The image A A^T g is detached: as a constant, it is the derivative of its product with g.
                image = torch.bmm(self.between[name], share.gradients.detach().squeeze(1))
                parts.append((share.gradients.squeeze(1) * image).sum())
            else:
                parts.append(_square(shares).sum() / 2)
        return summed(parts)

    def _rows(self, group: Sequence[int], gradients: Sequence[Tensor]) -> dict[str, list[Share]]:
        """Return the contributions of a group's uses to the rows of each parameter."""
        rows: dict[str, list[Share]] = {}
        for k, gradient in zip(group, gradients, strict=True):
            for name, share in rows_of(self.uses[k], self.notes[k], gradient[None]).items():
                rows.setdefault(name, []).append(share)
        return rows


def _square(shares: Sequence[Share]) -> Float[Tensor, " n"]:
    """Return the squared norm, for each sample, of a parameter's rows, the sum of the contributions of its uses."""
    if len(shares) == 1 and isinstance(shares[0], Outer):
        return shares[0].grams().flatten()
    return summed(formed(share) for share in shares).square().sum((1, 2))


def _groups(uses: Sequence[Use]) -> list[list[int]]:
    """Return the uses in groups that share no parameter with each other, so that `||R g||^2` is a sum over groups."""
    groups: list[tuple[set[str], list[int]]] = []
    for k, use in enumerate(uses):
        # Merge the use with every group that has one of its parameters.
        names, members = set(use.names.values()), [k]
        apart = []
        for others, their in groups:
            if others & names:
                names, members = names | others, their + members
            else:
                apart.append((others, their))
        groups = [*apart, (names, members)]
    return [sorted(members) for _, members in groups]


def by_vmap(
    network: nn.Module, x: Inputs, loss: Loss, y: Tensor | None
) -> Callable[[Float[Tensor, "n *outputs"]], Float[Tensor, "n *outputs"]]:
    """Return the function u -> products of all samples by `torch.func`, which forms p numbers per sample."""
    weights = {name: p.detach() for name, p in trained(network).items()}

    def product(sample: Inputs, target: Tensor | None, direction: Tensor) -> Tensor:
        def at(w: dict[str, Tensor]) -> Tensor:
            return call(network, w, sample[None])

        target = None if target is None else target[None]
        outputs, pull, *_ = torch.func.vjp(at, weights)
        (gradient,) = pull(loss.factor(outputs, target, direction[None]))
        # Reverse mode, then forward mode: S^T J (J^T S u).
        return loss.factor_transposed(outputs, target, torch.func.jvp(at, (weights,), (gradient,))[1])[0]

    def products(u: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.func.vmap(product, (0, None if y is None else 0, 0))(x, y, u)

    return products


def gradient_squares_by_vmap(network: nn.Module, x: Inputs, u: Float[Tensor, "n *outputs"]) -> Float[Tensor, " n"]:
    """Return `||J_i^T u_i||^2` of each sample, from per-sample gradients."""
    weights = {name: p.detach() for name, p in trained(network).items()}

    def gradient(sample: Inputs, direction: Tensor) -> dict[str, Tensor]:
        _, pull, *_ = torch.func.vjp(lambda w: call(network, w, sample[None])[0], weights)
        return pull(direction)[0]

    with torch.no_grad():
        rows = torch.func.vmap(gradient)(x, u)
    return summed(row.flatten(1).double().square().sum(1) for row in rows.values())


def one_sample(network: nn.Module, sample: Inputs, loss: Loss, y: Tensor | None, memory: int) -> KernelOperator:
    """Return the kernel operator of one sample, by double reverse mode or, if that fails, by the rows of its Jacobian.

    Raises:
        NoStatistics: The network has no second derivatives, and the rows do not fit in memory.
    """
    outputs = network(sample).detach()
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(outputs.shape, generator=generator, dtype=torch.float64, device="cpu").to(outputs)
    try:
        operator = KernelOperator(network, sample, 1, loss, y=y, way=Products.RECORDED)
        # Verified by u^T K u: second derivatives may be wrong without an error.
        exact = plain.quadratic_form(network, sample, loss, y, u, 1)
        if abs((u * operator(u)).double().sum().item() - exact) <= 1e-3 * exact:
            return operator
    except InputError:
        raise
    except Exception as error:  # the rows need no second derivatives
        log.debug("double reverse mode fails: %s", error)
    size = outputs.numel() * sum(p.numel() for p in trained(network).values()) * outputs.element_size()
    if size > memory:
        raise NoStatistics(
            f"the network has no second derivatives, and the Jacobian of one sample takes {size / 2**30:.1f} GiB: "
            f"give memory={size}, or fewer outputs."
        )
    return KernelOperator(network, sample, 1, loss, y=y, way=Products.ROWS)
