"""What the tests of the outer loop share: small learners, runs, and task families that misbehave."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import fastmeta
from fastmeta.tasks import Episodes, Sinusoid
from fastmeta.train.run_config import TrainConfig
from fastmeta.train.trainer import Trainer

PROGRAM = Path(__file__).with_name("kill_and_resume.py")


def learner(kind: type = fastmeta.MAML, *, dtype: torch.dtype = torch.float32, backend: str = "auto"):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(1, 13), nn.Tanh(), nn.Linear(13, 1)).to(dtype)
    optimizer = fastmeta.SGD(lr=0.05)
    return kind(model, inner_loss=F.mse_loss, inner_optimizer=optimizer, inner_steps=2, backend=backend)


class LearnedScale(fastmeta.MAML):
    """MAML with a parameter and a buffer of its own: its loss is `scale` times MAML's."""

    def __init__(self, model: nn.Module, **options) -> None:
        super().__init__(model, **options)
        self.scale = nn.Parameter(torch.tensor(0.1))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, *episodes):
        self.calls += 1
        out = super().forward(*episodes)
        return type(out)(out.loss * self.scale, out.task_losses, out.outputs, out.finite)


def trainer(folder: Path, *, algorithm=None, family=None, settings=None, time_limit=None, **changes) -> Trainer:
    config = replace(TrainConfig(iterations=30, meta_batch=4, outer_lr=0.01), **changes)
    return Trainer(
        algorithm or learner(),
        family or Sinusoid(shots=5, queries=7),
        config=config,
        folder=folder,
        settings=settings,
        time_limit=time_limit,
        checkpoint_seconds=1e9,
    )


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


class Interrupted(Sinusoid):
    """Sends this process a signal while the n-th meta-batch is sampled."""

    def __init__(self, number: int, at: int) -> None:
        super().__init__(shots=5, queries=7)
        self.number, self.at, self.count = number, at, 0

    def sample(self, tasks, generator):
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), self.number)
        return super().sample(tasks, generator)


class Fixed(Sinusoid):
    """The same tasks every time."""

    def sample(self, tasks, generator):
        return super().sample(tasks, torch.Generator(generator.device).manual_seed(0))


class Broken(Sinusoid):
    """Yields NaN inputs from the n-th meta-batch on."""

    def __init__(self, at: int) -> None:
        super().__init__(shots=5, queries=7)
        self.at, self.count = at, 0

    def sample(self, tasks, generator):
        self.count += 1
        episodes = super().sample(tasks, generator)
        return Episodes(*(x * math.nan for x in episodes)) if self.count >= self.at else episodes
