"""The three matrix products of a fully-connected layer's step, by the fastest library on this processor.

A layer `z = s a W^T` needs `s a W^T` forward, `s d W` backward, and `W += c d^T a` for its update. On x86, PyTorch uses
MKL for products, and on AMD's processors MKL selects kernels that use only part of the arithmetic units. oneDNN, also
part of PyTorch, does not; `mkldnn::_linear_pointwise` passes plain strided float32 tensors to it, and it computes in
single precision throughout. On Intel's processors MKL is the faster of the two, but not in every shape: a few rows
times a large weight take as little as half the time if W is cut into blocks, or if the transposed product is computed.
Double precision always uses PyTorch's own products.

The choice depends on processor and library alone, never on a timing, so that a trial that is killed and resumed on one
machine ends in the same bits. `RAYSAT_MATMUL` overrides it.

Measured (`benchmarks/sgd.py`, 784-1000-1000-1000-10, float32, two threads), in steps per second over PyTorch's own
products: at b = 8 1.62 on an AMD EPYC (Zen 4) and 1.13 on an Intel Xeon, at b = 64 1.14 and 1.00, from b = 512 on 0.99
to 1.02.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from enum import Enum
from functools import cache, partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from raysat.errors import InputError

Call = Callable[[], object]
Inputs = Float[Tensor, "b inputs"]
Outputs = Float[Tensor, "b outputs"]
Weight = Float[Tensor, "outputs inputs"]

VARIABLE = "RAYSAT_MATMUL"
"""The environment variable that overrides the choice."""

SPLIT_FROM = 1 << 16
"""Entries of a weight from which products with one row are divided among threads; below, the launch costs more."""

ONEDNN_FROM = 1 << 18
"""Entries of a weight from which oneDNN is used: measured level with MKL at 512 x 512 and faster at 784 x 1000. Below,
its launch time of some 20 microseconds dominates."""

TRANSPOSED = range(16, 192)
"""Batch sizes at which oneDNN computes `W a^T` instead of `a W^T`: 7 to 28 % faster, measured at 1000 x 1000, because
W has more rows to divide among threads; at larger b, transposing the result back costs more than that gains."""

RESHAPED_FROM = 5 << 17
"""Entries of a weight from which `Matmul.MKL` reshapes products. Measured on one and two threads: no gain at 724 x 724
and below, a gain from 1000 x 784 on."""

IN_BLOCKS, BLOCK = range(4, 16), 125
"""Batch sizes at which `Matmul.MKL` takes `a W^T` in blocks of some 125 rows of W: 1.2 to 2 times as fast on one
thread, 1.0 to 1.9 times on two, at 1000 x 784 to 2048 x 2048. Blocks of 100 to 181 do as well, of 200 worse on two."""

ACROSS = range(16, 64, 16)
"""Batch sizes at which `Matmul.MKL` computes `W a^T` instead of `a W^T`: 1.1 to 1.4 times as fast. At 20 and 24, and
from 64 on, that loses up to a fifth."""

BACK_IN_BLOCKS = range(2, 9)
"""Batch sizes at which `Matmul.MKL` gives each thread its own rows of W in `d W`: 1.2 to 1.4 times as fast on two
threads, level at 12."""


class Matmul(Enum):
    """The choices, each with the processors on which it wins."""

    TORCH = "torch", "on other processors, in double precision, on a GPU, and wherever oneDNN cannot be used."
    MKL = "mkl", "on Intel's processors with AVX-512; PyTorch's own, in the shapes in which they are fastest."
    ONEDNN = "onednn", "on AMD's processors with AVX-512 up to Zen 4; updates stay with MKL, which adds them in place."
    ONEDNN_ALL = "onednn_all", "on AMD's processors from Zen 5 on, where MKL reaches half of what the processor can do."

    def __init__(self, label: str, wins: str) -> None:
        self.label, self.wins = label, wins

    @property
    def onednn(self) -> bool:
        """True if oneDNN computes some of the products."""
        return self in (Matmul.ONEDNN, Matmul.ONEDNN_ALL)


def _linear(a: Tensor, w: Tensor, after: str = "none") -> Tensor:
    """Return `a W^T` by oneDNN, or its `relu`."""
    # a private operator of PyTorch: `_onednn_is_right` tries it before it is used
    return torch.ops.mkldnn._linear_pointwise.default(a, w, None, after, [], "")


def _onednn_forward(a: Inputs, w: Weight, scale: float, out: Outputs, after: str) -> None:
    torch.mul(_linear(a, w, after), scale, out=out)


def _onednn_forward_transposed(a: Inputs, w: Weight, scale: float, out: Outputs, after: str) -> None:
    torch.mul(_linear(w, a, after).t(), scale, out=out)


def _onednn_backward(d: Outputs, w: Weight, scale: float, out: Inputs) -> None:
    torch.mul(_linear(d, w.t()), scale, out=out)


def _onednn_update(w: Weight, d: Outputs, a: Inputs, alpha: float) -> None:
    w.add_(_linear(d.t(), a.t()), alpha=alpha)


class Products:
    """The three products, as calls that are built once for given buffers and run many times.

    The calls keep views of the buffers and write into them; with `beta=0` the old content of a buffer is ignored.

    Args:
        choice: The library.
        threads: The number of threads among which a product with one row is divided. Default: PyTorch's.
    """

    def __init__(self, choice: Matmul, threads: int | None = None) -> None:
        self.choice, self.threads = choice, threads or torch.get_num_threads()

    def forward(self, a: Inputs, w: Weight, scale: float, out: Outputs, *, relu: bool = False) -> list[Call]:
        """Compute `out = scale a W^T`, or `out = relu(scale a W^T)`, scale positive."""
        b, (outputs, inputs) = len(a), w.shape
        rectify = [partial(out.clamp_min_, 0)] if relu else []
        if parts := self._parts(b, w, IN_BLOCKS, outputs // BLOCK):
            blocks = w.view(parts, outputs // parts, inputs).transpose(1, 2)
            target = out.view(b, parts, outputs // parts).transpose(0, 1)
            # At b = 1 the blocks of the result lie in `out` as the product writes them; else they are copied there.
            part = target if b == 1 else torch.empty_like(target, memory_format=torch.contiguous_format)
            gather = [partial(target.copy_, part)] if b > 1 else []
            return [partial(part.baddbmm_, a.expand(parts, b, inputs), blocks, beta=0, alpha=scale), *gather, *rectify]
        if self._onednn(b, w):
            function = _onednn_forward_transposed if b in TRANSPOSED else _onednn_forward
            return [partial(function, a, w, scale, out, "relu" if relu else "none")]
        if self._reshaped(b, w, ACROSS):
            across = w.new_empty(outputs, b)
            return [partial(across.addmm_, w, a.t(), beta=0, alpha=scale), partial(out.copy_, across.t()), *rectify]
        return [partial(out.addmm_, a, w.t(), beta=0, alpha=scale), *rectify]

    def backward(self, d: Outputs, w: Weight, scale: float, out: Inputs) -> list[Call]:
        """Compute `out = scale d W`."""
        b, (outputs, inputs) = len(d), w.shape
        if parts := self._parts(b, w, BACK_IN_BLOCKS, self.threads):
            blocks = w.view(parts, outputs // parts, inputs)
            shares = d.view(b, parts, outputs // parts).transpose(0, 1)
            sums = w.new_empty(parts, b, inputs)  # one summand of `d W` for each block of rows, added below
            add = partial(torch.add, *sums, out=out) if parts == 2 else partial(torch.sum, sums, 0, out=out)
            return [partial(sums.baddbmm_, shares, blocks, beta=0, alpha=scale), add]
        if self._onednn(b, w):
            return [partial(_onednn_backward, d, w, scale, out)]
        return [partial(out.addmm_, d, w, beta=0, alpha=scale)]

    def update(self, w: Weight, d: Outputs, a: Inputs, alpha: float) -> list[Call]:
        """Compute `W += alpha d^T a`, in place."""
        if len(d) == 1:  # an outer product, entry by entry
            return [partial(w.addcmul_, d.t(), a, value=alpha)]
        if self.choice is Matmul.ONEDNN_ALL and self._onednn(len(d), w):
            return [partial(_onednn_update, w, d, a, alpha)]
        return [partial(w.addmm_, d.t(), a, alpha=alpha)]

    def _onednn(self, b: int, w: Weight) -> bool:
        return self.choice.onednn and b > 1 and w.numel() >= ONEDNN_FROM

    def _reshaped(self, b: int, w: Weight, batch_sizes: range) -> bool:
        return self.choice is Matmul.MKL and b in batch_sizes and w.numel() >= RESHAPED_FROM

    def _parts(self, b: int, w: Weight, reshaped: range, most: int) -> int:
        """Return the number of blocks of rows into which W is cut; 0 if it is left whole.

        At b = 1 there is one block for each thread, because no library divides that product among threads.

        Args:
            b: Batch size.
            w: W.
            reshaped: The batch sizes at which `Matmul.MKL` cuts it.
            most: The largest number of blocks that it then makes.
        """
        if b == 1:
            most = self.threads if w.device.type == "cpu" and w.numel() >= SPLIT_FROM else 0
        elif not self._reshaped(b, w, reshaped):
            most = 0
        # only a divisor of the rows: the blocks are a view of W, all of one size
        parts = max((part for part in range(1, most + 1) if len(w) % part == 0), default=0)
        return parts if parts > 1 else 0


def requested_backend() -> Matmul | None:
    """Return the library that `RAYSAT_MATMUL` names; None if it is not set.

    Raises:
        InputError: It names none.
    """
    label = os.environ.get(VARIABLE)
    by_label = {choice.label: choice for choice in Matmul}
    if label is not None and label not in by_label:
        raise InputError(f"{VARIABLE}={label!r}: use one of {', '.join(by_label)}, or unset it.")
    return None if label is None else by_label[label]


def choose(dtype: torch.dtype, device: torch.device) -> Matmul:
    """Return the library for products of a dtype on a device.

    Raises:
        InputError: `RAYSAT_MATMUL` names none.
    """
    choice = requested_backend() or backend_for_cpu(*processor())
    if dtype != torch.float32 or device.type != "cpu" or (choice.onednn and not _onednn_is_right()):
        return Matmul.TORCH
    return choice


def backend_for_cpu(vendor: str, family: int, wide: bool) -> Matmul:
    """Return the library for a processor.

    Args:
        vendor: Its vendor id, as the processor reports it.
        family: Its family number, as the processor reports it. Zen 3 and 4 are 25, Zen 5 is 26.
        wide: Whether it has AVX-512.
    """
    if vendor == "GenuineIntel" and wide:
        return Matmul.MKL
    if vendor == "AuthenticAMD" and wide:
        return Matmul.ONEDNN_ALL if family >= 26 else Matmul.ONEDNN
    return Matmul.TORCH


@cache
def processor() -> tuple[str, int, bool]:
    """Return vendor, family and whether there is AVX-512, from Linux; elsewhere the vendor is empty."""
    try:
        # the entry of the first core, which stands for all
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return "", 0, False
    entries = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    family = entries.get("cpu family", "")
    wide = "avx512f" in entries.get("flags", "").split()
    return entries.get("vendor_id", ""), int(family) if family.isdigit() else 0, wide


@cache
def _onednn_is_right() -> bool:
    """Return whether oneDNN is available here and computes in single precision: tried on three small products."""
    generator = torch.Generator().manual_seed(0)
    a, d = (torch.randn(32, size, generator=generator) for size in (48, 40))
    w = torch.randn(40, 48, generator=generator)
    try:
        results = _linear(a, w), _linear(w, a).t(), _linear(d, w.t()), _linear(d.t(), a.t())
    except (AttributeError, RuntimeError):
        return False
    # Sums of some 48 products of normal numbers: their error is 4e-6 in single precision, but 9e-3 in TF32 and 7e-2 in
    # bfloat16, to which PyTorch's settings may reduce the precision.
    a, d, w = a.double(), d.double(), w.double()
    expected = a @ w.T, a @ w.T, d @ w, d.T @ a
    return all(
        torch.allclose(got.double(), want, rtol=0, atol=1e-4) for got, want in zip(results, expected, strict=True)
    )


@cache
def tune_malloc() -> None:
    """Let the allocator keep up to 256 MB of freed memory, instead of returning it to the system.

    By default glibc returns every block of some MB, and each product that needs a buffer then pays again for page
    faults and cleared pages: at b = 8 that made products up to four times slower. 32 MB is the largest block for which
    this can be changed, so that the large temporaries of the statistics are still returned.
    """
    if sys.platform == "linux":
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        try:
            mallopt = ctypes.CDLL(None).mallopt
        except (AttributeError, OSError):
            return
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 256 << 20)
