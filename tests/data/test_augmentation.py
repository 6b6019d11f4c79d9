"""The transform of images that comes with raysat, against a loop over images."""

import torch

from raysat.data.augmentation import BORDER, crop_and_flip


def test_each_image_is_cropped_from_its_border_and_one_in_two_is_mirrored():
    b, channels, height, width = 200, 3, 5, 7
    x = torch.arange(1.0, 1 + b * channels * height * width).reshape(b, channels, height, width)
    y, before = torch.arange(b), x.clone()
    changed, same = crop_and_flip(x, y, torch.Generator().manual_seed(3))
    assert torch.equal(x, before)
    assert same is y
    kinds = set()
    for image, made in zip(x, changed, strict=True):
        padded = torch.zeros(channels, height + 2 * BORDER, width + 2 * BORDER)
        padded[:, BORDER:-BORDER, BORDER:-BORDER] = image
        cuts = {
            (down, right): padded[:, down : down + height, right : right + width]
            for down in range(2 * BORDER + 1)
            for right in range(2 * BORDER + 1)
        }
        found = [
            (*at, mirrored)
            for at, cut in cuts.items()
            for mirrored in (False, True)
            if torch.equal(made, cut.flip(2) if mirrored else cut)
        ]
        assert found
        kinds.add(found[0])
    assert len({down for down, *_ in kinds}) == len({right for _, right, _ in kinds}) == 2 * BORDER + 1
    mirrored = sum(kind[2] for kind in kinds)
    assert 0.3 < mirrored / len(kinds) < 0.7
