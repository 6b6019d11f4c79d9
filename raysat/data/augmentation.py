"""Transforms of batches of images, `(x, y, generator) -> (x, y)` (`raysat.sgd.transform`).

A sweep names them by import path: `Training("momentum", transform="raysat.data.augmentation:crop_and_flip")`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

BORDER = 4
"""Pixels by which an image is padded on each side. Default: 4, as He et al. (2016, section 4.2) train on CIFAR-10."""


def crop_and_flip(
    x: Float[Tensor, "b channels height width"], y: Shaped[Tensor, "b *rest"], generator: torch.Generator
) -> tuple[Float[Tensor, "b channels height width"], Shaped[Tensor, "b *rest"]]:
    """Crop each image at random from a border of zeros, and mirror one in two (He et al. 2016, section 4.2).

    Args:
        x: Images after preprocessing, so that under `center` the border has the mean of all pixels.
        y: Targets, which stay as they are.
        generator: The source of the random numbers.
    """
    b, _, height, width = x.shape
    down, right = torch.randint(2 * BORDER + 1, (2, b, 1), generator=generator).to(x.device)
    mirrored = torch.rand(b, generator=generator).to(x.device) < 0.5
    image = torch.arange(b, device=x.device)[:, None, None]
    rows = (down + torch.arange(height, device=x.device))[:, :, None]
    columns = (right + torch.arange(width, device=x.device))[:, None]
    padded = torch.nn.functional.pad(x, [BORDER] * 4)
    # indices apart from each other come first: (b, height, width, channels)
    cropped = padded[image, :, rows, columns].movedim(3, 1)
    return torch.where(mirrored[:, None, None, None], cropped.flip(3), cropped), y
