"""What counts as classified correctly, whatever the loss."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def hits(outputs: Float[Tensor, "n *positions outputs"], y: Tensor, threshold: float | None = None) -> Tensor:
    """Return how many samples are classified correctly; of a sequence, the share of its positions.

    The largest output names the class. It is right where it is the label, or where the target's row is largest; of
    several classes that are equally large each is right, and a row of equal numbers names none. One output names one of
    two classes by its side of a threshold, on which the target must lie too.

    Args:
        outputs: The network's outputs.
        y: Labels, or rows of the outputs' shape.
        threshold: For one output, what parts the two classes, of outputs and of targets.

    Example:
        >>> hits(torch.eye(3), torch.tensor([0, 1, 1])).item()
        2.0
        >>> hits(torch.tensor([[0.3], [0.7]]), torch.tensor([[0.0], [1.0]]), threshold=0.5).item()
        2.0
    """
    if threshold is not None:
        right = (outputs > threshold) == (y > threshold)
    elif y.is_floating_point():
        at = y.gather(-1, outputs.argmax(-1, keepdim=True)).squeeze(-1)
        right = (at == y.amax(-1)) & (at > y.amin(-1))
    else:
        right = outputs.argmax(-1) == y
    return right.double().view(len(y), -1).mean(1).sum()
