"""Networks with a context: a few numbers that each task has for itself, while it shares everything else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ContextMLP(nn.Module):
    """Perceptron whose input has the context behind it: [N, inputs] → [N, outputs] (Zintgraf et al. 2019, section 3.1).

    `context` is the parameter that `fastmeta.CAVIA` adapts.

    Args:
        inputs, outputs: features of a sample and of a prediction.
        context: how many numbers a task has.
        hidden: widths of the layers between, with ReLU behind each.
    """

    def __init__(
        self, inputs: int = 1, outputs: int = 1, *, context: int = 5, hidden: Sequence[int] = (40, 40)
    ) -> None:
        super().__init__()
        self.context = nn.Parameter(torch.zeros(context))
        layers: list[nn.Module] = []
        features = inputs + context
        for width in hidden:
            layers += [nn.Linear(features, width), nn.ReLU()]
            features = width
        self.layers = nn.Sequential(*layers, nn.Linear(features, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, inputs] → [N, outputs]."""
        return self.layers(torch.cat([x, self.context.expand(x.shape[0], -1)], 1))


class FiLM(nn.Module):
    """γ(c) ⊙ x + β(c), a number of each kind a channel, linear in the context c (Perez et al. 2018).

    Args:
        context: numbers of c.
        channels: of x.
    """

    def __init__(self, context: int, channels: int) -> None:
        super().__init__()
        self.map = nn.Linear(context, 2 * channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [N, channels, H, W], context [C]."""
        scale, shift = self.map(context).view(2, -1, 1, 1).unbind(0)
        return scale * x + shift


class FilmConv4(nn.Module):
    """Four blocks of 3×3 convolution, batch norm, 2×2 max-pooling, FiLM where asked for, and ReLU; then a linear layer.

    The classifier of CAVIA, in the order of its authors' code: images [N, *shape] → logits [N, ways]. `context` is the
    parameter that `fastmeta.CAVIA` adapts. Batch norm keeps no running statistics.

    Args:
        ways: classes.
        channels: filters of each convolution.
        context: how many numbers a task has.
        film_after: the blocks, of 1 to 4, that a FiLM layer is in.
        shape: (channels, H, W) of the images, each side at least 16.
    """

    def __init__(
        self, ways: int = 5, *, channels: int = 32, context: int = 100, film_after: Sequence[int] = (3,),
        shape: tuple[int, int, int] = (3, 84, 84),
    ) -> None:  # fmt: skip
        super().__init__()
        if not set(film_after) <= {1, 2, 3, 4} or not film_after:
            raise ValueError(f"film_after must name at least one of the blocks 1 to 4, got {film_after!r}")
        self.context = nn.Parameter(torch.zeros(context))
        features = (shape[0], channels, channels, channels)
        self.convs = nn.ModuleList(nn.Conv2d(inputs, channels, 3, padding=1) for inputs in features)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels, track_running_stats=False) for _ in features)
        self.pool = nn.MaxPool2d(2)
        self.films = nn.ModuleDict({str(block): FiLM(context, channels) for block in sorted(set(film_after))})
        self.head = nn.Linear(channels * (shape[1] // 16) * (shape[2] // 16), ways)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, *shape] → [N, ways]."""
        for block, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), 1):
            x = self.pool(norm(conv(x)))
            if str(block) in self.films:
                x = self.films[str(block)](x, self.context)
            x = torch.relu(x)
        return self.head(x.flatten(1))
