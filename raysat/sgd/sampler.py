"""Which samples each step sees: batches from a counter-based generator keyed by (seed, step).

The paper's batch is a uniform subset of fixed size b, drawn anew each iteration (section 2). Here it is the first b
values of a pseudorandom permutation of 0..n-1 whose key is (seed, step): O(b) work, no state, any step at any time, on
any device, in the same bits. The permutation is a Feistel network over the smallest power of two that holds n, with
cycle-walking for values beyond n: the construction of Mitchell, Stokes, Frank, Holmes (2022), "Bandwidth-optimal random
shuffling for GPUs", with their 24 rounds; the round function is the finalizer of MurmurHash3.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

ROUNDS = 24  # Mitchell et al. 2022, section 4: fewer fail their tests of uniformity on short sequences.

INDICES_AT_ONCE = 1 << 16
"""Indices drawn at once by `Batches`. Measured: a draw of 256 takes 1 to 4 ms, one of 65,536 takes 5 to 11."""

_MASK = 0xFFFFFFFF
_STREAMS = {
    **{"without_replacement": 0x9E3779B9, "with_replacement": 0x7F4A7C15, "epochs": 0x85157AF5},
    **{"staleness": 0xA511E9B3, "noise": 0x63D83595},
}


def _word(number: int) -> int:
    """The low 32 bits of a number, as the int32 that has them: arithmetic in int32 is modulo 2^32."""
    return (number + (1 << 31) & _MASK) - (1 << 31)


def _unsigned(value: Int32[Tensor, " k"]) -> Int64[Tensor, " k"]:
    """The numbers in [0, 2^32) that have these bits."""
    return value.long() & _MASK


def _xor_shift(value: Int32[Tensor, " k"], bits: int) -> Int32[Tensor, " k"]:
    """`value ^= value >> bits`, where zeros are shifted in, and not the sign."""
    return value.bitwise_xor_((value >> bits).bitwise_and_(_MASK >> bits))


def _hash(value: Int32[Tensor, " k"]) -> Int32[Tensor, " k"]:
    """MurmurHash3's 32-bit finalizer, in place."""
    _xor_shift(value, 16).mul_(_word(0x85EBCA6B))
    _xor_shift(value, 13).mul_(_word(0xC2B2AE35))
    return _xor_shift(value, 16)


def _keys(seed: int, stream: str, counters: Int64[Tensor, " k"]) -> Int32[Tensor, " k"]:
    """32 bits for each counter. All 64 bits of seed and counter take part."""
    key = torch.full_like(counters, _word(_STREAMS[stream]), dtype=torch.int32)
    for word in (seed, seed >> 32):
        _hash(key.add_(_word(word)))
    for words in (counters, counters >> 32):
        _hash(key.add_(words.int()).add_(_word(0x9E3779B9)))
    return key


def _permute(values: Int64[Tensor, " k"], keys: Int32[Tensor, " k"], n: int) -> Int64[Tensor, " k"]:
    """Return where the permutation of 0..n-1 with each key takes each value."""
    if n == 1:
        return torch.zeros_like(values)
    bits = max((n - 1).bit_length(), 2)
    right_bits = bits // 2
    right_mask, left_mask = (1 << right_bits) - 1, (1 << bits - right_bits) - 1
    result = values.clone()
    todo = torch.arange(len(values), device=values.device)
    while len(todo):
        value, key = result[todo], keys[todo]
        left, right = (value >> right_bits).int(), (value & right_mask).int()
        for turn in range(0, ROUNDS, 2):
            left ^= _round(key, right, turn).bitwise_and_(left_mask)
            right ^= _round(key, left, turn + 1).bitwise_and_(right_mask)
        value = left.long() << right_bits | right
        result[todo] = value
        todo = todo[value >= n]
    return result


def _round(key: Int32[Tensor, " k"], half: Int32[Tensor, " k"], turn: int) -> Int32[Tensor, " k"]:
    """The round function of the Feistel network."""
    return _hash((half << 8 | turn).mul_(_word(0x9E3779B1)).bitwise_xor_(key))


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
        index = _unsigned(_hash(_hash(keys ^ position.int()) ^ keys)) * n >> 32
    else:
        index = _permute(position, keys, n)
    return index.view(steps, b)


class Batches:
    """The batches of a trial, drawn ahead of their use: the fewer are drawn at once, the more each of them costs.

    Args:
        seed: The trial's seed.
        steps: Of the trial: those beyond its end are not drawn ahead.
        b: Batch size.
        n: Number of samples.
        sampling: As in `batches`.
        device: Where the indices are made.
    """

    def __init__(self, seed: int, steps: int, b: int, n: int, sampling: str, device: str) -> None:
        self.steps, self.at_once = steps, max(1, INDICES_AT_ONCE // b)
        self._draw = partial(batches, seed, b=b, n=n, sampling=sampling, device=device)
        self._start, self._drawn = 0, torch.empty(0, b, dtype=torch.int64)

    def take(self, start: int, steps: int) -> Int64[Tensor, "steps b"]:
        """The indices of the batches of steps `start, ..., start + steps - 1`, a view that is not to be changed."""
        if not self._start <= start <= start + steps <= self._start + len(self._drawn):
            self._drawn = self._draw(start, max(steps, min(self.at_once, self.steps - start)))
            self._start = start
        return self._drawn[start - self._start :][:steps]


def uniform(seed: int, stream: str, counters: Int64[Tensor, " k"]) -> Float[Tensor, " k"]:
    """One number in [0, 1) for each counter, in float64; a function of seed, stream and counter alone.

    Args:
        seed: The trial's seed.
        stream: What the numbers are for: numbers of different streams are independent.
        counters: Such as the steps.
    """
    keys = _keys(seed, stream, counters)
    return _unsigned(_hash(_hash(keys.clone()) ^ keys)).double() / 2**32


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
