"""The file formats of the built-in data sets, from verified bytes to arrays."""

from __future__ import annotations

import gzip
import io
import pickle
import struct

import numpy as np
from jaxtyping import Int64, UInt8

from raysat.errors import InputError

Bytes = UInt8[np.ndarray, "..."]
Images = UInt8[np.ndarray, "n channels height width"]
Labels = Int64[np.ndarray, " n"]

_PICKLED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}
"""The names that a pickled array of bytes uses; numpy 2 moved one of the modules."""


def idx(content: bytes) -> Bytes:
    """The array of a gzipped idx file of unsigned bytes, the format of MNIST.

    The head is two zero bytes, the type (8), the number of dimensions, and each dimension as a big-endian int32.
    """
    unpacked = gzip.decompress(content)
    zeros, kind, ndim = struct.unpack_from(">HBB", unpacked)
    if (zeros, kind) != (0, 8):
        raise InputError("An idx file does not begin like one of unsigned bytes: put the original file in its place.")
    shape = struct.unpack_from(f">{ndim}i", unpacked, 4)
    return np.frombuffer(unpacked, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def cifar(content: bytes) -> tuple[Images, Labels]:
    """Images [n, 3, 32, 32] and labels [n] of one pickled batch of CIFAR-10's Python version."""
    batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    return batch[b"data"].reshape(-1, 3, 32, 32), np.array(batch[b"labels"], np.int64)


def svhn(content: bytes) -> tuple[Images, Labels]:
    """Images [n, 3, 32, 32] and labels [n] of one Matlab file of SVHN's cropped digits, where 0 is labelled 10."""
    from scipy.io import loadmat

    file = loadmat(io.BytesIO(content))
    images = file["X"].transpose(3, 2, 0, 1)  # [height, width, channel, n] -> [n, channel, height, width]
    return images, file["y"].ravel().astype(np.int64) % 10


def characters(content: bytes) -> tuple[Int64[np.ndarray, " length"], int]:
    """The tokens of an ASCII text, numbered in the order of the sorted distinct characters, and their number."""
    vocabulary, tokens = np.unique(np.frombuffer(content, np.uint8), return_inverse=True)
    return tokens.astype(np.int64), len(vocabulary)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays and plain values. A pickle can call anything that it can name, so it may name nothing else."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _PICKLED:
            raise InputError(
                f"A pickled batch asks for {module}.{name}, which no array needs: put the original file in its place."
            )
        return super().find_class(module, name)
