"""A short text that identifies a network's weights: it tells whether two processes begin at the same w_0.

Equal hashes of the bytes mean equal weights. If a builder computes with its draws (an orthogonal matrix, say), the
results differ in the last bits between kinds of processor, and so do the hashes. Two numbers then decide: with `v` the
vector of all entries, squashed by arctan so that an infinite entry of a mask does not drown the rest,

    ||v||   and   sum_k v_k cos(k),

which change by about 1e-7 `||v||` under rounding and by about `||v||` under another draw.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

ROUNDING = 1e-5
"""How far apart the numbers may be, relative to `||v||`. Default: 1e-5, a hundred roundings of float32; another draw
falls within it with about the same probability, 1e-5."""


def fingerprint(network: nn.Module) -> str:
    """Return the hash and the two numbers of a network's parameters and buffers, the same on every device."""
    square, projection, at = 0.0, 0.0, 0
    for _, tensor in _tensors(network):
        values = torch.nan_to_num((torch.view_as_real(tensor) if tensor.is_complex() else tensor).double()).atan()
        values = values.flatten()
        square += values.square().sum().item()
        projection += (values * (at + torch.arange(len(values), dtype=torch.float64)).cos()).sum().item()
        at += len(values)
    return f"{digest(network)} {math.sqrt(square):.12g} {projection:.12g}"


def digest(network: nn.Module) -> str:
    """Return the hash alone: 16 hexadecimal digits of the SHA-256 of names, types, shapes and bytes."""
    sha = hashlib.sha256()
    for name, tensor in _tensors(network):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]


def has(network: nn.Module, found: str) -> bool:
    """Return whether a network has the weights of a fingerprint, up to rounding."""
    if digest(network) == found.split()[0]:
        return True
    (norm, projection), (own_norm, own_projection) = (
        map(float, text.split()[1:]) for text in (found, fingerprint(network))
    )
    return max(abs(norm - own_norm), abs(projection - own_projection)) <= ROUNDING * norm


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield all parameters and buffers of a network, on the CPU."""
    for named in (network.named_parameters(), network.named_buffers()):
        for name, tensor in named:
            yield name, tensor.detach().cpu().contiguous()
