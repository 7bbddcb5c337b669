"""Whole training steps and their parts: how much of a step is spent outside the engine, and how fast episodes come.

A whole step is `fastmeta.train.Trainer.run`, checkpoint at the end and log included, divided by its iterations. The
engine's part is forward and backward of the learner on a batch that stands ready; sampling and the outer optimiser are
timed by themselves. All parts run in turn.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import fastmeta
from fastmeta.models import conv4, sinusoid_mlp
from fastmeta.tasks import Characters, FewShot, Sinusoid
from fastmeta.train.run_config import TrainConfig
from fastmeta.train.trainer import Trainer

from . import device as devices
from . import environment
from .records import FORMAT, describe_error, write
from .timing import interleave

RUNS = ("sinusoid", "omniglot")
PATHS = ("eager", "compiled", "triton")
# Iterations of one timed training run: seconds, so that its one checkpoint weighs little.
ITERATIONS = {"sinusoid": 400, "omniglot": 20}
QUICK_ITERATIONS = 3


def run(
    *, runs: Iterable[str], paths: Iterable[str], device: str, rounds: int, threads: int, quick: bool, out: Path | None
) -> dict[str, Any]:
    """Measure, printing a line for each run and path."""
    torch.set_num_threads(threads)
    devices.check_device(device)
    result: dict[str, Any] = {
        "format": FORMAT,
        "environment": environment.describe(device),
        "threads": threads,
        "end to end": [],
    }
    paths = list(paths)
    for name in runs:
        for path in paths:
            iterations = QUICK_ITERATIONS if quick else ITERATIONS[name]
            row: dict[str, Any] = {"run": name, "path": path, "device": device, "iterations": iterations}
            try:
                row |= measure(name, path, device=device, iterations=iterations, rounds=rounds)
                print(f"{name:10} {path:9} {row['step ms']:9.3f} ms a step, {row['outside']:.0%} outside the engine")
            except (RuntimeError, ValueError) as error:
                row["message"] = describe_error(error)
                print(f"{name:10} {path:9} {row['message']}")
            result["end to end"].append(row)
            if out is not None:
                write(result, out)
    return result


def measure(name: str, path: str, *, device: str, iterations: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step and its parts, medians; episodes a second."""
    torch.manual_seed(0)
    family, learner, tasks = _job(name, path, device)
    generator = torch.Generator(device).manual_seed(0)
    episodes = family.sample(tasks, generator)
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3, fused=True)

    def engine() -> None:
        learner.zero_grad()
        learner(*episodes).loss.backward()

    with tempfile.TemporaryDirectory() as folder:
        parts: dict[str, Callable[[], object]] = {
            "step": lambda: _train(learner, family, tasks, iterations, folder),
            "engine": engine,
            "sampling": lambda: family.sample(tasks, generator),
            "optimiser": optimizer.step,
        }
        for part in parts.values():  # compilation, and gradients for the optimiser
            engine()
            part()
        seconds = interleave(parts, rounds=rounds, budget_s=60, wait=lambda: devices.wait(device))
    ms: dict[str, float] = {}
    for part, figures in seconds.items():
        if isinstance(figures, Exception):
            raise figures
        ms[part] = 1e3 * float(np.median(figures)) / (iterations if part == "step" else 1)
    return {
        "tasks": tasks,
        **{f"{part} ms": round(value, 4) for part, value in ms.items()},
        "outside": round(1 - ms["engine"] / ms["step"], 3),
        "episodes per second": round(1e3 * tasks / ms["sampling"]),
    }


def _job(name: str, path: str, device: str) -> tuple[Any, fastmeta.MAML, int]:
    """Family, learner and meta-batch of the presets `sinusoid` and `omniglot` of `fastmeta train`."""
    way: dict[str, Any] = {"compile": path == "compiled", "backend": "triton" if path == "triton" else "torch"}
    if name == "sinusoid":
        inner: dict[str, Any] = {"inner_optimizer": fastmeta.SGD(lr=0.01), "inner_steps": 1, "inner_loss": F.mse_loss}
        return Sinusoid(device=device), fastmeta.MAML(sinusoid_mlp().to(device), **inner, **way), 25
    family = FewShot(_drawings(), ways=5, shots=1, queries=5, rotations=True, device=device)
    inner = {"inner_optimizer": fastmeta.SGD(lr=0.4), "inner_steps": 3}
    return family, fastmeta.MAML(conv4(5).to(device), **inner, **way), 8


def _drawings(characters: int = 200, drawers: int = 20) -> Characters:
    """Noise in the form of Omniglot: sampling does not look at the pixels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (characters, drawers, 28, 28), generator=generator, dtype=torch.uint8)
    names = tuple(f"Noise/character{i:03}" for i in range(characters))
    alphabet = torch.zeros(characters, dtype=torch.int64)
    return Characters(images, torch.full((characters,), drawers), alphabet, ("Noise",), names)


def _train(learner: fastmeta.MAML, family: Any, tasks: int, iterations: int, folder: str) -> None:
    config = TrainConfig(iterations=iterations, meta_batch=tasks, outer_lr=1e-5)
    with redirect_stderr(StringIO()):  # progress
        Trainer(learner, family, config=config, folder=folder).run(resume=False)
