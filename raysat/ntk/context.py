"""Context managers in which the statistics run: the network is restored on exit, in any context of the caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from raysat.ntk.recurrent import unrolled
from raysat.user_code.process import generators_kept

HALVES = (torch.bfloat16, torch.float16)
"""Dtypes in which no statistic is computed: their rounding, 1 in 256 and 1 in 2048, exceeds the tolerances."""


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Restore a network and the process's random generators on exit.

    This covers training flags, hook registries, attributes, buffers and weights (identity and values), and gradients.
    Within the context, gradients are recorded in full precision, even if the caller is in `no_grad`, `inference_mode`
    or `autocast`, and compiled parts run eagerly. Parameters and buffers created in inference mode are
    replaced by copies.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in {"cpu", *(p.device.type for p in network.parameters())} - {"meta"}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_full_precision())
        # Compiled code calls no hooks and has no second derivatives. Only if needed: loading the compiler takes 1 s.
        if any(_is_compiled(module) for module in network.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(generators_kept())
        # The snapshot comes before the changes below, so that they are undone, too.
        stack.callback(_snapshot(network).restore)
        for module in network.modules():
            for registries in (module._parameters, module._buffers):
                registry: dict[str, Any] = registries
                for name, tensor in registry.items():
                    if tensor is not None and tensor.is_inference():
                        copy = tensor.clone()
                        trained = isinstance(tensor, nn.Parameter)
                        registry[name] = nn.Parameter(copy, tensor.requires_grad) if trained else copy
        for parameter in network.parameters():
            parameter.grad = None
        # Sparse gradients of embeddings have no second derivatives; the dense ones are equal.
        for module in network.modules():
            if getattr(module, "sparse", False) is True:
                vars(module)["sparse"] = False
        yield


class _snapshot:
    """Copy of all state of a network that a forward or backward pass may change."""

    def __init__(self, network: nn.Module) -> None:
        names = ("_parameters", "_buffers", "_modules")
        self.modules = [
            (module, dict(module.__dict__), {name: dict(getattr(module, name)) for name in names})
            for module in network.modules()
        ]
        tensors = {id(t): t for t in (*network.parameters(), *network.buffers()) if not t.is_inference()}
        self.values = [(tensor, tensor.detach().clone()) for tensor in tensors.values()]
        self.gradients = [(p, p.grad) for p in network.parameters()]

    def restore(self) -> None:
        # In place: the dictionaries, too, stay the same objects.
        for module, attributes, registries in self.modules:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for name, entries in registries.items():
                registry = module.__dict__[name]
                registry.clear()
                registry.update(entries)
        with torch.no_grad():
            for tensor, value in self.values:
                if not torch.equal(tensor, value):  # by value: a write through `.data` does not count in `_version`
                    tensor.copy_(value)
        for parameter, gradient in self.gradients:
            parameter.grad = gradient


@contextmanager
def _full_precision() -> Iterator[None]:
    """Disable TF32 and bfloat16 inside float32 matrix products and convolutions."""
    backends: Any = torch.backends  # Any: the attributes new in PyTorch 2.9 are undeclared
    if hasattr(backends, "fp32_precision"):  # PyTorch 2.9 and newer, where reading the older settings may raise
        places = [(backends.cuda.matmul, "ieee"), (backends.cudnn.conv, "ieee"), (backends.cudnn.rnn, "ieee")]
        places += [(backends.mkldnn.matmul, "ieee"), (backends.mkldnn.conv, "ieee"), (backends.mkldnn.rnn, "ieee")]
        name = "fp32_precision"
    else:
        places, name = [(backends.cuda.matmul, False), (backends.cudnn, False)], "allow_tf32"
    before = [getattr(place, name) for place, _ in places]
    for place, value in places:
        setattr(place, name, value)
    try:
        yield
    finally:
        for (place, _), value in zip(places, before, strict=True):
            setattr(place, name, value)


@contextmanager
def cast(network: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Convert a network's floating-point tensors to a dtype within the context; complex and integer ones are kept."""
    parameters = [(p, p.data) for p in network.parameters() if p.is_floating_point()]
    snapshot = _snapshot(network)
    try:
        for parameter, value in parameters:
            parameter.grad = None  # a gradient must have its parameter's dtype
            parameter.data = value.to(dtype)  # the parameter stays the same object, wherever it is referenced
        for module in network.modules():
            for registry in (module._buffers, module.__dict__):
                for name, value in list(registry.items()):
                    if isinstance(value, Tensor) and value.is_floating_point():
                        registry[name] = value.detach().to(dtype)
        yield
    finally:
        for parameter, value in parameters:
            parameter.data = value
        snapshot.values = []  # the original tensors are back, with their values
        snapshot.restore()


@contextmanager
def differentiable(network: nn.Module) -> Iterator[None]:
    """Replace fused kernels that lack second derivatives or forward mode by differentiable equivalents.

    These kernels are the fused ones of `scaled_dot_product_attention`, the fast paths of attention and encoder layers,
    and the recurrent kernels of oneDNN and cuDNN.
    """
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(unrolled(network))
        yield


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
