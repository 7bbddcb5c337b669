"""A generator of small images from vectors: MetaGAN's."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ImageGenerator(nn.Module):
    """Vectors [N, inputs] → images [N, *shape] with values in (0, 1): a linear layer and two transposed convolutions.

    Nothing in it normalises by its batch, so that a task's images do not depend on the other tasks.

    Args:
        inputs: width of a vector: for MetaGAN noise and the task's code together, 28 · 28 of a mean image.
        channels: behind the linear layer, at a quarter of the side; half as many at half of it.
        shape: (channels, H, W) of the images; H and W are multiples of 4.

    Raises:
        ValueError: another shape.
    """

    def __init__(self, inputs: int, *, channels: int = 32, shape: tuple[int, int, int] = (1, 28, 28)) -> None:
        super().__init__()
        if shape[1] % 4 or shape[2] % 4:
            raise ValueError(f"shape must have a height and a width that are multiples of 4, got {shape}")
        self.start = (channels, shape[1] // 4, shape[2] // 4)
        self.linear = nn.Linear(inputs, channels * self.start[1] * self.start[2])
        self.layers = nn.Sequential(
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(channels, max(1, channels // 2), 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(max(1, channels // 2), shape[0], 4, stride=2, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.layers(self.linear(x).unflatten(1, self.start)))
