"""The reference: reverse-mode autograd of one sample at a time, which serves whatever `loss.backward()` serves.

Nothing else is relied on: no transform of functions, no second derivative, no hook in the network. All other ways are
held against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from raysat.compute.sums import summed
from raysat.data.fields import Inputs
from raysat.losses import Loss


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the statistics are about: those that require a gradient, each once."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def gradients(
    outputs: Tensor,
    parameters: Sequence[Tensor],
    cotangent: Tensor | None = None,
    *,
    keep: bool = False,
    reentrant: bool | None = None,
) -> list[Tensor]:
    """`J^T u` for each parameter; zeros for one that the outputs do not depend on.

    Args:
        outputs: With their graph.
        parameters: Those to differentiate by.
        cotangent: u, of the outputs' shape; 1 by default, for outputs that are one number.
        keep: Whether the graph is needed again.
        reentrant: As `is_reentrant` says, where it is known: then the gradients are what `backward` adds to `.grad`.
    """
    if not outputs.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    if (
        cotangent is not None
    ):  # as a number's gradient: given to `grad` itself, u makes PyTorch load sympy, half a second
        outputs = (outputs * cotangent).sum()
    if not (is_reentrant(outputs) if reentrant is None else reentrant):
        found = torch.autograd.grad(outputs, parameters, retain_graph=keep, allow_unused=True, materialize_grads=True)
        return [_dense(gradient) for gradient in found]
    before = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        torch.autograd.backward(outputs, retain_graph=keep)
        return [torch.zeros_like(p) if p.grad is None else _dense(p.grad) for p in parameters]
    finally:
        for p, grad in zip(parameters, before, strict=True):
            p.grad = grad


def _dense(gradient: Tensor) -> Tensor:
    """An embedding with `sparse=True` has sparse gradients."""
    return gradient.to_dense() if gradient.layout is torch.sparse_coo else gradient


def is_reentrant(outputs: Tensor) -> bool:
    """Whether a graph has reentrant checkpointing in it, which `backward` serves and `torch.autograd.grad` refuses."""
    return _has_node([outputs], "CheckpointFunctionBackward")


def is_cut(gradients: Sequence[Tensor]) -> bool:
    """Whether the graph of some gradients lacks a part, for a backward function on the way is not differentiable.

    PyTorch says so by an error only where the part is needed (2.13.0): beside another path it is left out in silence.
    """
    return _has_node(gradients, "torch::autograd::Error")


def _has_node(tensors: Sequence[Tensor], name: str) -> bool:
    waiting, seen = [tensor.grad_fn for tensor in tensors], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == name:
            return True
        seen.add(node)
        waiting += [other for other, _ in node.next_functions]
    return False


def sample_gradient(
    network: nn.Module, sample: Inputs, cotangent: Callable[[Tensor], Tensor] | Tensor
) -> dict[str, Tensor]:
    """`J_i^T u`, by parameter.

    Args:
        network: The network.
        sample: One sample, with its axis.
        cotangent: u, or how it follows from the outputs.
    """
    outputs = network(sample)
    u = cotangent(outputs.detach()) if callable(cotangent) else cotangent
    weights = trained(network)
    return dict(zip(weights, gradients(outputs, list(weights.values()), u.to(outputs)), strict=True))


def sample_rows(network: nn.Module, sample: Inputs, names: Sequence[str] | None = None) -> Float[Tensor, "outputs p"]:
    """All rows of `J_i`: a backward pass for each of the sample's outputs.

    Args:
        network: The network.
        sample: One sample, with its axis.
        names: The parameters whose columns are wanted. Default: all.
    """
    return torch.cat(_rows_by_parameter(network, sample, names), 1)


def sample_gram(network: nn.Module, sample: Inputs) -> Float64[Tensor, "outputs outputs"]:
    """`J_i J_i^T` of one sample, from all rows of `J_i`; the parameters' shares are summed in float64."""
    return summed((rows @ rows.T).double() for rows in _rows_by_parameter(network, sample, None))


def _rows_by_parameter(network: nn.Module, sample: Inputs, names: Sequence[str] | None) -> list[Tensor]:
    """The columns of `J_i` that belong to each parameter. Shape of each: [outputs, size]."""
    weights = trained(network)
    chosen = list(weights.values()) if names is None else [weights[name] for name in names]
    outputs = network(sample)
    found = [torch.empty(outputs.numel(), p.numel(), dtype=p.dtype, device=p.device) for p in chosen]
    for k in range(outputs.numel()):
        unit = torch.zeros_like(outputs)
        unit.view(-1)[k] = 1
        gradient = gradients(outputs, chosen, unit, keep=k + 1 < outputs.numel())
        for rows, part in zip(found, gradient, strict=True):
            rows[k] = part.flatten()
    return found


def rows(network: nn.Module, x: Inputs, names: Sequence[str] | None = None) -> Float[Tensor, "n outputs p"]:
    """`J_i` of several samples, one after the other."""
    return torch.stack([sample_rows(network, x[k : k + 1], names) for k in range(len(x))])


def quadratic_form(network: nn.Module, x: Inputs, loss: Loss, y: Tensor | None, u: Tensor, chunk: int) -> float:
    """`u^T K u = ||J^T S u||^2 / n`, by backward passes over `chunk` samples at a time, summed in float64."""
    weights = list(trained(network).values())
    total = [torch.zeros_like(p, dtype=torch.float64) for p in weights]
    for first in range(0, len(x), chunk):
        here = slice(first, first + chunk)
        outputs = network(x[here])
        weighed = loss.factor(outputs.detach(), None if y is None else y[here], u[here].to(outputs))
        for sum_, gradient in zip(total, gradients(outputs, weights, weighed), strict=True):
            sum_ += gradient
    return sum(part.square().sum().item() for part in total) / len(x)
