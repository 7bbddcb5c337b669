"""Images of one data set as a network for another takes them."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .datasets.images import Images

_LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue (ITU-R BT.601), as Pillow makes grey of colour."""


def matched(images: Images, shape: tuple[int, int, int]) -> Images:
    """The images in another shape: grey as three equal channels, colour as its luminance, resampled with antialiasing.

    Args:
        images: of any size, in one or three channels.
        shape: (channels, H, W) that the network takes.

    Raises:
        ValueError: channels other than one or three.
    """
    channels, *size = shape
    if channels not in (1, 3):
        raise ValueError(f"shape must have 1 or 3 channels, got {channels}")
    parts = []
    for part in images.pixels.split(1000):  # bounds memory: floats are four times as large
        x = part
        if images.shape[0] == 3 and channels == 1:
            x = torch.einsum("nchw,c->nhw", x.float(), torch.tensor(_LUMINANCE, device=x.device)).unsqueeze(1)
        if list(x.shape[2:]) != size:
            x = F.interpolate(x.float(), size, mode="bilinear", antialias=True)
        if x.is_floating_point():
            x = x.round_().clamp_(0, 255).byte()
        parts.append(x.expand(-1, channels, -1, -1))
    return Images(torch.cat(parts), images.labels, images.title)


def difference(images: Images, shape: tuple[int, int, int]) -> str:
    """What `matched` changes, for a person; empty where that is nothing."""
    changes = []
    if images.shape[0] != shape[0]:
        changes.append("colour to grey (luminance)" if shape[0] == 1 else "grey to three equal channels")
    if images.shape[1:] != shape[1:]:
        (h, w), (height, width) = images.shape[1:], shape[1:]
        changes.append(f"{h} × {w} to {height} × {width} pixels")
    return ", ".join(changes)
