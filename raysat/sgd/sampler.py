"""Which samples each step sees: batches from a counter-based generator keyed by (seed, step).

The paper's batch is a uniform subset of fixed size b, drawn anew each iteration (section 2). Here it is the first b
values of a pseudorandom permutation of 0..n-1 whose key is (seed, step): O(b) work, no state, any step at any time, on
any device, in the same bits. The permutation is a Feistel network over the smallest power of two that holds n, with
cycle-walking for values beyond n: the construction of Mitchell, Stokes, Frank, Holmes (2022), "Bandwidth-optimal random
shuffling for GPUs", with their 24 rounds; the round function is the finalizer of MurmurHash3.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

ROUNDS = 24  # Mitchell et al. 2022, section 4: fewer fail their tests of uniformity on short sequences.
_MASK = 0xFFFFFFFF
_STREAMS = {
    **{"without_replacement": 0x9E3779B9, "with_replacement": 0x7F4A7C15, "epochs": 0x85157AF5},
    **{"staleness": 0xA511E9B3, "noise": 0x63D83595},
}


def _hash(value: Tensor) -> Tensor:
    """MurmurHash3's 32-bit finalizer, on int64 tensors that hold 32-bit values."""
    value = value ^ (value >> 16)
    value = (value * 0x85EBCA6B) & _MASK
    value = value ^ (value >> 13)
    value = (value * 0xC2B2AE35) & _MASK
    return value ^ (value >> 16)


def _keys(seed: int, stream: str, counters: Int64[Tensor, " k"]) -> Int64[Tensor, " k"]:
    """A 32-bit key for each counter. All 64 bits of seed and counter take part."""
    key = torch.full_like(counters, _STREAMS[stream])
    for word in (seed & _MASK, seed >> 32 & _MASK):
        key = _hash((key + word) & _MASK)
    for words in (counters & _MASK, counters >> 32):
        key = _hash((key + words + 0x9E3779B9) & _MASK)
    return key


def _permute(values: Int64[Tensor, " k"], keys: Int64[Tensor, " k"], n: int) -> Int64[Tensor, " k"]:
    """Where the permutation of 0..n-1 with each key takes each value."""
    if n == 1:
        return torch.zeros_like(values)
    bits = max((n - 1).bit_length(), 2)
    right_bits = bits // 2
    left_bits = bits - right_bits
    result = values.clone()
    todo = torch.arange(len(values), device=values.device)
    while len(todo):
        value, key = result[todo], keys[todo]
        left, right = value >> right_bits, value & ((1 << right_bits) - 1)
        for turn in range(0, ROUNDS, 2):
            left = left ^ (_hash(key ^ (right << 8 | turn) * 0x9E3779B1 & _MASK) & ((1 << left_bits) - 1))
            right = right ^ (_hash(key ^ (left << 8 | turn + 1) * 0x9E3779B1 & _MASK) & ((1 << right_bits) - 1))
        value = left << right_bits | right
        result[todo] = value
        todo = todo[value >= n]
    return result


def batches(
    seed: int, start: int, steps: int, b: int, n: int, sampling: str = "without_replacement", device: str = "cpu"
) -> Int64[Tensor, "steps b"]:
    """The indices of the batches of steps `start, ..., start + steps - 1`.

    Args:
        seed: The trial's seed.
        start: The first step.
        steps: How many steps.
        b: Batch size; at most n, but for `with_replacement`.
        n: Number of samples.
        sampling: `without_replacement`: a uniform subset of size b, anew each step. `with_replacement`: b independent
            draws. `epochs`: b consecutive samples of a shuffled pass; a batch may straddle two passes.
        device: Where the indices are made. The values do not depend on it.

    Example:
        >>> batches(seed=0, start=0, steps=2, b=3, n=3).sort().values.tolist()
        [[0, 1, 2], [0, 1, 2]]
    """
    if sampling == "without_replacement" and b == n:  # full-batch gradient descent: one order, one sum
        return torch.arange(n, device=device).repeat(steps, 1)
    step = torch.arange(start, start + steps, device=device).repeat_interleave(b)
    position = torch.arange(b, device=device).repeat(steps)
    if sampling == "epochs":
        count = step * b + position
        step, position = count // n, count % n
    keys = _keys(seed, sampling, step)
    if sampling == "with_replacement":
        index = _hash(_hash(keys ^ position) ^ keys) * n >> 32
    else:
        index = _permute(position, keys, n)
    return index.view(steps, b)


def uniform(seed: int, stream: str, counters: Int64[Tensor, " k"]) -> Float[Tensor, " k"]:
    """One number in [0, 1) for each counter, in float64; a function of seed, stream and counter alone.

    Args:
        seed: The trial's seed.
        stream: What the numbers are for: numbers of different streams are independent.
        counters: Such as the steps.
    """
    keys = _keys(seed, stream, counters)
    return _hash(_hash(keys) ^ keys).double() / 2**32


def normal(seed: int, start: int, steps: int, b: int, device: str = "cpu") -> Float[Tensor, "steps b"]:
    """Standard normal numbers for each sample of the batches of some steps, in float64 (Box and Muller 1958).

    Args:
        seed: The trial's seed.
        start: The first step.
        steps: How many steps.
        b: Batch size.
        device: Where they are made.
    """
    counters = 2 * torch.arange(start * b, (start + steps) * b, device=device)
    radius = (-2 * torch.log1p(-uniform(seed, "noise", counters))).sqrt()
    return (radius * torch.cos(2 * torch.pi * uniform(seed, "noise", counters + 1))).view(steps, b)
