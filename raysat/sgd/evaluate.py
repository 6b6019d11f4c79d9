"""The loss over the whole training set (eq. 2.1), never a running mean over batches, and over the test set."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raysat.compute.micro_batch import retry_on_oom
from raysat.data.fields import Inputs
from raysat.losses import Loss, hits


@dataclass(frozen=True)
class Evaluation:
    """Loss and accuracy over a set of samples.

    Attributes:
        loss: The mean of the samples' losses (eq. 2.1 for the squared error).
        accuracy: Fraction of samples (of positions, for sequences) that are classified correctly; NaN for regression.
    """

    loss: float
    accuracy: float


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and restore the mode of each of its modules afterwards."""
    before = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    x: Inputs,
    y: Tensor,
    loss: Loss,
    *,
    classes: bool,
    threshold: float | None = None,
    chunk: int = 4096,
) -> Evaluation:
    """Evaluate a network on samples, in chunks whose sums are added in float64; chunks are halved if memory runs out.

    The network is in evaluation mode during this, so that batch normalization uses its running averages.

    Args:
        network: The network.
        x: Inputs. Shape: [n, ...].
        y: Targets. Shape: [n, ...].
        loss: The loss of a sample.
        classes: Whether the targets name classes.
        threshold: The boundary between the two classes of a single output; see `raysat.losses.hits`.
        chunk: Samples at a time.
    """

    def sums(chunk: int) -> tuple[float, float]:
        total = right = 0.0
        for inputs, targets in zip(x.split(chunk), y.split(chunk), strict=True):
            outputs = network(inputs)
            total += loss.total(outputs, targets).item()
            right += hits(outputs, targets, threshold).item() if classes else math.nan
        return total, right

    with evaluation_mode(network):
        (total, right), _ = retry_on_oom(sums, chunk)
    return Evaluation(loss=total / len(x), accuracy=right / len(x))
