"""What `fastmeta kernels` prints: figures of every kernel compiled for a GPU that is not there, and memory counts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .algorithms import MAML
from .batch import TaskBatch
from .inner import SGD
from .models import sinusoid_mlp, siren
from .progress import Progress
from .session import Session
from .tasks import Sinusoid

TARGETS = ("sm_80", "sm_90", "sm_100")
PRECISIONS = ("float32", "tf32", "bfloat16")


class Workload(NamedTuple):
    """One of the design's workloads: the network, K, the inner learning rate, and a meta-batch of T tasks."""

    model: Callable[[], nn.Module]
    steps: int
    lr: float
    batch: Callable[[], TaskBatch]
    loss: Callable[..., Tensor] = F.mse_loss


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


def _few_shot(tasks: int, ways: int, support: int, query: int, *image: int) -> TaskBatch:
    """Random images of so many classes, as many of each."""
    source = torch.Generator().manual_seed(1)

    def samples(count: int) -> tuple[Tensor, Tensor]:
        labels = (torch.arange(count) % ways).expand(tasks, -1).contiguous()
        return torch.rand(tasks, count, *image, generator=source), labels

    return TaskBatch(*samples(support), *samples(query))


WORKLOADS = {
    "sinusoid-k1": Workload(sinusoid_mlp, 1, 0.01, lambda: _sinusoids(25)),
    "sinusoid": Workload(sinusoid_mlp, 5, 0.01, lambda: _sinusoids(25)),
    "sinusoid-10k": Workload(sinusoid_mlp, 5, 0.01, lambda: _sinusoids(10_000)),
    "siren-64": Workload(siren, 3, 0.01, lambda: _images(16, 64)),
    "siren-8": Workload(siren, 3, 0.01, lambda: _images(1, 8)),  # as much of it as an interpreter can run
    "omniglot-20w1s": Workload(
        lambda: _conv_net(1, 64, 4, 64, 20), 5, 0.1, lambda: _few_shot(32, 20, 20, 20, 1, 28, 28), F.cross_entropy
    ),
    "torchbench-maml": Workload(
        lambda: _conv_net(1, 64, 3, 64, 5, padding=0),
        5,
        0.1,
        lambda: _few_shot(32, 5, 25, 75, 1, 28, 28),
        F.cross_entropy,
    ),
    "mini-5w1s": Workload(
        lambda: _conv_net(3, 32, 4, 800, 5), 5, 0.01, lambda: _few_shot(4, 5, 5, 75, 3, 84, 84), F.cross_entropy
    ),
}
"""MAML on 10 + 10 points of Finn et al.'s sinusoids, network 1-40-40-1; on images of SIDE × SIDE pixels, network
2-256-256-256-3; and on Omniglot and miniImageNet with Conv4-64 and Conv4-32, and TorchBench's `maml_omniglot`."""
DESIGNED = ("sinusoid-k1", "sinusoid", "sinusoid-10k", "siren-64")
"""Those of the design, at full size."""

Row = dict[str, Any]


def _session(workload: str, precision: Any) -> Session:
    model, steps, lr, batch, loss = WORKLOADS[workload]
    learner = MAML(
        model(), inner_loss=loss, inner_optimizer=SGD(lr=lr), inner_steps=steps, backend="triton",
        precision=precision,
    )  # fmt: skip
    return learner._sessions.open(learner, batch(), steps)


def compiled(target: str, workloads: Sequence[str]) -> list[Row]:
    """A row for every kernel of the workloads at every precision, compiled for `target`; none of them runs."""
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise RuntimeError("TRITON_INTERPRET is set, and interpreted kernels cannot be compiled; unset it")
    from .kernels.ahead_of_time import compiling  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    rows = []
    every = list(product(workloads, PRECISIONS))
    progress = Progress(len(every))
    for done, (workload, precision) in enumerate(every):
        progress.status(f"{target} {workload} {precision}")
        with compiling(target) as found:
            _session(workload, precision).meta_step(keep=True)
        rows += [{"target": target, "workload": workload, "precision": precision, **asdict(f)} for f in found]
        progress.advance(done + 1)
    progress.close()
    return rows


def problems(rows: Sequence[Row]) -> list[str]:
    """What is wrong with compiled kernels: a spill, too much shared memory, a product of another precision."""
    from .kernels.ahead_of_time import SHARED_BYTES  # pyright: ignore[reportMissingImports]  # mapped by setup.py

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


def counts(workload: str) -> Row:
    """Launches and bytes of one meta-step, from Triton's interpreter.

    `compulsory` bytes are the tasks' data, θ, and what a meta-step gives: losses, outputs, flags, every task's λ_0 and
    their mean. The trajectory φ_1 … φ_K is listed by itself.
    """
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported
    from .kernels.counts import counting  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    session = _session(workload, "float32")
    batch = session.batch
    tensors = [batch.support_x, batch.support_y, batch.query_x, batch.query_y]
    progress = Progress(1)

    def show(name: str, done: int, total: int) -> None:
        if done == 1:
            progress.restart(total)
        progress.advance(done)
        if done < total:
            progress.status(name)

    with counting(progress=show) as counted:
        result = session.meta_step(keep=True)
    progress.close()
    loss, gradient, (losses, outputs, finite, lam), _ = result
    assert gradient is not None
    assert lam is not None
    tensors += [*session.params, loss, gradient, losses, *outputs, finite, lam]
    compulsory = sum(t.numel() * t.element_size() for t in tensors)
    distinct = counted.distinct()
    return {
        "workload": workload,
        "launches": counted.launches,
        "bytes asked for": counted.loaded + counted.stored,
        "distinct bytes": distinct,
        "compulsory bytes": compulsory,
        "distinct / compulsory": round(distinct / compulsory, 3),
        "trajectory bytes": sum(t.numel() * t.element_size() for t in counted.trajectory),
    }
