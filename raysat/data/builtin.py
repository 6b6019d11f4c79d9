"""The built-in data sets: one function each, named as in a sweep."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from raysat.data import formats
from raysat.data.dataset import Dataset
from raysat.data.linear import linear_problem
from raysat.data.sources import read

WINDOW = 256
"""Characters of a sample of text: the block size of nanoGPT's model of the same text."""


def fixed_subset(n: int, count: int) -> Int64[np.ndarray, " count"]:
    """Return a fixed pseudo-random choice of `count` of n indices, ascending; it contains that of any smaller count."""
    return np.sort(np.random.Generator(np.random.Philox(key=0)).permutation(n)[:count])


def digits() -> Dataset:
    """1,797 images of digits, [1, 8, 8] in [0, 1]: 1,437 for training and 360 for testing.

    They come with scikit-learn and have no canonical split: this one is random, but fixed.
    """
    sklearn = find_spec("sklearn")  # found, not imported: the import takes a second in each process
    assert sklearn is not None
    assert sklearn.origin is not None  # not a package without a file
    folder = Path(sklearn.origin).parent
    table = np.loadtxt(folder / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    images = torch.from_numpy(table[:, :-1] / 16).float().view(-1, 1, 8, 8)
    y = _one_hot(table[:, -1])
    train = fixed_subset(len(y), 1437)
    test = np.setdiff1d(np.arange(len(y)), train)
    return Dataset(images[train], y[train], images[test], y[test])


def mnist() -> Dataset:
    """MNIST: 60,000 and 10,000 images, [1, 28, 28] in [0, 1]. LeCun, Cortes, Burges."""
    x, y, x_test, y_test = map(formats.idx, read("mnist"))
    return Dataset(_pixels(x[:, None]), _one_hot(y), _pixels(x_test[:, None]), _one_hot(y_test))


def cifar10() -> Dataset:
    """CIFAR-10: 50,000 and 10,000 images, [3, 32, 32] in [0, 1]. Krizhevsky, 2009."""
    *train, (x_test, y_test) = map(formats.cifar, read("cifar10"))
    x, y = map(np.concatenate, zip(*train, strict=True))
    return Dataset(_pixels(x), _one_hot(y), _pixels(x_test), _one_hot(y_test))


def svhn() -> Dataset:
    """SVHN, cropped digits: 73,257 and 26,032 images, [3, 32, 32] in [0, 1]. Netzer et al., 2011."""
    (x, y), (x_test, y_test) = map(formats.svhn, read("svhn"))
    return Dataset(_pixels(x), _one_hot(y), _pixels(x_test), _one_hot(y_test))


def tinyshakespeare() -> Dataset:
    """Shakespeare by characters: consecutive windows of 256 tokens, and the next token at each position.

    The first 90 % of the text are for training and the rest for testing, as in nanoGPT. The vocabulary is the 65
    distinct characters, sorted.
    """
    (content,) = read("tinyshakespeare")
    tokens, vocabulary = formats.characters(content)
    split = int(0.9 * len(tokens))
    return Dataset(*_windows(tokens[:split]), *_windows(tokens[split:]), vocabulary=vocabulary)


def linear(n: int = 256, d: int = 64, power: float = 1.0, seed: int = 0) -> Dataset:
    """Theorem 3.2's linear least squares, x [n, d] and y [n, 1], in float64; there is no test set.

    The closed forms of `linear_problem`, which has the same arguments, hold for the whole set with preprocessing
    `none`; centring or a subset changes the spectrum.
    """
    problem = linear_problem(n, d, power, seed)
    return Dataset(torch.from_numpy(problem.x), torch.from_numpy(problem.y).unsqueeze(1))


BUILTIN: dict[str, Callable[..., Dataset]] = {
    function.__name__: function for function in (digits, mnist, cifar10, svhn, tinyshakespeare, linear)
}


def _pixels(images: formats.Images) -> Float32[Tensor, "n channels height width"]:
    return torch.from_numpy(images.astype(np.float32, order="C")).div_(255)


def _one_hot(labels: np.ndarray) -> Float32[Tensor, "n 10"]:
    return torch.eye(10)[torch.from_numpy(labels.astype(np.int64))]


def _windows(tokens: Int64[np.ndarray, " length"]) -> tuple[Int64[Tensor, "n L"], Int64[Tensor, "n L"]]:
    """Consecutive windows that do not overlap, and the same windows one token later."""
    length = (len(tokens) - 1) // WINDOW * WINDOW
    stream = torch.from_numpy(tokens)
    return stream[:length].view(-1, WINDOW), stream[1 : length + 1].view(-1, WINDOW)
