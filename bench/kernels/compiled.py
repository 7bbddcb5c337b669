"""The workloads of `python -m bench kernels`, and figures of every kernel compiled for a GPU that is not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta.algorithms.base import MetaLearner
from fastmeta.algorithms.maml import MAML
from fastmeta.engine.batch import TaskBatch
from fastmeta.engine.session import Session
from fastmeta.models import sinusoid_mlp, siren
from fastmeta.optim.sgd import SGD
from fastmeta.tasks import Sinusoid
from fastmeta.train.progress import Progress

TARGETS = ("sm_80", "sm_90", "sm_100")
PRECISIONS = ("float32", "tf32", "bfloat16")


class FewShot(NamedTuple):
    """Random images [channels, height, width] of so many classes, as many of each: all that a kernel sees of real ones.

    T tasks with N support and M query samples.
    """

    ways: int
    image: tuple[int, int, int]
    tasks: int
    support: int
    query: int

    def batch(self) -> TaskBatch:
        source = torch.Generator().manual_seed(1)

        def samples(count: int) -> tuple[Tensor, Tensor]:
            labels = (torch.arange(count) % self.ways).expand(self.tasks, -1).contiguous()
            return torch.rand(self.tasks, count, *self.image, generator=source), labels

        return TaskBatch(*samples(self.support), *samples(self.query))


class Workload(NamedTuple):
    """One of the design's workloads: the network, K, the inner learning rate, and a meta-batch of T tasks.

    Those on images have `sizes`, and are counted with one task and `counted` images of each set.
    """

    model: Callable[[], nn.Module]
    steps: int
    lr: float
    batch: Callable[[], TaskBatch]
    loss: Callable[..., Tensor] = F.mse_loss
    sizes: FewShot | None = None
    counted: int = 1

    def at(self, sizes: FewShot, *, steps: int | None = None) -> Workload:
        """The same network on another number of tasks, samples and inner steps."""
        return self._replace(steps=self.steps if steps is None else steps, batch=sizes.batch, sizes=sizes)

    def session(
        self, precision: Any = "float32", *, algorithm: type[MetaLearner] = MAML, memory: Any = "save"
    ) -> Session:
        """A meta-step on Triton kernels, ready to run."""
        learner = algorithm(
            self.model(), inner_loss=self.loss, inner_optimizer=SGD(lr=self.lr), inner_steps=self.steps,
            backend="triton", precision=precision, memory=memory,
        )  # fmt: skip
        return learner._sessions.open(learner, self.batch(), self.steps)


def _sinusoids(tasks: int) -> TaskBatch:
    return TaskBatch(*Sinusoid().sample(tasks, torch.Generator().manual_seed(1)))


def _images(tasks: int, side: int) -> TaskBatch:
    """Colours at the pixels of random images, which is all that a kernel sees of real ones."""
    axis = torch.linspace(-1, 1, side)
    points = torch.cartesian_prod(axis, axis).expand(tasks, -1, -1).contiguous()
    colours = torch.rand(tasks, side * side, 3, generator=torch.Generator().manual_seed(1))
    return TaskBatch(points, colours, points, colours)


def _conv_net(inputs: int, channels: int, blocks: int, features: int, ways: int, *, padding: int = 1) -> nn.Sequential:
    """Blocks of 3×3 convolution with bias, batch norm, ReLU and pool, then a linear layer of so many features."""
    layers: list[nn.Module] = []
    for block in range(blocks):
        layers += [
            nn.Conv2d(channels if block else inputs, channels, 3, padding=padding),
            nn.BatchNorm2d(channels, track_running_stats=False), nn.ReLU(), nn.MaxPool2d(2),
        ]  # fmt: skip
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, ways))


def _on_images(model: Callable[[], nn.Module], lr: float, sizes: FewShot, counted: int) -> Workload:
    return Workload(model, 5, lr, sizes.batch, F.cross_entropy, sizes, counted)


WORKLOADS = {
    "sinusoid-k1": Workload(sinusoid_mlp, 1, 0.01, lambda: _sinusoids(25)),
    "sinusoid": Workload(sinusoid_mlp, 5, 0.01, lambda: _sinusoids(25)),
    "sinusoid-10k": Workload(sinusoid_mlp, 5, 0.01, lambda: _sinusoids(10_000)),
    "siren-64": Workload(siren, 3, 0.01, lambda: _images(16, 64)),
    "siren-8": Workload(siren, 3, 0.01, lambda: _images(1, 8)),  # as much of it as an interpreter can run
    "omniglot-20w1s": _on_images(
        lambda: _conv_net(1, 64, 4, 64, 20), 0.1, FewShot(20, (1, 28, 28), tasks=32, support=20, query=20), 5
    ),
    "torchbench-maml": _on_images(
        lambda: _conv_net(1, 64, 3, 64, 5, padding=0), 0.1, FewShot(5, (1, 28, 28), tasks=32, support=25, query=75), 5
    ),
    "mini-5w1s": _on_images(
        lambda: _conv_net(3, 32, 4, 800, 5), 0.01, FewShot(5, (3, 84, 84), tasks=4, support=5, query=75), 1
    ),
}
"""MAML on 10 + 10 points of Finn et al.'s sinusoids, network 1-40-40-1; on images of SIDE × SIDE pixels, network
2-256-256-256-3; and on Omniglot and miniImageNet with Conv4-64 and Conv4-32, and TorchBench's `maml_omniglot`."""
DESIGNED = ("sinusoid-k1", "sinusoid", "sinusoid-10k", "siren-64")
"""Those of the design, at full size."""

Row = dict[str, Any]


def compiled(target: str, workloads: Sequence[str], precisions: Sequence[str] = PRECISIONS) -> list[Row]:
    """A row for every kernel of the workloads at these precisions, compiled for `target`; none of them runs."""
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise RuntimeError("TRITON_INTERPRET is set, and interpreted kernels cannot be compiled; unset it")
    from fastmeta.kernels.ahead_of_time import compiling  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    rows = []
    every = list(product(workloads, precisions))
    progress = Progress(len(every))
    for done, (workload, precision) in enumerate(every):
        progress.status(f"{target} {workload} {precision}")
        with compiling(target) as found:
            WORKLOADS[workload].session(precision).meta_step(keep=True)
        rows += [{"target": target, "workload": workload, "precision": precision, **asdict(f)} for f in found]
        progress.advance(done + 1)
    progress.close()
    return rows


def problems(rows: Sequence[Row]) -> list[str]:
    """What is wrong with compiled kernels: a spill, too much shared memory, a product of another precision."""
    from fastmeta.kernels.ahead_of_time import SHARED_BYTES  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    wanted = {"float32": {"ieee", "tf32x3"}, "tf32": {"ieee", "tf32"}, "bfloat16": {"ieee", "bf16"}}
    found = []
    for row in rows:
        name = f"{row['target']} {row['workload']} {row['precision']} {row['kernel']} {row['label']}".rstrip()
        if row["spilled"]:
            found.append(f"{name}: {row['spilled']} bytes of registers spilled")
        if row["shared"] > SHARED_BYTES[row["target"]][0]:
            found.append(f"{name}: {row['shared']} bytes of shared memory")
        if not set(row["precisions"]) <= wanted[row["precision"]]:
            found.append(f"{name}: products in {', '.join(row['precisions'])}")
    return found


def table(rows: Sequence[Row]) -> str:
    """The rows for people."""
    keys = ("workload", "precision", "kernel", "label", "launches", "programs", "warps", "registers", "stack",
            "spilled", "shared", "occupancy")  # fmt: skip
    head = (*keys, "matrix", "128-bit", "narrower")
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        matrix = " ".join(f"{n} {kind}" for kind, n in row["matrix"].items()) or "-"
        lines.append((*(str(row[key]) for key in keys), matrix, str(row["wide"]), str(row["narrow"])))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
