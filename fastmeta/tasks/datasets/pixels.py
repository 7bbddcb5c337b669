"""Pixels and the numbers that networks see."""

from __future__ import annotations

import torch
from torch import Tensor


def floats(pixels: Tensor, device: torch.device | None = None) -> Tensor:
    """uint8 pixels of 0 to 255, of any shape, as float32 in [0, 1], on `device` (None: where they lie)."""
    return pixels.to(pixels.device if device is None else device, torch.float32).div_(255)
