"""Random affine distortions of images, all images of a meta-batch in one `grid_sample`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# At strength 1, each uniform in ± the figure: of the order of what one person's handwriting varies.
_ROTATION = math.radians(15)
_LOG_SCALE = 0.2
_SHEAR = 0.2
_TRANSLATION = 0.15
"""In half image sides: 0.15 is two pixels of 28."""


def random_affine(shape: tuple[int, ...], *, strength: float, generator: torch.Generator) -> Tensor:
    """Affine maps [*shape, 3, 3], homogeneous: rotation, scale of either axis, shear and translation.

    Args:
        shape: one map for each index.
        strength: 0 gives the identity; 1 draws uniformly from ±15°, a factor e^±0.2 for each axis, a shear
            of ±0.2 and ±2 pixels of 28.
        generator: draws on the device where the result lies.
    """
    u = torch.rand(*shape, 6, generator=generator, device=generator.device).mul_(2).sub_(1).mul_(strength)
    angle, shear = u[..., 0] * _ROTATION, u[..., 3] * _SHEAR
    sx, sy = (u[..., 1] * _LOG_SCALE).exp(), (u[..., 2] * _LOG_SCALE).exp()
    cos, sin = angle.cos(), angle.sin()
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rows = (
        (sx * cos, sy * (shear * cos - sin), u[..., 4] * _TRANSLATION),
        (sx * sin, sy * (shear * sin + cos), u[..., 5] * _TRANSLATION),
        (zero, zero, one),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def warp(images: Tensor, maps: Tensor) -> Tensor:
    """Resample images [..., 1, H, W] through the maps [..., 3, 3], bilinearly, with blank paper outside."""
    flat = images.flatten(0, -4)
    grid = F.affine_grid(maps.flatten(0, -3)[:, :2], list(flat.shape), align_corners=False)
    return F.grid_sample(flat, grid, align_corners=False).view_as(images)
