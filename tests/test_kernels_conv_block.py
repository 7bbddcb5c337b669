"""Convolutional networks on Triton kernels through the public API, in interpreter mode, against float64 truth."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kernel_runs import (
    assert_as_good_as_torch,
    check_golden,
    needs_kernels,
)
from meta_steps import classification
from torch import nn

import fastmeta

pytestmark = needs_kernels


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
    return net(*conv(2, 5, pool=nn.MaxPool2d(2)), *conv(5, 4), image=(2, 6, 7))


def batch_of(*image, tasks=2, support=4, query=3, classes=3, **options):
    return classification(*image, tasks=tasks, support=support, query=query, classes=classes, **options)


OPTIONS = {
    "maml": {},
    "recompute": {"memory": "recompute"},
    "first order": {"algorithm": fastmeta.FOMAML},
    "reptile": {"algorithm": fastmeta.Reptile},
    "nesterov": {"inner_optimizer": fastmeta.SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1)},
    "adam": {"inner_optimizer": fastmeta.Adam(lr=0.01)},
    "batches": {"inner_batch_size": 3},
    "slices": {"task_chunk": 1},
    "own outer loss": {"outer_loss": lambda y, t: F.cross_entropy(2 * y, t)},
}


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name):
    assert_as_good_as_torch(small(), batch_of(2, 6, 7), inner_loss=F.cross_entropy, **OPTIONS[name])


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
    "16 channels": ((16, 5, 5), 3, lambda: [*conv(16, 32, pool=nn.MaxPool2d(2)), *conv(32, 16)]),
    "more rows than a tile": ((1, 13, 13), 4, lambda: [*conv(1, 4, pool=nn.MaxPool2d(2))]),
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


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    image, support, layers = SHAPES[name]
    model = net(*layers(), image=image)
    assert_as_good_as_torch(model, batch_of(*image, support=support, tasks=2), inner_loss=F.cross_entropy)


def test_gradients_of_task_losses_and_learners():
    """Rows of parameters leave in the module's own order."""
    batch = [x.float() if x.is_floating_point() else x for x in batch_of(2, 6, 7)]
    module = small().float()
    options = {"inner_loss": F.cross_entropy, "inner_optimizer": fastmeta.SGD(lr=0.1), "inner_steps": 2}

    def gradients(backend):
        learner = fastmeta.MAML(module, backend=backend, **options)
        learner.zero_grad()
        (learner(*batch).task_losses * torch.tensor([0.3, -1.0])).sum().backward()
        first = torch.cat([p.grad.flatten() for p in module.parameters()])
        learner.zero_grad()
        (learner.adapt(*batch[:2])(batch[2]) ** 2).sum().backward()
        return first, torch.cat([p.grad.flatten() for p in module.parameters()])

    for got, want in zip(gradients("triton"), gradients("torch"), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.golden("conv4_*")
def test_golden(golden):
    check_golden(golden)
