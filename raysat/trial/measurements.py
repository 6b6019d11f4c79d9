"""The measurements of a network at an evaluation, as columns of `curves`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from raysat import data
from raysat.compute.micro_batch import retry_on_oom
from raysat.data.fields import Inputs
from raysat.losses import Loss, resolve
from raysat.ntk import dense_kernel, gradient_square
from raysat.sgd.evaluate import Evaluation, evaluate, evaluation_mode
from raysat.spec.cells import Initialization
from raysat.storage.rows import Row, none_if_nan

_EVALUATED_AT_ONCE = 4096


class Evaluator:
    """Computes the losses of a network for `curves`, over the samples that an initialization names.

    Args:
        init: Names the loss and the number of training samples.
        dataset: On the network's device.
        micro_batch: The largest number of samples at a time.
    """

    def __init__(self, init: Initialization, dataset: data.Dataset, micro_batch: int) -> None:
        count = init.evaluation_samples or init.n
        self.train = dataset.x[:count], dataset.y[:count]
        x_test, y_test = dataset.x_test, dataset.y_test
        self.test = None if x_test is None or y_test is None else (x_test, y_test)
        self.loss, self.classes, self.threshold = resolve(init.loss), dataset.classes, dataset.threshold
        self.chunk = min(_EVALUATED_AT_ONCE, micro_batch)

    def __call__(self, network: nn.Module) -> Row:
        """Return the columns of `raysat.storage.schema.EVALUATION`."""
        train = self._over(network, *self.train)
        test = self._over(network, *self.test) if self.test else None
        return {
            "train_loss": train.loss,
            "train_accuracy": none_if_nan(train.accuracy),
            "test_loss": test.loss if test else None,
            "test_accuracy": none_if_nan(test.accuracy) if test else None,
        }

    def _over(self, network: nn.Module, x: Inputs, y: Tensor) -> Evaluation:
        accuracy = {"classes": self.classes, "threshold": self.threshold}
        return evaluate(network, x, y, self.loss, **accuracy, chunk=self.chunk)


class Drift:
    """The change of the kernel of a few samples since this object was made."""

    def __init__(self, network: nn.Module, x: Inputs, outputs: int = 1000) -> None:
        with torch.no_grad():
            count = max(1, outputs // network(x[:1]).numel())
        self.x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:count]]
        self.before = dense_kernel(network, self.x)

    def of(self, network: nn.Module) -> float:
        """Return `||K - K_0||_F / ||K_0||_F`."""
        return ((dense_kernel(network, self.x) - self.before).norm() / self.before.norm()).item()


def gradient_squares(
    network: nn.Module, dataset: data.Dataset, loss: Loss, chunk: int, t: int, curve: list[Row]
) -> dict[str, float]:
    """Return `||grad L(w_t)||^2` and its mean over the steps 0, ..., t - 1, as columns of `curves`.

    Between two evaluations the square is taken as linear in t, so that the mean is exact if every step is evaluated.
    Batch normalization is in evaluation mode, as in the loss whose gradient this is.
    """
    with evaluation_mode(network):
        square, _ = retry_on_oom(lambda count: gradient_square(network, dataset.x, dataset.y, loss, count), chunk)
    mean = square
    if curve:
        before = curve[-1]
        span, left = t - before["iteration"], before["gradient_square"]
        added = (
            span * (left + square) / 2 + (left - square) / 2
        )  # the trapezoidal sum over `span` steps: the left end counts, the right end does not
        mean = (before["gradient_square_mean"] * before["iteration"] + added) / t
    return {"gradient_square": square, "gradient_square_mean": mean}


def distance(network: nn.Module, start: Mapping[str, Tensor]) -> float:
    """Return `||w - w_0||`, summed in double precision."""
    squares = sum(
        (weight.detach() - start[name]).double().square().sum() for name, weight in network.named_parameters()
    )
    return math.sqrt(float(squares))
