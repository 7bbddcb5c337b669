"""Random views of images, all images of a meta-batch at once.

Libraries of augmentations draw one set of numbers a batch or use the global generator; here every image has its own,
from the generator that makes the episode, in one `grid_sample`.
"""

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
_COLOUR = 0.4
"""Of the logarithm of a colour's gain, and twice the offset."""


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


def warp(images: Tensor, maps: Tensor, *, mirrored: bool = False) -> Tensor:
    """Resample images [..., C, H, W] through the maps [..., 3, 3], bilinearly.

    Outside lies blank paper, or the mirrored image.
    """
    flat = images.flatten(0, -4)
    grid = F.affine_grid(maps.flatten(0, -3)[:, :2], list(flat.shape), align_corners=False)
    padding = "reflection" if mirrored else "zeros"
    return F.grid_sample(flat, grid, padding_mode=padding, align_corners=False).view_as(images)


def views(x: Tensor, *, strength: float, generator: torch.Generator, maps: Tensor | None = None) -> Tensor:
    """Another view of every image x [..., C, H, W] in [0, 1].

    Of a drawing (one channel): an affine distortion with blank paper around. Of a photograph (three channels): an
    affine distortion with mirrored borders, its mirror image half of the time, another exposure and tint.

    Args:
        x: the images; unchanged.
        strength: 0 leaves images as they are, 1 is usual (`random_affine`; gain and offset of a colour ±0.2).
        generator: draws on the device of x.
        maps: affine maps [..., 3, 3] to apply first, such as one that several images share.
    """
    shape, photographs = x.shape[:-3], x.shape[-3] == 3
    maps = torch.eye(3, device=x.device).expand(*shape, 3, 3) if maps is None else maps.expand(*shape, 3, 3)
    if strength:
        maps = maps @ random_affine(shape, strength=strength, generator=generator)
        if photographs:
            maps = maps @ _random_mirror(shape, generator)
    x = warp(x, maps, mirrored=photographs)
    return _recoloured(x, strength, generator) if photographs and strength else x


def _random_mirror(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    side = torch.randint(2, shape, generator=generator, device=generator.device) * 2.0 - 1.0
    one = torch.ones_like(side)
    return torch.diag_embed(torch.stack([side, one, one], dim=-1))


def _recoloured(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """A gain for each colour, half of it shared by the three, and an offset that they share."""
    u = torch.rand(*x.shape[:-3], 5, generator=generator, device=x.device).mul_(2).sub_(1).mul_(strength * _COLOUR)
    gain = (u[..., :3] + u[..., 3:4]).mul_(0.5).exp_()
    return x.mul(gain[..., None, None]).add_(0.5 * u[..., 4, None, None, None]).clamp_(0, 1)
