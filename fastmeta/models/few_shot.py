"""The networks of the published few-shot experiments, as plain `nn.Sequential`s."""

from __future__ import annotations

from torch import nn


def sinusoid_mlp() -> nn.Sequential:
    """Linear 1-40-40-1 with ReLU: [N, 1] → [N, 1] (Finn, Abbeel, Levine 2017, section 5.1)."""
    return nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))


def conv4(
    ways: int,
    *,
    channels: int = 64,
    pooled: bool = False,
    mean: bool = True,
    shape: tuple[int, ...] = (1, 28, 28),
) -> nn.Sequential:
    """Four blocks of 3×3 convolution, batch norm, ReLU: images [N, *shape] → logits [N, ways].

    Args:
        ways: classes.
        channels: filters of each convolution.
        pooled: False: convolutions of stride 2 (28 → 14 → 7 → 4 → 2), as in the MAML paper's Omniglot code. True:
            stride 1 and 2×2 max-pooling (28 → 14 → 7 → 3 → 1), as in Matching Networks and Prototypical Networks;
            nearly four times the arithmetic.
        mean: without pooling, the last layer takes the mean of the last positions, as in that code; else all of them,
            which distinguishes similar characters better.
        shape: (channels, H, W) of the images, each side at least 16.

    Batch norm keeps no running statistics: a batch is always normalised by itself. The convolutions have no
    bias, which batch norm would take away again.
    """
    layers: list[nn.Module] = []
    side = list(shape[1:])
    for block in range(4):
        inputs = channels if block else shape[0]
        layers.append(nn.Conv2d(inputs, channels, 3, stride=1 if pooled else 2, padding=1, bias=False))
        layers += [nn.BatchNorm2d(channels, track_running_stats=False), nn.ReLU()]
        side = [length // 2 if pooled else (length + 1) // 2 for length in side]
        if pooled:
            layers.append(nn.MaxPool2d(2))
    flat = channels * side[0] * side[1]
    if mean and not pooled:
        layers.append(nn.AdaptiveAvgPool2d(1))
        flat = channels
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, ways))
