"""The samples of each step: batches from a counter-based generator keyed by (seed, step).

The paper's batch is a uniform subset of fixed size b, drawn independently in each iteration (section 2). Here it is the
first b values of a pseudorandom permutation of 0..n-1 whose key is (seed, step): O(b) work, no state, any step at any
time, on any device, in the same bits. The permutation is a Feistel network over the smallest power of two that holds n,
with cycle-walking for values beyond n: the construction of Mitchell, Stokes, Frank, Holmes (2022), "Bandwidth-optimal
random shuffling for GPUs", with their 24 rounds; the round function is the finalizer of MurmurHash3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache, partial

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from raysat.spec.phases import Phase, span_at, spans

ROUNDS = 24  # Mitchell et al. 2022, section 4: with fewer, short sequences fail their tests of uniformity

INDICES_AT_ONCE = 1 << 16
"""Indices drawn at once by `Batches`. Measured: a draw of 256 takes 1 to 4 ms, a draw of 65,536 takes 5 to 11 ms."""

GENERATORS_AT_ONCE = 1 << 10
"""Steps whose generators are seeded at once by `generator`: a draw of seeds takes about as long as one of batches."""

_MASK = 0xFFFFFFFF
_STREAMS = {
    **{"without_replacement": 0x9E3779B9, "with_replacement": 0x7F4A7C15, "epochs": 0x85157AF5},
    **{"staleness": 0xA511E9B3, "noise": 0x63D83595, "transform": 0x1B56C4E9},
}


def _word(number: int) -> int:
    """Return the int32 with the low 32 bits of a number. Arithmetic in int32 is modulo 2^32."""
    return (number + (1 << 31) & _MASK) - (1 << 31)


def _unsigned(value: Int32[Tensor, " k"]) -> Int64[Tensor, " k"]:
    """Return the numbers in [0, 2^32) with the same bits."""
    return value.long() & _MASK


def _xor_shift(value: Int32[Tensor, " k"], bits: int) -> Int32[Tensor, " k"]:
    """Compute `value ^= value >> bits`, a logical shift: zeros are shifted in, not the sign."""
    return value.bitwise_xor_((value >> bits).bitwise_and_(_MASK >> bits))


def _hash(value: Int32[Tensor, " k"]) -> Int32[Tensor, " k"]:
    """Apply MurmurHash3's 32-bit finalizer, in place."""
    _xor_shift(value, 16).mul_(_word(0x85EBCA6B))
    _xor_shift(value, 13).mul_(_word(0xC2B2AE35))
    return _xor_shift(value, 16)


def _keys(seed: int, stream: str, counters: Int64[Tensor, " k"]) -> Int32[Tensor, " k"]:
    """Return 32 bits for each counter, a hash of all 64 bits of seed and counter and of the stream's name."""
    key = torch.full_like(counters, _word(_STREAMS[stream]), dtype=torch.int32)
    for word in (seed, seed >> 32):
        _hash(key.add_(_word(word)))
    for words in (counters, counters >> 32):
        _hash(key.add_(words.int()).add_(_word(0x9E3779B9)))
    return key


def _permute(values: Int64[Tensor, " k"], keys: Int32[Tensor, " k"], n: int) -> Int64[Tensor, " k"]:
    """Return the image of each value under the permutation of 0..n-1 with its key."""
    if n == 1:
        return torch.zeros_like(values)
    bits = max((n - 1).bit_length(), 2)
    right_bits = bits // 2
    right_mask, left_mask = (1 << right_bits) - 1, (1 << bits - right_bits) - 1
    result = values.clone()
    # Cycle-walking: the network permutes 0..2^bits-1, and a value beyond n goes through it again until it falls below.
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
    """Return the round function of the Feistel network."""
    return _hash((half << 8 | turn).mul_(_word(0x9E3779B1)).bitwise_xor_(key))


def batches(
    seed: int,
    start: int,
    steps: int,
    b: int,
    n: int,
    sampling: str = "without_replacement",
    device: str = "cpu",
    further: int = 0,
) -> Int64[Tensor, "steps b"]:
    """Return the indices of the batches of steps `start, ..., start + steps - 1`.

    Args:
        seed: The trial's seed.
        start: The first step.
        steps: How many steps.
        b: Batch size; at most n unless sampling is `with_replacement`.
        n: Number of samples.
        sampling: `without_replacement`: an independent uniform subset of size b at each step. `with_replacement`: b
            independent draws. `epochs`: b consecutive samples of a shuffled pass; a batch may straddle two passes.
        device: Where the indices are made. The values do not depend on it.
        further: Samples used before step `start` beyond `start b`, from which `epochs` counts its passes.

    Example:
        >>> batches(seed=0, start=0, steps=2, b=3, n=3).sort().values.tolist()
        [[0, 1, 2], [0, 1, 2]]
    """
    if sampling == "without_replacement" and b == n:  # full-batch gradient descent: one order, one sum
        return torch.arange(n, device=device).repeat(steps, 1)
    step = torch.arange(start, start + steps, device=device).repeat_interleave(b)
    position = torch.arange(b, device=device).repeat(steps)
    if sampling == "epochs":
        count = step * b + position + further
        step, position = count // n, count % n
    keys = _keys(seed, sampling, step)
    if sampling == "with_replacement":
        # 32 random bits as a fraction of 2^32, times n
        index = _unsigned(_hash(_hash(keys ^ position.int()) ^ keys)) * n >> 32
    else:
        index = _permute(position, keys, n)
    return index.view(steps, b)


class Batches:
    """The batches of a trial, many drawn at once ahead of their use, because each draw has a fixed cost.

    Args:
        seed: The trial's seed.
        steps: Steps of the trial; none beyond its end are drawn.
        b: Batch size.
        n: Number of samples.
        sampling: As in `batches`.
        device: Where the indices are made.
        schedule: Phases with other batch sizes or other draws. Default: none.
    """

    def __init__(
        self, seed: int, steps: int, b: int, n: int, sampling: str, device: str, schedule: Iterable[Phase] = ()
    ) -> None:
        self.seed, self.steps, self.n, self.spans = seed, steps, n, spans(schedule, b)
        self.at_once = max(1, INDICES_AT_ONCE // max(one.b for one in self.spans))
        self._batches = partial(batches, n=n, sampling=sampling, device=device)
        self._start, self._drawn = 0, torch.empty(0, b, dtype=torch.int64)

    def end(self, t: int) -> int:
        """Return the step before which batches are of the size of step t, and of its draw."""
        return min((one.start for one in self.spans if one.start > t), default=self.steps)

    def take(self, start: int, steps: int) -> Int64[Tensor, "steps b"]:
        """Return the indices of the batches of steps `start, ..., start + steps - 1`, as a view not to be changed.

        The steps are of one phase: cf. `end`.
        """
        if not self._start <= start <= start + steps <= self._start + len(self._drawn):
            self._drawn = self._draw(start, max(steps, min(self.at_once, self.end(start) - start)))
            self._start = start
        return self._drawn[start - self._start :][:steps]

    def _draw(self, start: int, steps: int) -> Int64[Tensor, "steps b"]:
        first, b, draw, samples = span_at(self.spans, start)
        if draw:
            samples = -(-samples // self.n) * self.n  # under `epochs` at the beginning of a pass
        return self._batches(redrawn(self.seed, draw), start, steps, b=b, further=samples - first * b)


def redrawn(seed: int, draw: int) -> int:
    """Return the seed of a draw of the samples; the trial's own for 0."""
    return int.from_bytes(hashlib.sha256(f"{seed} {draw}".encode()).digest()[:8], "big") if draw else seed


def uniform(seed: int, stream: str, counters: Int64[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Return one number in [0, 1) for each counter, in float64, a function of seed, stream and counter alone.

    Args:
        seed: The trial's seed.
        stream: The purpose of the numbers; numbers of different streams are independent.
        counters: Such as the steps.
    """
    keys = _keys(seed, stream, counters)
    return _unsigned(_hash(_hash(keys.clone()) ^ keys)).double() / 2**32


def generator(seed: int, step: int) -> torch.Generator:
    """Return a generator of PyTorch, on the CPU, for a user's transform of a step's batch.

    Its numbers are a function of seed and step alone. PyTorch's generator takes 32 bits for its seed.
    """
    block, place = divmod(step, GENERATORS_AT_ONCE)
    return torch.Generator().manual_seed(_seeds(seed, block)[place])


@lru_cache(maxsize=64)
def _seeds(seed: int, block: int) -> list[int]:
    """The seeds of the generators of a block of steps."""
    steps = torch.arange(block * GENERATORS_AT_ONCE, (block + 1) * GENERATORS_AT_ONCE)
    return _unsigned(_keys(seed, "transform", steps)).tolist()


def normal(seed: int, start: int, steps: int, b: int, device: str = "cpu") -> Float[Tensor, "steps b"]:
    """Return a standard normal number for each sample of the batches of some steps, in float64 (Box and Muller 1958).

    Args:
        seed: The trial's seed.
        start: The first step.
        steps: How many steps.
        b: Batch size.
        device: Where the numbers are made.
    """
    counters = 2 * torch.arange(start * b, (start + steps) * b, device=device)
    radius = (-2 * torch.log1p(-uniform(seed, "noise", counters))).sqrt()
    return (radius * torch.cos(2 * torch.pi * uniform(seed, "noise", counters + 1))).view(steps, b)
