"""Convolutional networks for the kernels: options and shapes at which they are held to truth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from meta_steps import classification
from torch import nn

import fastmeta


def norm(channels):
    return nn.BatchNorm2d(channels, track_running_stats=False)


def conv(inputs, outputs, kernel=3, *, activation=nn.Tanh, pool=None, **options):
    """A block; without kinks, so that the truth is well conditioned."""
    parts = [nn.Conv2d(inputs, outputs, kernel, **({"padding": kernel // 2} | options)), norm(outputs), activation()]
    return [*parts, *([pool] if pool else [])]


def net(*layers, image, classes=3):
    """Layers, flattened, and a linear head of the right width; batch norms scaled so that γ and β matter."""
    body = nn.Sequential(*layers, nn.Flatten())
    features = body(torch.zeros(2, *image)).shape[1]
    model = nn.Sequential(*body, nn.Linear(features, classes)).double()
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d) and layer.affine:
            nn.init.uniform_(layer.weight, -1.5, 1.5)
            nn.init.normal_(layer.bias)
    return model


def small():
    """Two blocks, of which the second sees inputs that move."""
    return net(*conv(2, 5, pool=nn.MaxPool2d(2)), *conv(5, 4), image=(2, 6, 5))


def smallest():
    return net(*conv(2, 5, pool=nn.MaxPool2d(2)), image=(2, 6, 5))


def batch_of(*image, tasks=2, support=4, query=3, classes=3, **options):
    return classification(*image, tasks=tasks, support=support, query=query, classes=classes, **options)


OPTIONS = {
    "maml": (small, {}),
    "recompute": (smallest, {"memory": "recompute"}),
    "first order": (smallest, {"algorithm": fastmeta.FOMAML}),
    "reptile": (smallest, {"algorithm": fastmeta.Reptile}),
    "nesterov": (
        smallest, {"inner_optimizer": fastmeta.SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1)}
    ),
    "adam": (smallest, {"inner_optimizer": fastmeta.Adam(lr=0.01)}),
    "batches": (smallest, {"inner_batch_size": 3}),
    "slices": (smallest, {"task_chunk": 1}),
    "own outer loss": (smallest, {"outer_loss": lambda y, t: F.cross_entropy(2 * y, t), "inner_steps": 1}),
    "support's statistics": (small, {"bn_statistics": "support", "inner_steps": 1}),
    "support's statistics, own outer loss": (
        smallest, {"bn_statistics": "support", "outer_loss": lambda y, t: F.cross_entropy(2 * y, t), "inner_steps": 1}
    ),
    "support's statistics, first order": (smallest, {"bn_statistics": "support", "algorithm": fastmeta.FOMAML}),
}  # fmt: skip


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(3 * x)


SHAPES = {
    "21×21, 7 channels, 5 images": ((3, 21, 21), 5, lambda: [*conv(3, 7, stride=2, pool=nn.MaxPool2d(2))]),
    "one image": ((2, 7, 5), 1, lambda: [*conv(2, 4, pool=nn.MaxPool2d(2))]),
    "stride 2, odd sides": ((1, 9, 7), 4, lambda: [*conv(1, 4, stride=2), *conv(4, 5, stride=2)]),
    "valid padding": ((2, 9, 8), 3, lambda: [*conv(2, 4, padding=0, pool=nn.MaxPool2d(2)), *conv(4, 3, padding=0)]),
    "1×1 and 5×5": ((2, 6, 5), 3, lambda: [*conv(2, 4, 5), *conv(4, 5, 1)]),
    "1×1 in strides": ((2, 6, 5), 3, lambda: [*conv(2, 4, 3), *conv(4, 5, 1, stride=2)]),
    "16 channels": ((16, 5, 5), 2, lambda: [*conv(16, 32, pool=nn.MaxPool2d(2)), *conv(32, 16)]),
    "more rows than a tile": ((1, 13, 11), 2, lambda: [*conv(1, 4, pool=nn.MaxPool2d(2))]),
    "no norm, bias": ((2, 6, 5), 3, lambda: [
        nn.Conv2d(2, 5, 3), nn.SiLU(), nn.MaxPool2d(2), nn.Conv2d(5, 4, 1), nn.Tanh()]),
    "no norm, no activation": ((2, 5, 5), 3, lambda: [nn.Conv2d(2, 3, 3, bias=False), nn.Conv2d(3, 5, 3, stride=2)]),
    "norm without parameters": ((2, 5, 5), 3, lambda: [
        nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5, affine=False, track_running_stats=False), nn.Sigmoid()]),
    "average pool": ((2, 7, 6), 3, lambda: [*conv(2, 5, activation=nn.GELU, pool=nn.AvgPool2d(2)), *conv(5, 3)]),
    "average pool without a norm": ((2, 6, 7), 3, lambda: [nn.Conv2d(2, 5, 3), nn.Softplus(), nn.AvgPool2d(2)]),
    "falling and rising activation": ((2, 6, 7), 3, lambda: [*conv(2, 5, activation=Sine, pool=nn.MaxPool2d(2))]),
    "global average": ((2, 6, 5), 3, lambda: [*conv(2, 4), nn.AdaptiveAvgPool2d(1)]),
}  # fmt: skip
