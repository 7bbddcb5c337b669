"""What meta-steps on images should take on an H200, from what launches, bytes and products were counted without one.

A prediction is committed before there is a figure to compare it with. Launches, bytes and FLOP are counted in Triton's
interpreter at a reduced size and scaled by images (`kernels/counted.py`). Two times stand for what is not known:

    low   the longer of products and bytes, as if one hid the other, and launches at the lower cost
    high  products, then bytes, then launches, each at its slower rate

Products: low takes the FLOP of the model (`floors.py`), high those counted, with all that fills up tiles. A 3×3
convolution reads its tiles from the second-level cache nine times, which leaves a part of the peak (`REACHABLE`).
"float32" are three tf32 products: a third of the rate, but where the cache is the limit, three cost no more than one.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from . import environment
from .names import PRECISIONS
from .records import FORMAT, Row, rows_of, write
from .workloads import WORKLOADS

PREDICTED = ("omniglot-20w1s", "torchbench-maml", "mini-5w1s")

KERNELS = "fastmeta triton"
"""What the names of the kernels' rows start with."""

PEAK = {"tf32": 395e12, "bfloat16": 790e12}
"""FLOP a second of large matrix products on an H200: 769 to 798 TFLOP/s of bfloat16 were measured, tf32 is half."""
COPY = (4.3e12, 3.2e12)
"""Bytes a second: a large copy; three quarters of it, for tensors of a few megabytes."""
REACHABLE = {64: (0.38, 0.30), 32: (0.23, 0.18)}
"""By channels: tiles of 128 pixels read 21 and 13 FLOP a byte from a cache of 5.5 to 7 TB/s."""
LAUNCH = (2.5e-6, 3.0e-6)
"""Seconds between dependent launches of a replayed CUDA graph."""


def rates(precision: str, channels: int) -> tuple[float, float]:
    """FLOP a second at best and at worst."""
    best, worst = REACHABLE[channels]
    if precision == "float32":
        return min(best, 1 / 3) * PEAK["tf32"], worst / 3 * PEAK["tf32"]
    return best * PEAK[precision], worst * PEAK[precision]


def milliseconds(figures: Mapping[str, Any], precision: str, channels: int) -> tuple[float, float]:
    """Low and high, from launches, bytes, and FLOP of the model and counted."""
    best, worst = rates(precision, channels)
    low = max(figures["model FLOP"] / best, figures["bytes"] / COPY[0]) + figures["launches"] * LAUNCH[0]
    high = figures["FLOP"] / worst + figures["bytes"] / COPY[1] + figures["launches"] * LAUNCH[1]
    return 1e3 * low, 1e3 * high


def counted(workload: str, storage: str) -> dict[str, Any]:
    """Launches, bytes and FLOP of an exact meta-step whose operands are stored in this precision.

    Bytes are proportional to images, and of bfloat16, whose FLOP are float32's, one image is enough.
    """
    from .floors import meta_step_flop
    from .kernels.counted import per_image

    full = WORKLOADS[workload]
    found = per_image(full, storage, images=None if storage == "float32" else 1)
    return {
        "sizes": {"T": full.tasks, "N": full.support, "M": full.query, "K": full.steps},
        "counted at": {"T": 1, "N": found.counted, "M": found.counted, "K": 1},
        "launches": found.launches,
        "bytes": round(found.image_bytes() + found.row_bytes()),
        "bytes of images": round(found.image_bytes()),
        "fused bytes": found.fused_bytes(),
        "FLOP": round(found.flop()),
        "model FLOP": meta_step_flop(full, "maml"),
        "phases": found.by_phase(),
    }


def predictions(workloads: Sequence[str], processes: int) -> list[dict[str, Any]]:
    """A row for each workload and precision; tf32 stores what float32 does."""
    rows: list[dict[str, Any]] = []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, environment.interpret_kernels) as pool:
        # the slowest ones first
        jobs = {(w, s): pool.submit(counted, w, s) for s in ("float32", "bfloat16") for w in reversed(workloads)}
        for workload in workloads:
            for precision in PRECISIONS:
                storage = "bfloat16" if precision == "bfloat16" else "float32"
                figures = jobs[workload, storage].result() | {"FLOP": jobs[workload, "float32"].result()["FLOP"]}
                rows.append({"workload": workload, "precision": precision, **figures,
                             **predicted(figures, precision, WORKLOADS[workload].width)})  # fmt: skip
    return rows


def predicted(figures: Mapping[str, Any], precision: str, channels: int) -> dict[str, float]:
    """What a row says."""
    low, high = milliseconds(figures, precision, channels)
    return {"low ms": round(low, 3), "high ms": round(high, 3)}


Measured = Mapping[tuple[str, str], str]
"""What exact meta-steps took on a GPU, by workload, its sizes included, and precision."""


def measured_of(results: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """The fastest of the kernels' rows of runs on a GPU; of what was measured again, the last run's."""
    found: dict[tuple[str, str], str] = {}
    for result in results:
        best: dict[tuple[str, str], Row] = {}
        for row in rows_of(result):
            mine = row.device == "cuda" and row.algorithm == "maml" and row.peer.startswith(KERNELS)
            if mine and row.samples_ms:
                key = name_of(row.workload, row.sizes), row.precision
                best[key] = min(best.get(key, row), row, key=lambda each: each.median_ms)
        found |= {key: f"{row.median_ms:.3g} ({row.peer.removeprefix('fastmeta ')})" for key, row in best.items()}
    return found


def name_of(workload: str, sizes: Mapping[str, int]) -> str:
    """With its sizes."""
    return f"{workload} ({', '.join(f'{letter}={count}' for letter, count in sizes.items())})"


def table(rows: Sequence[Mapping[str, Any]], measured: Measured | None = None) -> list[str]:
    """Markdown lines; the last column waits for a GPU."""
    head = ("workload", "precision", "launches", "GFLOP, model", "GFLOP, counted", "MB moved", "of images / fused",
            "predicted, ms", "measured, ms")  # fmt: skip
    about = "Predicted for an exact meta-step on one H200 in a CUDA graph; counted at reduced size, scaled by images."
    lines = [about, "", _line(head), "| --- | --- |" + " ---: |" * (len(head) - 2)]
    for row in rows:
        name, precision = name_of(row["workload"], row["sizes"]), row["precision"]
        lines.append(_line((
            name, precision, f"{row['launches']}", f"{row['model FLOP'] / 1e9:.0f}",
            f"{row['FLOP'] / 1e9:.0f}", f"{row['bytes'] / 1e6:,.0f}",
            f"{row['bytes of images'] / row['fused bytes']:.2f}", f"{row['low ms']:.2f}–{row['high ms']:.2f}",
            (measured or {}).get((name, precision), ""),
        )))  # fmt: skip
    return [*lines, ""]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def run(workloads: Sequence[str], *, processes: int, out: Path | None) -> dict[str, Any]:
    """Count and predict; what the file holds."""
    where = environment.describe()
    result = {
        "format": FORMAT,
        "environment": {name: where[name] for name in ("date", "python", "packages", "commit")},
        "predictions": predictions(workloads, processes),
    }
    if out is not None:
        write(result, out)
    return result
