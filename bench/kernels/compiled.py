"""Figures of every kernel of the workloads, compiled for a GPU that is not there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

from bench.workloads import WORKLOADS
from fastmeta.train.progress import Progress

from .sessions import session

Row = dict[str, Any]


def compiled(target: str, workloads: Sequence[str], precisions: Sequence[str]) -> list[Row]:
    """A row for every kernel of the workloads at these precisions, compiled for `target`; none of them runs.

    Raises:
        ValueError: Triton's interpreter is on.
    """
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise ValueError("TRITON_INTERPRET is set, and interpreted kernels cannot be compiled; unset it")
    from fastmeta.kernels.ahead_of_time import compiling  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    rows = []
    every = list(product(workloads, precisions))
    progress = Progress(len(every))
    for done, (workload, precision) in enumerate(every):
        progress.status(f"{target} {workload} {precision}")
        with compiling(target) as found:
            session(WORKLOADS[workload], precision).meta_step(keep=True)
        rows += [{"target": target, "workload": workload, "precision": precision, **asdict(f)} for f in found]
        progress.advance(done + 1)
    progress.close()
    return rows


LOOP = ("adapt_kernel", "apply_kernel", "adjoint_kernel")
SPILLS = {("sm_80", "float32", kernel) for kernel in ("adapt_kernel", "apply_kernel")}
"""Known, 400 bytes in the committed rows (Triton 3.9): three products of tf32 hold more than there are registers."""


def problems(rows: Sequence[Row]) -> list[str]:
    """What is wrong with compiled kernels: a spill, too much shared memory, a product of another precision."""
    from fastmeta.kernels.ahead_of_time import SHARED_BYTES  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    wanted = {"float32": {"ieee", "tf32x3"}, "tf32": {"ieee", "tf32"}, "bfloat16": {"ieee", "bf16"}}
    found = []
    for row in rows:
        name = f"{row['target']} {row['workload']} {row['precision']} {row['kernel']} {row['label']}".rstrip()
        if row["spilled"] and (row["target"], row["precision"], row["kernel"]) not in SPILLS:
            found.append(f"{name}: {row['spilled']} bytes of registers spilled")
        if row["shared"] > SHARED_BYTES[row["target"]][0]:
            found.append(f"{name}: {row['shared']} bytes of shared memory")
        # in a perceptron's loop, float32 is three products of tf32 each (kernels/README.md)
        split = {"tf32"} if row["kernel"] in LOOP else set()
        if not set(row["precisions"]) <= wanted[row["precision"]] | split:
            found.append(f"{name}: products in {', '.join(row['precisions'])}")
    return found


def table(rows: Sequence[Row]) -> str:
    """The rows for people."""
    keys = ("workload", "precision", "kernel", "label", "launches", "programs", "warps", "registers", "stack",
            "spilled", "shared", "occupancy")  # fmt: skip
    rest = ("wide", "narrow", "loop", "loop_wide", "loop_narrow")
    head = (*keys, "matrix", "128-bit", "narrower", "loop", "its loads of 128 bit", "narrower")
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        matrix = " ".join(f"{n} {kind}" for kind, n in row["matrix"].items()) or "-"
        lines.append((*(str(row[key]) for key in keys), matrix, *(str(row[key]) for key in rest)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
