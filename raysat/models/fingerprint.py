"""Which weights a network has, as a short text: to tell whether two processes begin at the same w_0.

A hash of the bytes says that they are the same. Where a builder computes with its draws (an orthogonal matrix, say),
two kinds of processor differ in the last bits, and so do their hashes. Two numbers then decide: with `v` all entries
side by side, squashed by arctan so that no infinite mask drowns the rest,

    ||v||   and   sum_k v_k cos(k),

which rounding moves by about 1e-7 of `||v||`, and another draw by about `||v||`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

ROUNDING = 1e-5
"""How far the numbers may be apart, relative to `||v||`. Default: 1e-5, a hundred roundings of float32; that another
draw falls within is as probable."""


def fingerprint(network: nn.Module) -> str:
    """The hash and the two numbers of a network's parameters and buffers, the same on every device."""
    square, projection, at = 0.0, 0.0, 0
    for _, tensor in _tensors(network):
        values = torch.nan_to_num((torch.view_as_real(tensor) if tensor.is_complex() else tensor).double()).atan()
        values = values.flatten()
        square += values.square().sum().item()
        projection += (values * (at + torch.arange(len(values), dtype=torch.float64)).cos()).sum().item()
        at += len(values)
    return f"{digest(network)} {math.sqrt(square):.12g} {projection:.12g}"


def digest(network: nn.Module) -> str:
    """The hash alone: 16 hexadecimal digits of the SHA-256 of names, types, shapes and bytes."""
    sha = hashlib.sha256()
    for name, tensor in _tensors(network):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]


def has(network: nn.Module, found: str) -> bool:
    """Return whether a network has the weights of a fingerprint, but for rounding."""
    if digest(network) == found.split()[0]:
        return True
    (norm, projection), (own_norm, own_projection) = (
        map(float, text.split()[1:]) for text in (found, fingerprint(network))
    )
    return max(abs(norm - own_norm), abs(projection - own_projection)) <= ROUNDING * norm


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All that a network is made of, on the CPU."""
    for named in (network.named_parameters(), network.named_buffers()):
        for name, tensor in named:
            yield name, tensor.detach().cpu().contiguous()
