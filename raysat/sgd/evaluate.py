"""The full loss: over the whole training set, never a running batch mean (eq. 2.1), and over the test set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raysat.losses import Loss


@dataclass(frozen=True)
class Evaluation:
    """Loss and accuracy over a set of samples.

    Attributes:
        loss: The mean of the samples' losses (eq. 2.1 for the squared error).
        accuracy: Share of samples (of positions, for sequences) whose largest output is at the target; NaN for
            regression.
    """

    loss: float
    accuracy: float


@torch.inference_mode()
def evaluate(network: nn.Module, x: Tensor, y: Tensor, loss: Loss, *, classes: bool, chunk: int = 4096) -> Evaluation:
    """Evaluate a network on samples, in chunks whose sums are added in float64.

    Args:
        network: The network.
        x: Inputs. Shape: [n, ...].
        y: Targets. Shape: [n, ...].
        loss: The loss of a sample.
        classes: Whether the targets name classes.
        chunk: Samples at a time.
    """
    total = hits = 0.0
    for inputs, targets in zip(x.split(chunk), y.split(chunk), strict=True):
        outputs = network(inputs)
        total += loss.total(outputs, targets).item()
        hits += loss.hits(outputs, targets).item() if classes else math.nan
    return Evaluation(loss=total / len(x), accuracy=hits / len(x))
