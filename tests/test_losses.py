import pytest
import torch
from torch.nn import functional as F

from raysat.losses import LOSSES

CROSS, SQUARED = LOSSES["cross_entropy"], LOSSES["mse"]
TOKENS = torch.randn(4, 3, 5, dtype=torch.float64), torch.randint(5, (4, 3))
CLASSES = torch.randn(4, 5, dtype=torch.float64), torch.eye(5, dtype=torch.float64)[torch.randint(5, (4,))]
NUMBERS = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
CASES = [(CROSS, *TOKENS), (CROSS, *CLASSES), (SQUARED, *NUMBERS)]


@pytest.mark.parametrize(("loss", "outputs", "y"), CASES)
def test_the_total_is_pytorchs(loss, outputs, y):
    expected = {
        (CROSS, 3): lambda: F.cross_entropy(outputs.mT, y, reduction="sum") / 3,
        (CROSS, 2): lambda: F.cross_entropy(outputs, y, reduction="sum"),
        (SQUARED, 2): lambda: F.mse_loss(outputs, y, reduction="sum") / 2,
    }[loss, outputs.ndim]()
    torch.testing.assert_close(loss.total(outputs, y), expected)


@pytest.mark.parametrize(("loss", "outputs", "y"), CASES)
def test_the_residual_is_the_gradient(loss, outputs, y):
    expected = torch.func.grad(loss.total)(outputs, y)
    torch.testing.assert_close(loss.residual(outputs, y), expected)


@pytest.mark.parametrize(("loss", "outputs", "y"), CASES)
def test_the_factor_is_one_of_the_hessian(loss, outputs, y):
    """S S^T is the Hessian of each sample's loss in its outputs, and `factor_transposed` is the transpose."""
    size = outputs[0].numel()
    for k in range(len(outputs)):
        hessian = torch.func.hessian(loss.total)(outputs[k : k + 1], y[k : k + 1]).reshape(size, size)
        columns = torch.eye(size, dtype=torch.float64).view(size, *outputs.shape[1:])
        here = outputs[k : k + 1].expand_as(columns)
        s = loss.factor(here, columns).reshape(size, size).T
        torch.testing.assert_close(s @ s.T, hessian)
        torch.testing.assert_close(loss.factor_transposed(here, columns).reshape(size, size), s)


def test_hits():
    outputs = torch.tensor([[[2.0, 1], [0, 1]], [[0, 1], [0, 1]]])
    assert CROSS.hits(outputs, torch.tensor([[0, 0], [1, 1]])).item() == 0.5 + 1
    assert CROSS.hits(outputs[0], torch.eye(2)).item() == SQUARED.hits(outputs[0], torch.eye(2)).item() == 2
