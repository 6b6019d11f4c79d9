"""Memory planning for statistics and SGD steps: what autograd keeps for a backward pass, and retries if it runs out."""

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
    """Return the bytes that a forward pass keeps for its backward pass, those of functional calls included.

    Args:
        forward: Runs the pass and returns its result.
        besides: Tensors that exist anyway, such as parameters and inputs, and do not count.
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
        kept = forward()  # its graph holds the saved tensors, so that no address is reused and counted as seen
    del kept
    return total


def saved_per_sample(network: nn.Module, few: Inputs) -> int:
    """Return the bytes that a forward pass keeps for each sample, measured with one sample and with three.

    Functional calls count as well. A network that differentiates within its forward pass cannot be measured in this
    way; the outputs of its layers are counted instead.
    """
    besides = [*network.parameters(), *network.buffers()]
    try:
        one, three = (saved_bytes(lambda k=k: network(few[:k]), besides) for k in (1, 3))
    except RuntimeError:
        one, three = (guessed_bytes(network, few[:k]) for k in (1, 3))
    return max((three - one) // 2, 1)


KEPT_PER_OUTPUT = 4
"""Bytes that a forward pass is assumed to keep for each byte of its modules' outputs, if what it keeps cannot be
measured. Default: 4, a guess on the safe side: an output itself, the input of its layer, and two tensors of their size
from functions in between."""


def guessed_bytes(network: nn.Module, x: Inputs) -> int:
    """Return the bytes that a forward pass may keep for the backward pass, from the outputs of all modules."""
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
    return KEPT_PER_OUTPUT * total


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error means that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def retry_on_oom(function: Callable[[int], Value], size: int) -> tuple[Value, int]:
    """Call a function of the number of samples at a time, and halve that number each time memory runs out.

    Args:
        function: Starts from the beginning at each call, and leaves nothing changed if it fails.
        size: The number to start with.

    Returns:
        The function's value, and the number at which it succeeded.

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
    """Return free memory of the C library's heap to the system, if the library is glibc.

    Otherwise large free blocks between small ones that live longer are kept: 1.5 GiB for a Jacobian in chunks of
    28 MiB.
    """
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # another C library
        return
