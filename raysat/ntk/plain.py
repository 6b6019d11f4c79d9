"""The reference: reverse-mode autograd of one sample at a time, for any network that `loss.backward()` works for.

It relies on nothing else: no function transform, no second derivative, no hook in the network. All other
implementations are verified against it.
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
    """Return the trained parameters: those that require a gradient, shared ones once."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def gradients(
    outputs: Tensor,
    parameters: Sequence[Tensor],
    cotangent: Tensor | None = None,
    *,
    keep: bool = False,
    reentrant: bool | None = None,
) -> list[Tensor]:
    """Return `J^T u` for each parameter; zeros for a parameter that the outputs do not depend on.

    Args:
        outputs: The outputs, with their graph.
        parameters: The parameters to differentiate by.
        cotangent: u, of the outputs' shape. Default: 1, for a scalar.
        keep: Whether the graph is needed again.
        reentrant: Value of `is_reentrant`, if known. If true, the gradients are what `backward` adds to `.grad`.
    """
    if not outputs.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    if cotangent is not None:  # as a scalar: u as an argument of `grad` would make PyTorch load sympy, half a second
        outputs = (outputs * cotangent).sum()
    if not (is_reentrant(outputs) if reentrant is None else reentrant):
        found = torch.autograd.grad(outputs, parameters, retain_graph=keep, allow_unused=True, materialize_grads=True)
        return [_dense(gradient) for gradient in found]
    # Reentrant checkpointing works under `backward` only, so the gradients pass through `.grad`, which is restored.
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
    """Return a gradient as a dense tensor; those of an embedding with `sparse=True` are sparse."""
    return gradient.to_dense() if gradient.layout is torch.sparse_coo else gradient


def is_reentrant(outputs: Tensor) -> bool:
    """Return whether a graph contains reentrant checkpointing, which `torch.autograd.grad` rejects."""
    return _has_node([outputs], "CheckpointFunctionBackward")


def is_cut(gradients: Sequence[Tensor]) -> bool:
    """Return whether the graph of some gradients is incomplete, because a backward function is not differentiable.

    PyTorch (2.13.0) raises an error only if there is no other path; otherwise the missing part is silently left out.
    """
    return _has_node(gradients, "torch::autograd::Error")


def _has_node(tensors: Sequence[Tensor], name: str) -> bool:
    """Return whether a node of this name is in the graph of some tensors."""
    # A loop, not recursion: graphs are deeper than Python's stack.
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
    """Return `J_i^T u`, by parameter.

    Args:
        network: The network.
        sample: One sample, with the batch axis.
        cotangent: u, or a function from the outputs to u.
    """
    outputs = network(sample)
    u = cotangent(outputs.detach()) if callable(cotangent) else cotangent
    weights = trained(network)
    return dict(zip(weights, gradients(outputs, list(weights.values()), u.to(outputs)), strict=True))


def sample_rows(network: nn.Module, sample: Inputs, names: Sequence[str] | None = None) -> Float[Tensor, "outputs p"]:
    """Return all rows of `J_i`, by one backward pass per output of the sample.

    Args:
        network: The network.
        sample: One sample, with the batch axis.
        names: The parameters whose columns are formed. Default: all.
    """
    return torch.cat(_rows_by_parameter(network, sample, names), 1)


def sample_gram(network: nn.Module, sample: Inputs) -> Float64[Tensor, "outputs outputs"]:
    """Return `J_i J_i^T` of one sample, from all rows of `J_i`; the parameters' terms are summed in float64."""
    return summed((rows @ rows.T).double() for rows in _rows_by_parameter(network, sample, None))


def _rows_by_parameter(network: nn.Module, sample: Inputs, names: Sequence[str] | None) -> list[Tensor]:
    """Return the columns of `J_i` that belong to each parameter. Shape of each: [outputs, size]."""
    weights = trained(network)
    chosen = list(weights.values()) if names is None else [weights[name] for name in names]
    outputs = network(sample)
    found = [torch.empty(outputs.numel(), p.numel(), dtype=p.dtype, device=p.device) for p in chosen]
    for k in range(outputs.numel()):
        unit = torch.zeros_like(outputs)
        unit.view(-1)[k] = 1
        gradient = gradients(outputs, chosen, unit, keep=k + 1 < outputs.numel())  # the last pass frees the graph
        for rows, part in zip(found, gradient, strict=True):
            rows[k] = part.flatten()
    return found


def rows(network: nn.Module, x: Inputs, names: Sequence[str] | None = None) -> Float[Tensor, "n outputs p"]:
    """Return `J_i` of several samples, computed one after the other."""
    return torch.stack([sample_rows(network, x[k : k + 1], names) for k in range(len(x))])


def quadratic_form(network: nn.Module, x: Inputs, loss: Loss, y: Tensor | None, u: Tensor, chunk: int) -> float:
    """Return `u^T K u = ||J^T S u||^2 / n`, by backward passes over `chunk` samples at a time, summed in float64."""
    weights = list(trained(network).values())
    total = [torch.zeros_like(p, dtype=torch.float64) for p in weights]
    for first in range(0, len(x), chunk):
        here = slice(first, first + chunk)
        outputs = network(x[here])
        weighed = loss.factor(outputs.detach(), None if y is None else y[here], u[here].to(outputs))
        for sum_, gradient in zip(total, gradients(outputs, weights, weighed), strict=True):
            sum_ += gradient
    return sum(part.square().sum().item() for part in total) / len(x)
