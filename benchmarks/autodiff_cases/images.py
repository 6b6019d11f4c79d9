"""Functions of pictures and sequences of channels: pooling, resizing, padding, sampling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from autodiff_cases.case import functions


def moved(size: int, h: Tensor) -> Tensor:
    """A grid of places in a picture of that size, none of them at a pixel or at the edge."""
    return (
        0.37 * F.affine_grid(torch.eye(2, 3).expand(len(h), 2, 3), (len(h), 1, size, size), align_corners=False)
        + 0.1 * h.sin()[:, 0, :size, :size, None]
    )


IMAGES = functions(
    (2, 4, 4),
    {
        "max_pool1d": lambda h: F.max_pool1d(h[:, 0], 2),
        "max_pool2d": lambda h: F.max_pool2d(h, 2),
        "max_pool2d, overlapping": lambda h: F.max_pool2d(h, 3, 1, 1),
        "max_pool2d, dilated": lambda h: F.max_pool2d(h, 2, 1, dilation=2),
        "max_pool3d": lambda h: F.max_pool3d(h[:, None], 2),
        "max_unpool1d": lambda h: F.max_unpool1d(*F.max_pool1d(h[:, 0], 2, return_indices=True), 2),
        "max_unpool2d": lambda h: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), 2),
        "max_unpool3d": lambda h: F.max_unpool3d(*F.max_pool3d(h[:, None], 2, return_indices=True), 2),
        "avg_pool1d": lambda h: F.avg_pool1d(h[:, 0], 2),
        "avg_pool2d": lambda h: F.avg_pool2d(h, 3, 2, 1),
        "avg_pool3d": lambda h: F.avg_pool3d(h[:, None], 2),
        "adaptive_avg_pool1d": lambda h: F.adaptive_avg_pool1d(h[:, 0], 4),
        "adaptive_avg_pool2d": lambda h: F.adaptive_avg_pool2d(h, (3, 4)),
        "adaptive_avg_pool2d to 1": lambda h: F.adaptive_avg_pool2d(h, 1),
        "adaptive_avg_pool3d": lambda h: F.adaptive_avg_pool3d(h[:, None], (1, 3, 4)),
        "adaptive_max_pool1d": lambda h: F.adaptive_max_pool1d(h[:, 0], 4),
        "adaptive_max_pool2d": lambda h: F.adaptive_max_pool2d(h, (3, 4)),
        "adaptive_max_pool3d": lambda h: F.adaptive_max_pool3d(h[:, None], (1, 3, 4)),
        "lp_pool1d": lambda h: F.lp_pool1d(h[:, 0] ** 2, 3, 2),
        "lp_pool2d": lambda h: F.lp_pool2d(h**2, 2, 2),
        "lp_pool3d": lambda h: F.lp_pool3d(h[:, None] ** 2, 2, 2),
        "fractional_max_pool2d": lambda h: F.fractional_max_pool2d(
            h, 2, (2, 2), _random_samples=torch.full((len(h), 2, 2), 0.4)
        ),
        "fractional_max_pool3d": lambda h: F.fractional_max_pool3d(
            h.view(-1, 1, 4, 2, 4), (2, 1, 2), (2, 1, 2), _random_samples=torch.full((len(h), 1, 3), 0.4)
        ),
        "unfold": lambda h: F.unfold(h, 2, stride=2),
        "fold": lambda h: F.fold(h.reshape(-1, 8, 4), (3, 3), 2),
        "pixel_shuffle": lambda h: F.pixel_shuffle(h.view(-1, 8, 2, 2), 2),
        "pixel_unshuffle": lambda h: F.pixel_unshuffle(h, 2),
        "channel_shuffle": lambda h: F.channel_shuffle(h.view(-1, 4, 2, 4), 2),
        "interpolate, nearest": lambda h: F.interpolate(h[:, 0], scale_factor=2),
        "interpolate, nearest-exact": lambda h: F.interpolate(h, (5, 3), mode="nearest-exact"),
        "interpolate, linear": lambda h: F.interpolate(h[:, 0], 9, mode="linear"),
        "interpolate, bilinear": lambda h: F.interpolate(h, (5, 3), mode="bilinear"),
        "interpolate, bilinear, corners": lambda h: F.interpolate(h, (5, 3), mode="bilinear", align_corners=True),
        "interpolate, bilinear, antialias": lambda h: F.interpolate(h, (3, 2), mode="bilinear", antialias=True),
        "interpolate, bicubic": lambda h: F.interpolate(h, (5, 3), mode="bicubic"),
        "interpolate, bicubic, antialias": lambda h: F.interpolate(h, (3, 2), mode="bicubic", antialias=True),
        "interpolate, trilinear": lambda h: F.interpolate(h[:, None], (3, 5, 3), mode="trilinear"),
        "interpolate, nearest, 3d": lambda h: F.interpolate(h[:, None], (3, 5, 3)),
        "interpolate, area": lambda h: F.interpolate(h, (2, 3), mode="area"),
        "grid_sample": lambda h: F.grid_sample(h, moved(3, h), align_corners=False),
        "grid_sample, nearest": lambda h: F.grid_sample(h, moved(3, h), mode="nearest", align_corners=False),
        "grid_sample, bicubic": lambda h: F.grid_sample(h, moved(3, h), mode="bicubic", align_corners=False),
        "grid_sample, border": lambda h: F.grid_sample(h, 3 * moved(3, h), padding_mode="border", align_corners=True),
        "grid_sample, reflection": lambda h: F.grid_sample(
            h, 3 * moved(3, h), padding_mode="reflection", align_corners=True
        ),
        "grid_sample, 3d": lambda h: F.grid_sample(
            h[:, None], F.pad(moved(3, h), (0, 1))[:, None] + 0.1, align_corners=False
        ),
        "affine_grid": lambda h: F.affine_grid(h[:, 0, :2, :3], (len(h), 1, 3, 4), align_corners=False),
        "pad, reflect, 2d": lambda h: F.pad(h, (1, 2, 1, 0), "reflect"),
        "pad, replicate, 2d": lambda h: F.pad(h, (1, 2, 1, 0), "replicate"),
        "pad, circular, 2d": lambda h: F.pad(h, (1, 2, 1, 0), "circular"),
        "pad, reflect, 3d": lambda h: F.pad(h[:, None], (1, 2, 1, 0, 1, 1), "reflect"),
        "pad, replicate, 3d": lambda h: F.pad(h[:, None], (1, 2, 1, 0, 1, 1), "replicate"),
        "conv2d of a sample's own": lambda h: torch.cat([F.conv2d(one[None], one[None, :, :2, :2]) for one in h]),
    },
)
