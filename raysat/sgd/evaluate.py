"""The full loss: over the whole training set, never a running batch mean (eq. 2.1), and over the test set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Evaluation:
    """Loss and accuracy over a set of samples.

    Attributes:
        loss: `1/(2n) sum_i ||f(w, x_i) - y_i||^2` (eq. 2.1).
        accuracy: Share of samples whose largest output is at the target's largest entry; NaN for regression.
    """

    loss: float
    accuracy: float


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    x: Float[Tensor, "n *input"],
    y: Float[Tensor, "n outputs"],
    *,
    classes: bool,
    chunk: int = 4096,
) -> Evaluation:
    """Evaluate a network on samples, in chunks, summed in float64.

    Args:
        network: The network.
        x: Inputs.
        y: Targets.
        classes: Whether the targets are one-hot.
        chunk: Samples at a time.
    """
    squares, hits = 0.0, 0
    for inputs, targets in zip(x.split(chunk), y.split(chunk), strict=True):
        outputs = network(inputs)
        squares += (outputs - targets).square().sum(dtype=torch.float64).item()
        if classes:
            hits += int((outputs.argmax(1) == targets.argmax(1)).sum())
    return Evaluation(loss=squares / (2 * len(x)), accuracy=hits / len(x) if classes else math.nan)
