"""The size of a micro-batch, from the measured activation memory of a sample.

A larger batch is taken in parts, whose gradients are added before the step. If memory runs out all the same, the parts
are halved and the step is repeated: no weight changes before its gradient is complete.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from raysat.compute.memory import guessed_bytes, out_of_memory, retry_on_oom, saved_bytes
from raysat.data.fields import Inputs, repeated, tensors_of
from raysat.losses import Loss

__all__ = ["coupled_group_size", "couples_samples", "max_micro_batch", "out_of_memory", "retry_on_oom", "sample_bytes"]

SHARE = 0.25
"""The share of the free memory that the tensors kept for the backward pass may take. The backward pass's own tensors
and the libraries' workspaces come on top: the peak was 1.1 to 1.7 times as much (ResNet-28, NanoGPT and three layers of
1000, on one thread), and half of the free memory is left for other processes."""


def max_micro_batch(network: nn.Module, x: Inputs, y: Tensor, loss: Loss, *, threads: int = 0) -> int:
    """Return the number of samples whose forward and backward passes fit in the free memory.

    It is a power of two, so that it hardly ever differs between two runs on one machine: rounding depends on it. If
    samples must stay together (`coupled_group_size`), it is a multiple of the group size near a power of two.

    Args:
        network: At the weights at which it will be trained.
        x: Inputs, where they will be used.
        y: Targets.
        loss: The loss of a sample.
        threads: CPU threads of the trial; other trials are assumed to use the remaining ones. 0 for all.
    """
    if (unit := coupled_group_size(network)) == 0:
        return len(x)
    # threads = 0: 1e9, more than any machine has, for all of them
    share = SHARE * min(1.0, (threads or 1e9) / (os.cpu_count() or 1)) if x.device.type == "cpu" else SHARE
    fitting = int(share * free_bytes(x.device) / max(sample_bytes(network, x, y, loss), 1))
    # the largest power of two that fits, in whole groups, and at least one group
    return max(1, (1 << max(0, fitting.bit_length() - 1)) // unit) * unit


def sample_bytes(network: nn.Module, x: Inputs, y: Tensor, loss: Loss) -> int:
    """Return the bytes that the forward pass keeps for each further sample; running averages are left unchanged."""
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    # a difference, so that what is kept once for any batch does not count
    two, four = (kept_bytes(network, repeated(x, count), repeated(y, count), loss) for count in (2, 4))
    for buffer, value in before:
        buffer.copy_(value)
    return (four - two) // 2


def coupled_group_size(network: nn.Module) -> int:
    """Return how many samples must pass through a network together: 1, a ghost batch, or 0 for the whole batch."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    sizes = [getattr(norm, "ghost", 0) for norm in norms]
    return math.lcm(*sizes) if all(sizes) else 0


def couples_samples(network: nn.Module) -> bool:
    """Return whether a sample's output depends on the other samples of its batch."""
    return coupled_group_size(network) != 1


def kept_bytes(network: nn.Module, x: Inputs, y: Tensor, loss: Loss) -> int:
    """Return the bytes that the forward pass keeps for the backward pass, besides parameters and inputs."""
    try:
        return saved_bytes(lambda: loss.total(network(x), y), (*network.parameters(), *tensors_of(x), y))
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        return guessed_bytes(network, x)  # not measurable: it differentiates in its forward pass


def free_bytes(device: torch.device) -> int:
    """Return the bytes that this process may still allocate: on the GPU, or of the machine or its control group."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        allocated = torch.cuda.memory_allocated(device)
        promised = int(torch.cuda.get_per_process_memory_fraction(device) * total) - allocated
        # blocks that PyTorch has reserved and not allocated are free to this process
        return max(0, min(free + torch.cuda.memory_reserved(device) - allocated, promised))
    try:
        entries = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(entries["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError):  # not Linux: half of the machine's memory
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no control group, or one without a limit
        return free
    return max(0, min(free, limit))
