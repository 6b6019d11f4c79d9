"""Per-sample Grams `J_i J_i^T in R^{C x C}` of the Jacobian, layer by layer, without forming any Jacobian.

For a layer `z = W a` the Jacobian's row of output c with respect to W is the outer product of the output's gradient
`g_c = d f_c / d z` and the layer's input a, so that the layer's share of the Gram is `(g_c . g_c') (a . a)`; where a
sample passes the layer at several positions t (a sequence, a module used twice), it is the double sum over positions
`sum_{t,t'} (g_ct . g_c't') (a_t . a_t')`. What it takes is one forward pass and C backward passes down to the layers'
outputs: no gradient of a parameter is ever formed.

A rule for a kind of layer turns what went in and the gradients that came back into that share. Parameters that no rule
covers, and parameters used elsewhere than in their own module, are found: the first by looking, the second by comparing
the Gram of one sample with what autograd says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raysat.models.layers import NTKLinear

Rule = Callable[[nn.Module, Tensor, Tensor], Tensor]


def _dense(
    inputs: Float[Tensor, "n positions inputs"], gradients: Float[Tensor, "n outputs positions units"]
) -> Float[Tensor, "n outputs outputs"]:
    """The share of a weight W in `z_t = W a_t`."""
    if inputs.shape[1] == 1:
        rows = gradients.squeeze(2)
        return rows @ rows.mT * inputs.square().sum((1, 2))[:, None, None]
    rows = torch.einsum("nctu,nti->ncui", gradients, inputs).flatten(2)
    return rows @ rows.mT


def _shift(gradients: Float[Tensor, "n outputs positions units"]) -> Float[Tensor, "n outputs outputs"]:
    """The share of a bias d in `z_t = ... + d`."""
    rows = gradients.sum(2)
    return rows @ rows.mT


def _linear_rule(module: nn.Module, inputs: Tensor, gradients: Tensor) -> Tensor:
    grams = gradients.new_zeros(gradients.shape[0], gradients.shape[1], gradients.shape[1])
    if module.weight.requires_grad:
        grams = grams + _dense(inputs, gradients) * getattr(module, "scale", 1.0) ** 2
    if getattr(module, "bias", None) is not None and module.bias.requires_grad:
        grams = grams + _shift(gradients)
    return grams


RULES: dict[type[nn.Module], Rule] = {nn.Linear: _linear_rule, NTKLinear: _linear_rule}
"""The layers whose share is known, by exact type: a subclass may compute something else."""


def uncovered(network: nn.Module) -> str | None:
    """Why layer rules cannot serve a network, or None where they can: the first parameter without a rule, by name."""
    owners: dict[nn.Parameter, str] = {}
    for module_name, module in network.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{module_name}.{name}".lstrip(".")
            if not parameter.requires_grad:
                continue
            if type(module) not in RULES:
                return f"no rule for {type(module).__name__}, which holds {full}"
            if parameter in owners:
                return f"{full} is tied to {owners[parameter]}"
            owners[parameter] = full
    return None


@contextmanager
def _recorded(network: nn.Module) -> Iterator[dict[nn.Module, list[tuple[Tensor, Tensor]]]]:
    """What went into and came out of every layer that has parameters, during the forward passes in the context."""
    calls: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.setdefault(module, []).append((inputs[0].detach(), output))

    handles = [
        module.register_forward_hook(record)
        for module in network.modules()
        if type(module) in RULES and any(p.requires_grad for p in module.parameters(recurse=False))
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def grams_by_rules(
    network: nn.Module, x: Float[Tensor, "n *input"]
) -> tuple[Float[Tensor, "n outputs"], Float[Tensor, "n outputs outputs"]]:
    """The outputs `f(w, x_i)` and the Grams `J_i J_i^T` of some samples.

    Args:
        network: A network that `uncovered` has nothing against.
        x: As many samples as memory allows; see `bytes_per_sample`.
    """
    with _recorded(network) as calls:
        outputs = network(x)
    uses = [(module, inputs, output) for module, called in calls.items() for inputs, output in called]
    produced = [output for _, _, output in uses]
    backward = [
        torch.autograd.grad(outputs[:, c].sum(), produced, retain_graph=True, materialize_grads=True)
        for c in range(outputs.shape[1])
    ]
    grams = outputs.new_zeros(len(x), outputs.shape[1], outputs.shape[1])
    for module in calls:
        positions = [k for k, use in enumerate(uses) if use[0] is module]
        inputs = torch.cat([_positions(uses[k][1]) for k in positions], 1)
        gradients = torch.cat([torch.stack([_positions(rows[k]) for rows in backward], 1) for k in positions], 2)
        grams = grams + RULES[type(module)](module, inputs, gradients)
    return outputs.detach(), grams.detach()


def _positions(value: Float[Tensor, "n *axes"]) -> Float[Tensor, "n positions units"]:
    """All axes between the first and the last as one: where the layer is applied, within a sample."""
    return value.reshape(len(value), -1, value.shape[-1])


def grams_by_jacobians(
    network: nn.Module, x: Float[Tensor, "n *input"]
) -> tuple[Float[Tensor, "n outputs"], Float[Tensor, "n outputs outputs"]]:
    """The same for any module, from the per-sample Jacobians themselves: C p numbers a sample, far slower."""
    trained = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in network.named_parameters() if not p.requires_grad}
    fixed |= dict(network.named_buffers())

    def output(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(network, fixed | weights, (sample[None],))[0]

    rows = torch.func.vmap(torch.func.jacrev(output), (None, 0))(trained, x)
    jacobians = torch.cat([row.flatten(2) for row in rows.values()], 2)
    with torch.no_grad():
        return network(x), jacobians @ jacobians.mT


def bytes_per_sample(network: nn.Module, x: Float[Tensor, "n *input"], *, rules: bool) -> int:
    """About how much memory the Grams of one sample take while they are made, measured on the first sample."""
    sizes: list[int] = []
    handles = [
        module.register_forward_hook(
            lambda _module, inputs, output: sizes.append(inputs[0].nelement() + output.nelement())
        )
        for module in network.modules()
        if not list(module.children())
    ]
    try:
        with torch.no_grad():
            outputs = network(x[:1]).shape[1]
    finally:
        for handle in handles:
            handle.remove()
    numbers = sum(sizes) * (outputs + 2)
    if not rules:
        numbers += 2 * outputs * sum(p.nelement() for p in network.parameters() if p.requires_grad)
    return numbers * x.element_size()


def disagreement(network: nn.Module, x: Float[Tensor, "1 *input"], gram: Float[Tensor, "outputs outputs"]) -> float:
    """How far `v^T J J^T v` by a Gram is from `||J^T v||^2` by autograd, relatively, for one sample and random v.

    What no look at the modules can see, a parameter used outside its own module's forward, shows here.
    """
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(len(gram), generator=generator, dtype=torch.float64).to(gram)
    parameters = [p for p in network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(network(x)[0] @ v, parameters, allow_unused=True)
    exact = sum(g.double().square().sum().item() for g in gradients if g is not None)
    return abs((v @ gram @ v).item() - exact) / max(exact, torch.finfo(gram.dtype).tiny)
