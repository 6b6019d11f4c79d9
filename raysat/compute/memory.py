"""Memory, as statistics and steps both plan by it: what autograd keeps for a backward pass, and what to do without."""

from __future__ import annotations

import ctypes
import gc
import math
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from raysat.data.fields import Inputs

Value = TypeVar("Value")


def saved_bytes(forward: Callable[[], Tensor], besides: Iterable[Tensor] = ()) -> int:
    """Bytes that a forward pass keeps for its backward pass, those of functional calls included.

    Args:
        forward: Runs the pass and returns what depends on it.
        besides: Tensors that are there anyway, such as parameters and inputs, and do not count.
    """
    seen = {tensor.untyped_storage().data_ptr() for tensor in besides}
    total = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal total
        # Tensors of layouts without storage (sparse, nested) are rare and small here.
        if tensor.layout is torch.strided and (storage := tensor.untyped_storage()).data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept = forward()  # its graph holds the tensors, so that no address is used twice
    del kept
    return total


def saved_per_sample(network: nn.Module, few: Inputs) -> int:
    """Bytes that a forward pass keeps for each sample, functional calls included; measured with one and with three.

    A network that differentiates within its forward pass cannot be measured so, and counts its layers' outputs.
    """
    besides = [*network.parameters(), *network.buffers()]
    try:
        one, three = (saved_bytes(lambda k=k: network(few[:k]), besides) for k in (1, 3))
    except RuntimeError:
        one, three = (4 * output_bytes(network, few[:k]) for k in (1, 3))
    return max((three - one) // 2, 1)


def output_bytes(network: nn.Module, x: Inputs) -> int:
    """Bytes of the outputs of all of a network's modules."""
    total = 0

    def count(_module: nn.Module, _inputs: tuple, output: object) -> None:
        nonlocal total
        total += output.nbytes if isinstance(output, Tensor) else 0

    handles = [module.register_forward_hook(count) for module in network.modules()]
    try:
        with torch.no_grad():
            network(x)
    finally:
        for handle in handles:
            handle.remove()
    return total


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether the error says that there is no memory left, on a GPU or on the processor."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def retry_on_oom(function: Callable[[int], Value], size: int) -> tuple[Value, int]:
    """Call a function of the number of samples at a time, with half of it wherever memory runs out.

    Args:
        function: Must begin anew each time, and have changed nothing where it fails.
        size: The number to begin with.

    Returns:
        What the function returned, and the number with which it did.

    Raises:
        RuntimeError: Not even one sample fits, or the function fails for another reason.
    """
    while True:
        try:
            return function(size), size
        except RuntimeError as error:
            if size == 1 or not out_of_memory(error):
                raise
        size = math.ceil(size / 2)
        gc.collect()  # the failed call's frames hold its tensors
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def give_back() -> None:
    """Return what is free in the C library's heap to the system, where it is glibc.

    Large blocks between small ones that live longer are else kept: of a Jacobian in chunks of 28 MiB, 1.5 GiB.
    """
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # another C library
        return
