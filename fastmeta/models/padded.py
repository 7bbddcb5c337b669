"""Conv4 for tasks of different sizes: what a sampler put in to fill a batch stays out of batch norm's statistics."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PaddedBatchNorm2d(nn.Module):
    """Batch norm over the real samples of a batch: x [N, channels, H, W] and which samples are real, [N] of 0 and 1.

    Of real samples the output is what `nn.BatchNorm2d(channels, track_running_stats=False)` makes of them alone; the
    mean and the variance (biased) are over these. What it makes of the others means nothing.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """Normalised x."""
        share = (real / (real.sum() * x.shape[2] * x.shape[3])).view(-1, 1, 1, 1)
        mean = (x * share).sum((0, 2, 3), keepdim=True)
        centred = x - mean
        variance = (centred.square() * share).sum((0, 2, 3), keepdim=True)
        scale = (variance + self.eps).rsqrt() * self.weight.view(1, -1, 1, 1)
        return centred * scale + self.bias.view(1, -1, 1, 1)


class PaddedConv4(nn.Module):
    """`conv4` whose batch norm leaves padding out: images [N, *shape] → logits [N, ways].

    A sample is padding where its first pixel is below zero (`fastmeta.tasks.VariedEpisodes` pads so; images lie in
    [0, 1]). Of the real samples it computes exactly what `conv4(ways, channels=..., shape=...)` with the same
    parameters computes of them alone.

    Args:
        ways: classes.
        channels: filters of each convolution.
        shape: (channels, H, W) of the images, each side at least 16.
    """

    def __init__(self, ways: int, *, channels: int = 64, shape: tuple[int, ...] = (1, 28, 28)) -> None:
        super().__init__()
        inputs: Iterable[int] = (shape[0], channels, channels, channels)
        self.convolutions = nn.ModuleList(nn.Conv2d(c, channels, 3, 2, 1, bias=False) for c in inputs)
        self.norms = nn.ModuleList(PaddedBatchNorm2d(channels) for _ in range(4))
        self.head = nn.Linear(channels, ways)

    def forward(self, x: Tensor) -> Tensor:
        """Logits; those of padding mean nothing."""
        real = (x[:, 0, 0, 0] >= 0).to(x.dtype)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(norm(convolution(x), real))
        return self.head(x.mean((2, 3)))
