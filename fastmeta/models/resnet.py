"""ResNet-18 for small images (He, Zhang, Ren, Sun 2016, section 4.2: a 3 × 3 stem and no pooling before the blocks)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class _Block(nn.Module):
    """Two 3 × 3 convolutions and a shortcut; batch norm normalises every batch by itself."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs, track_running_stats=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs, track_running_stats=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs, track_running_stats=False))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet18(ways: int, *, channels: int = 64, inputs: int = 3) -> nn.Sequential:
    """Images [N, inputs, H, W] → logits [N, ways].

    Args:
        ways: classes.
        channels: filters of the stem and the first blocks, doubled three times; the paper's ImageNet network has 64.
        inputs: channels of the images.
    """
    stem = [nn.Conv2d(inputs, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels, track_running_stats=False)]
    blocks, width = [], channels
    for stage in range(4):
        outputs = channels * 2**stage
        blocks += [_Block(width, outputs, 1 if stage == 0 else 2), _Block(outputs, outputs, 1)]
        width = outputs
    return nn.Sequential(*stem, nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, ways))
