"""A program that trains once in one go, and once killed over and over. Prints how far the killed runs had come.

`python kill_and_resume.py FOLDER SEED`: checkpoints in FOLDER/whole and FOLDER/killed. The killed runs are forked off
the process that did the whole one, so that imports are done once; set to one thread, torch starts no other.

A run dies after so much time of its processor, wherever it is then: a busy machine changes nothing.
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
from fastmeta.train.checkpoint import load_checkpoint
from fastmeta.train.run_config import TrainConfig
from fastmeta.train.trainer import Trainer

ITERATIONS = 60
KILLS = 10
KILLERS = (signal.SIGPROF, signal.SIGALRM)
BLOCKED_S = 30
"""By the clock: once in a hundred times a fork of a process that has run torch waits for a lock that nobody holds."""


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


def fork(folder: Path, life: float) -> int:
    """The wait status of a run that goes on in `folder`. `life`: seconds of its processor, 0 for no end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for number in KILLERS:
                signal.signal(number, signal.SIG_DFL)  # which is death, at once and without a word
            signal.setitimer(signal.ITIMER_PROF, life)
            signal.alarm(BLOCKED_S)
            train(folder, 0.0)
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def killed(status: int) -> bool:
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) in KILLERS


def iterations(folder: Path) -> int:
    """How far the run of a folder has come."""
    checkpoint = folder / "checkpoint.pt"
    return load_checkpoint(checkpoint)["iteration"] if checkpoint.exists() else 0


def main(folder: Path, seed: int) -> None:
    torch.set_num_threads(1)
    train(folder / "whole", 1e9)
    start = time.process_time()
    train(folder / "timed", 0.0)
    needed = time.process_time() - start
    draw = random.Random(seed)
    for _ in range(KILLS):  # all of them together live for less than a run needs
        status = fork(folder / "killed", max(1e-3, draw.uniform(0.0, needed / KILLS)))
        if not killed(status):
            sys.exit(f"a run was to be killed, and ended with status {status}")
    while not (reached := iterations(folder / "killed")):  # all were killed while they started
        fork(folder / "killed", needed / 4)
    status = fork(folder / "killed", 0.0)
    while killed(status):
        status = fork(folder / "killed", 0.0)
    if status:
        sys.exit("a resumed run failed")
    sys.stdout.write(f"{reached}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
