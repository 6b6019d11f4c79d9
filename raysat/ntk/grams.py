"""Per-sample Grams `J_i J_i^T in R^{C x C}` of the Jacobian, and the kernel between all samples, without any Jacobian.

It takes one forward pass, C backward passes down to the layers' outputs, and the layers' rules; no gradient of a
parameter is formed where a layer is applied once a sample.

No parameter is ever left out in silence: one without a rule is found by looking, one that is used elsewhere than in its
own module's forward by comparing the Gram of one sample with what autograd says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raysat.data.fields import Inputs
from raysat.ntk.rules import Outer, Share, rule_for


def uncovered(network: nn.Module) -> str | None:
    """The first trainable parameter that no rule covers, in words; None where all are covered."""
    for module_name, module in network.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and rule_for(module) is None:
                return f"no rule for {type(module).__name__}, which holds {f'{module_name}.{name}'.lstrip('.')}"
    return None


@contextmanager
def _recorded(network: nn.Module) -> Iterator[list[tuple[nn.Module, Tensor, Tensor]]]:
    """Every call of a layer with trainable parameters, with its input and output, while the context lasts."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((module, inputs[0].detach(), output))

    handles = [
        module.register_forward_hook(record)
        for module in network.modules()
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _shares(network: nn.Module, x: Inputs) -> tuple[Float[Tensor, "n outputs"], Iterator[Share]]:
    """The outputs, and what each trainable parameter adds to the Jacobian of some samples, one after the other."""
    with _recorded(network) as calls:
        outputs = network(x)
    produced = [output for _, _, output in calls]
    passes = [
        torch.autograd.grad(outputs[:, c].sum(), produced, retain_graph=True, materialize_grads=True)
        for c in range(outputs.shape[1])
    ]

    def shares() -> Iterator[Share]:
        uses: dict[nn.Parameter, list[tuple[int, str]]] = {}
        for k, (module, _, _) in enumerate(calls):
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    uses.setdefault(parameter, []).append((k, name))
        waiting: dict[tuple[int, str], Share] = {}
        for places in uses.values():
            found = []
            for k, name in places:
                if (k, name) not in waiting:
                    module, inputs, _ = calls[k]
                    gradients = torch.stack([rows[k] for rows in passes], 1)
                    made = rule_for(module)(module, inputs, gradients)
                    waiting |= {(k, other): share for other, share in made.items()}
                found.append(waiting.pop((k, name)))
            if len(found) == 1:
                yield found[0]
            else:
                yield sum(share.rows() if isinstance(share, Outer) else share for share in found)

    return outputs.detach(), shares()


def grams_by_rules(
    network: nn.Module, x: Inputs
) -> tuple[Float[Tensor, "n outputs"], Float[Tensor, "n outputs outputs"]]:
    """The outputs `f(w, x_i)` and the Grams `J_i J_i^T` of some samples.

    Args:
        network: A network that `uncovered` has nothing against.
        x: As many samples as memory allows; see `bytes_per_sample`.
    """
    outputs, shares = _shares(network, x)
    grams = outputs.new_zeros(len(x), outputs.shape[1], outputs.shape[1])
    for share in shares:
        grams += share.grams() if isinstance(share, Outer) else share @ share.mT
    return outputs, grams.detach()


def kernel_by_rules(network: nn.Module, x: Inputs) -> Float[Tensor, "size size"]:
    """The dense `K = (1/n) J J^T`, of size nC, of a few samples: (nC)^2 numbers, and one parameter's rows at a time."""
    outputs, shares = _shares(network, x)
    size = outputs.numel()
    kernel = outputs.new_zeros(size, size)
    for share in shares:
        if isinstance(share, Outer):
            kernel += share.kernel().reshape(size, size)
        else:
            rows = share.reshape(size, -1)
            kernel += rows @ rows.T
    return (kernel / len(x)).detach()


def jacobians(network: nn.Module, x: Inputs) -> Float[Tensor, "n outputs p"]:
    """The per-sample Jacobians themselves, of any module."""
    trained = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in network.named_parameters() if not p.requires_grad}
    fixed |= dict(network.named_buffers())

    def output(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(network, fixed | weights, (sample[None],))[0]

    rows = torch.func.vmap(torch.func.jacrev(output), (None, 0))(trained, x)
    return torch.cat([row.flatten(2) for row in rows.values()], 2)


def grams_by_jacobians(
    network: nn.Module, x: Inputs
) -> tuple[Float[Tensor, "n outputs"], Float[Tensor, "n outputs outputs"]]:
    """The same as `grams_by_rules` for any module, from the Jacobians: C p numbers a sample, far slower."""
    rows = jacobians(network, x)
    with torch.no_grad():
        return network(x), rows @ rows.mT


def kernel_by_jacobians(network: nn.Module, x: Inputs) -> Float[Tensor, "size size"]:
    """The same as `kernel_by_rules` for any module."""
    rows = jacobians(network, x).flatten(0, 1)
    return rows @ rows.T / len(x)


def activations(network: nn.Module, x: Inputs) -> int:
    """How many numbers pass the layers' inputs and outputs for one sample, measured on the first."""
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
            network(x[:1])
    finally:
        for handle in handles:
            handle.remove()
    return sum(sizes)


def bytes_per_sample(network: nn.Module, x: Inputs, *, rules: bool) -> int:
    """About how much memory the Grams of one sample take while they are made."""
    with torch.no_grad():
        outputs = network(x[:1]).shape[1]
    trained = [p for p in network.parameters() if p.requires_grad]
    numbers = activations(network, x) * (outputs + 4)  # a gradient an output, values, and what is being made
    if rules:
        with_rows = (share for share in _shares(network, x[:1])[1] if not isinstance(share, Outer))
        numbers += 2 * max((share.numel() for share in with_rows), default=0)
    else:
        numbers += 2 * outputs * sum(p.numel() for p in trained)
    return numbers * trained[0].element_size()


def disagreement(network: nn.Module, x: Inputs, gram: Float[Tensor, "outputs outputs"]) -> float:
    """How far `v^T J J^T v` by a Gram is from `||J^T v||^2` by autograd, relatively, for one sample and random v.

    What no look at the modules can see, a parameter used outside its own module's forward, shows here.
    """
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(len(gram), generator=generator, dtype=torch.float64).to(gram)
    parameters = [p for p in network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(network(x)[0] @ v, parameters, allow_unused=True)
    exact = sum(g.double().square().sum().item() for g in gradients if g is not None)
    return abs((v @ gram @ v).item() - exact) / max(exact, torch.finfo(gram.dtype).tiny)
