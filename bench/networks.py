"""The networks and losses of the workloads, by the names that `workloads.py` gives them.

All are `nn.Sequential`s of well-known layers, so that a peer outside PyTorch can read them layer by layer. Their
convolutions have a bias, which torchbench's and learn2learn's have and `fastmeta.models.conv4` leaves out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta.models import siren

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}
"""Means over the samples of one task."""


def sinusoid_mlp(width: int) -> nn.Sequential:
    """1-width-width-1 with ReLU; 40 wide it is `fastmeta.models.sinusoid_mlp` (Finn et al. 2017, section 5.1)."""
    return nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))


def conv4(*, in_channels: int, channels: int, image: int, ways: int) -> nn.Sequential:
    """Four blocks of 3×3 convolution, batch norm, ReLU and 2×2 max-pool, then a linear head."""
    side = image // 16
    blocks = [_block(c, channels, padding=1) for c in (in_channels, channels, channels, channels)]
    return nn.Sequential(*(m for block in blocks for m in block), nn.Flatten(), nn.Linear(channels * side**2, ways))


def conv3(channels: int) -> nn.Sequential:
    """Three blocks without padding and a head of 5 on 28×28: torchbench's `functorch_maml_omniglot`."""
    blocks = [_block(c, channels, padding=0) for c in (1, channels, channels)]
    return nn.Sequential(*(m for block in blocks for m in block), nn.Flatten(), nn.Linear(channels, 5))


def _block(inputs: int, outputs: int, *, padding: int) -> list[nn.Module]:
    norm = nn.BatchNorm2d(outputs, track_running_stats=False)
    return [nn.Conv2d(inputs, outputs, 3, padding=padding), norm, nn.ReLU(), nn.MaxPool2d(2)]


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def mobilenet(channels: int, *, ways: int) -> nn.Sequential:
    """MobileNetV2 (Sandler et al. 2018) for small images: a stem, five inverted residuals, a wide end."""
    blocks = [_stage(3, channels, kernel=3, stride=2)]
    inputs = channels
    for factor, outputs, stride in ((1, channels, 1), (6, channels, 1), (6, 2 * channels, 2), (6, 2 * channels, 1),
                                    (6, 4 * channels, 2)):  # fmt: skip
        blocks.append(_inverted_residual(inputs, outputs, factor=factor, stride=stride))
        inputs = outputs
    blocks.append(_stage(inputs, 8 * channels, kernel=1))
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * channels, ways))


def _inverted_residual(inputs: int, outputs: int, *, factor: int, stride: int) -> nn.Module:
    """Wider by `factor`, a convolution of every channel by itself, and narrow again without an activation."""
    hidden = factor * inputs
    widen = [_stage(inputs, hidden, kernel=1)] if factor > 1 else []
    depthwise = _stage(hidden, hidden, kernel=3, stride=stride, groups=hidden)
    block = nn.Sequential(*widen, depthwise, _stage(hidden, outputs, kernel=1)[:2])
    return Residual(block) if stride == 1 and inputs == outputs else block


def _stage(inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    norm = nn.BatchNorm2d(outputs, track_running_stats=False)
    return nn.Sequential(convolution, norm, nn.ReLU6(inplace=True))


NETWORKS: dict[str, Callable[[int], nn.Sequential]] = {
    "sinusoid-mlp": sinusoid_mlp,
    "conv4-omniglot-5": lambda channels: conv4(in_channels=1, channels=channels, image=28, ways=5),
    "conv4-omniglot-20": lambda channels: conv4(in_channels=1, channels=channels, image=28, ways=20),
    "conv4-mini": lambda channels: conv4(in_channels=3, channels=channels, image=84, ways=5),
    "conv3-torchbench": conv3,
    "mobilenet": lambda channels: mobilenet(channels, ways=5),
    "siren": lambda width: siren(width=width),  # 2-width-width-width-3 with sin(30 x) (Sitzmann et al. 2020)
}
"""Builds a network of a width (hidden units or filters) in float32, under the caller's random state."""


def build(network: str, width: int, seed: int) -> nn.Sequential:
    """A network with the weights that `seed` gives; the caller's random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[network](width)
