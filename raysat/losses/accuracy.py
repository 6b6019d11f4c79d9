"""The number of samples that are classified correctly, the same for all losses."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def hits(outputs: Float[Tensor, "n *positions outputs"], y: Tensor, threshold: float | None = None) -> Tensor:
    """Return how many samples are classified correctly; a sequence counts by the fraction of its positions.

    The class is that of the largest output. It is correct if it is the label, or if the target's row is largest there;
    if several entries are equally large, each of these classes is correct, and a row of equal numbers has no class.
    A single output distinguishes two classes by its side of a threshold; it is correct if the target is on that side.

    Args:
        outputs: The network's outputs.
        y: Labels, or rows of the outputs' shape.
        threshold: For a single output, the boundary between the two classes, of outputs and of targets.

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
        right = (at == y.amax(-1)) & (at > y.amin(-1))  # the second: a row of equal numbers has no class
    else:
        right = outputs.argmax(-1) == y
    return right.double().view(len(y), -1).mean(1).sum()
