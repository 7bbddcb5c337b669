"""Perceptrons for the kernels: options and sizes at which those of the loop and of single layers are held to truth."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from kernel_runs import DEVICE
from meta_steps import classification, mlp, regression
from torch import nn

import fastmeta


class Shape(NamedTuple):
    """A classification by perceptrons: widths of the layers, tasks, samples of each, inner steps."""

    widths: tuple[int, ...]
    tasks: int
    support: int
    query: int
    steps: int = 2

    def batch(self):
        return classification(
            self.widths[0], tasks=self.tasks, support=self.support, query=self.query, classes=self.widths[-1]
        )

    def options(self):
        return {"inner_steps": self.steps, "inner_loss": F.cross_entropy}


CASES = {
    "sinusoid": ((1, 40, 40, 1), nn.ReLU, {}),
    "first-order": ((1, 16, 1), nn.Tanh, {"algorithm": fastmeta.FOMAML, "inner_steps": 3}),
    "reptile": ((1, 16, 1), nn.Tanh, {"algorithm": fastmeta.Reptile, "inner_steps": 3}),
    "no-steps": ((1, 16, 1), nn.Tanh, {"inner_steps": 0}),
    "momentum": ((3, 9, 2), nn.GELU, {"inner_optimizer": fastmeta.SGD(lr=0.1, momentum=0.9), "inner_steps": 3}),
    "nesterov": (
        (3, 9, 2), nn.SiLU,
        {"inner_optimizer": fastmeta.SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1), "inner_steps": 3},
    ),
    "weight-decay": ((3, 9, 2), nn.Softplus, {"inner_optimizer": fastmeta.SGD(lr=0.1, weight_decay=0.1)}),
    "adam": ((3, 9, 2), nn.Tanh, {"inner_optimizer": fastmeta.Adam(lr=0.01), "inner_steps": 3}),
    "batches": ((3, 9, 2), nn.Tanh, {"inner_batch_size": 3, "inner_steps": 4}),
    "slices": ((3, 9, 2), nn.Tanh, {"task_chunk": 2}),
    "own-outer-loss": ((3, 9, 2), nn.Tanh, {"outer_loss": lambda y, t: (y - t).abs().mean()}),
    "leaky-relu": ((3, 9, 2), lambda: nn.LeakyReLU(0.2), {}),
    "sigmoid": ((3, 9, 2), nn.Sigmoid, {}),
    "gelu-tanh": ((3, 9, 2), lambda: nn.GELU("tanh"), {}),
}  # fmt: skip
LAYER_OPTIONS = (
    "sinusoid",
    "first-order",
    "reptile",
    "no-steps",
    "nesterov",
    "adam",
    "batches",
    "slices",
    "own-outer-loss",
)
"""Those that are run layer by layer too."""

LOOP_SHAPES = {
    "one sample of width 1": Shape((1, 1), tasks=1, support=1, query=1),
    "127 wide": Shape((127, 127, 2), tasks=1, support=3, query=5),
    "128 wide, 128 samples": Shape((128, 128, 5), tasks=1, support=128, query=17),
    "eight layers": Shape((2, 5, 6, 7, 8, 9, 10, 11, 3), tasks=2, support=4, query=3),
    "257 tasks": Shape((2, 3), tasks=257, support=2, query=1, steps=1),
    "20 classes": Shape((6, 40, 20), tasks=3, support=20, query=7),
}

LAYER_SHAPES = {
    "129 wide": Shape((129, 130, 2), tasks=1, support=3, query=5),
    "one sample of width 1": Shape((1, 1), tasks=1, support=1, query=1),
    "more samples than a tile": Shape((3, 127, 128, 40, 20), tasks=1, support=130, query=257),
    "eleven layers": Shape((2, *[7] * 10, 5), tasks=2, support=4, query=3),
    "37 tasks": Shape((2, 3), tasks=37, support=2, query=1, steps=1),
    "300 classes": Shape((6, 300), tasks=2, support=5, query=7),
}


def learner_of(backend="triton", **options):
    model = mlp(2, 9, 1).to(DEVICE, torch.float32)
    settings = {"inner_loss": F.mse_loss, "inner_optimizer": fastmeta.SGD(lr=0.1), "inner_steps": 2, "backend": backend}
    return fastmeta.MAML(model, **(settings | options))


def float_batch(**sizes):
    return [x.to(DEVICE) for x in regression(dtype=torch.float32, **sizes)]
