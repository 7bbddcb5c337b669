"""What `fastmeta kernels` prints: figures of every kernel compiled for a GPU that is not there, and memory counts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F

from .algorithms import MAML
from .batch import TaskBatch
from .inner import SGD
from .models import sinusoid_mlp
from .session import Session
from .tasks import Sinusoid

TARGETS = ("sm_80", "sm_90", "sm_100")
WORKLOADS = {"sinusoid-k1": (25, 1), "sinusoid": (25, 5), "sinusoid-10k": (10_000, 5)}
"""Tasks T and inner steps K of MAML on 10 + 10 points of Finn et al.'s sinusoids, network 1-40-40-1."""
PRECISIONS = ("float32", "tf32", "bfloat16")

Row = dict[str, Any]


def _session(workload: str, precision: Any) -> Session:
    tasks, steps = WORKLOADS[workload]
    learner = MAML(
        sinusoid_mlp(), inner_loss=F.mse_loss, inner_optimizer=SGD(lr=0.01), inner_steps=steps, backend="triton",
        precision=precision,
    )  # fmt: skip
    episodes = Sinusoid().sample(tasks, torch.Generator().manual_seed(1))
    return learner._sessions.open(learner, TaskBatch(*episodes), steps)


def compiled(target: str, workloads: Sequence[str]) -> list[Row]:
    """A row for every kernel of the workloads at every precision, compiled for `target`; none of them runs."""
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise RuntimeError("TRITON_INTERPRET is set, and interpreted kernels cannot be compiled; unset it")
    from .kernels.ahead_of_time import compiling  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    rows = []
    for workload in workloads:
        for precision in PRECISIONS:
            with compiling(target) as found:
                _session(workload, precision).meta_step(keep=True)
            rows += [{"target": target, "workload": workload, "precision": precision, **asdict(f)} for f in found]
    return rows


def problems(rows: Sequence[Row]) -> list[str]:
    """What is wrong with compiled kernels: a spill, too much shared memory, a product of another precision."""
    from .kernels.ahead_of_time import SHARED_BYTES  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    wanted = {"float32": {"ieee", "tf32x3"}, "tf32": {"ieee", "tf32"}, "bfloat16": {"ieee", "bf16"}}
    found = []
    for row in rows:
        name = f"{row['target']} {row['workload']} {row['precision']} {row['kernel']}"
        if row["stack"]:
            found.append(f"{name}: {row['stack']} bytes on the stack")
        if row["shared"] > SHARED_BYTES[row["target"]][0]:
            found.append(f"{name}: {row['shared']} bytes of shared memory")
        if not set(row["precisions"]) <= wanted[row["precision"]]:
            found.append(f"{name}: products in {', '.join(row['precisions'])}")
    return found


def table(rows: Sequence[Row]) -> str:
    """The rows for people."""
    head = ("workload", "precision", "kernel", "programs", "warps", "registers", "stack", "shared", "occupancy",
            "matrix", "128-bit", "narrower")  # fmt: skip
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        matrix = " ".join(f"{n} {kind}" for kind, n in row["matrix"].items()) or "-"
        keys = ("workload", "precision", "kernel", "programs", "warps", "registers", "stack", "shared", "occupancy")
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
    with counting() as counted:
        result = session.meta_step(keep=True)
    (loss, gradient, (losses, outputs, finite, lam)) = result
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
