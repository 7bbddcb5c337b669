"""A program that trains once in one go, and once killed with SIGKILL over and over. Prints how often.

`python kill_and_resume.py FOLDER SEED`: checkpoints in FOLDER/whole and FOLDER/killed. The killed runs are
forked off the process that did the whole one, so that imports are done once; set to one thread, torch starts
no other.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import fastmeta
from fastmeta.tasks import Episodes, Sinusoid
from fastmeta.train.run_config import TrainConfig
from fastmeta.train.trainer import Trainer

ITERATIONS = 300


class Noisy(Sinusoid):
    """Support targets with noise from the global generator, as dropout draws its masks from it."""

    def sample(self, tasks: int, generator: torch.Generator) -> Episodes:
        episodes = super().sample(tasks, generator)
        return episodes._replace(support_y=episodes.support_y + 0.1 * torch.randn_like(episodes.support_y))


def train(folder: Path, checkpoint_seconds: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1))
    maml = fastmeta.MAML(model, inner_loss=F.mse_loss, inner_optimizer=fastmeta.SGD(lr=0.05), inner_steps=2)
    config = TrainConfig(iterations=ITERATIONS, meta_batch=3, schedule="cosine", outer_lr=0.01)
    family = Noisy(shots=5, queries=5)
    Trainer(maml, family, config=config, folder=folder, checkpoint_seconds=checkpoint_seconds).run()


def fork(folder: Path, checkpoint_seconds: float) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train(folder, checkpoint_seconds)
            status = 0
        finally:
            os._exit(status)
    return child


def main(folder: Path, seed: int) -> None:
    torch.set_num_threads(1)
    train(folder / "whole", 1e9)
    draw = random.Random(seed)
    kills = 0
    while True:
        child = fork(folder / "killed", 0.0)
        # Short lives, to hit every phase of a run; growing ones, so that a slow machine ends too.
        deadline = time.monotonic() + draw.uniform(0.0, 0.1 * 1.1**kills)
        done, status = 0, 0
        while not done and time.monotonic() < deadline:
            time.sleep(0.001)
            done, status = os.waitpid(child, os.WNOHANG)
        if not done:
            os.kill(child, signal.SIGKILL)
            done, status = os.waitpid(child, 0)
            kills += os.WIFSIGNALED(status)
        if os.WIFEXITED(status):
            break
    if status:
        sys.exit("a resumed run failed")
    sys.stdout.write(f"{kills}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
