"""What result files hold, and how they are written and read."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
MEASURED_TOGETHER = {
    "rows": ("workload", "algorithm", "device", "precision"),
    "points": ("workload", "algorithm", "peer", "axis"),
}
"""What rows that were timed in turn, and points of one curve, have in common."""


@dataclass(frozen=True)
class Row:
    """One peer on one workload. Without a speed, `status` is not "ok" and `message` says why.

    Attributes:
        status: "ok", "not installed", "unsupported", "failed", "too slow", "no gate" (the truth would prove nothing)
            or "wrong" (the gate is red).
        error, bound: of the meta-gradient against float64, and the largest error that passes (see gate.py).
        first_call_s: seconds until the first meta-gradient: set-up, tracing, compilation, capture and one step.
        samples_ms: milliseconds a meta-step, one figure for each round.
        flop, bytes: what the step takes at least (see floors.py).
        launches: kernels of a step, where known.
        peak_mib: memory that a step takes beyond what stands before it, where known (see device.py).
    """

    workload: str
    sizes: Mapping[str, int]
    algorithm: str
    peer: str
    status: str
    message: str = ""
    device: str = "cpu"
    precision: str = "float32"
    error: float | None = None
    bound: float | None = None
    first_call_s: float | None = None
    samples_ms: tuple[float, ...] = field(default=())
    flop: int = 0
    bytes: int = 0
    launches: int | None = None
    peak_mib: float | None = None

    @property
    def median_ms(self) -> float:
        """The figure that tables show; NaN without samples."""
        return self.percentile_ms(50)

    def percentile_ms(self, percent: float) -> float:
        """Percentile over rounds; NaN without samples."""
        return float(np.percentile(self.samples_ms, percent)) if self.samples_ms else math.nan


@dataclass(frozen=True)
class Point:
    """One peer at one value of the axis of a scaling run.

    Attributes:
        axis: "tasks", "steps" or "width".
        status: "ok", "out of memory", "too slow", "not measured" (after one of those), "wrong" or "failed".
        ms: the median of a few blocks.
        peak_mib: as in Row.
    """

    workload: str
    algorithm: str
    peer: str
    axis: str
    value: int
    status: str
    message: str = ""
    ms: float | None = None
    peak_mib: float | None = None
    error: float | None = None
    flop: int = 0
    bytes: int = 0


def describe_error(error: BaseException) -> str:
    """Type and first line of an exception, with folders cut out of the paths in it."""
    first = next(iter(str(error).strip().splitlines()), "")
    return without_folders(f"{type(error).__name__}: {first}")


def without_folders(text: str) -> str:
    """The first 200 characters, paths shortened to the files' names."""
    return re.sub(r"(/[\w.+-]+)+/", "", text)[:200]


def write(result: Mapping[str, Any], path: Path) -> None:
    """Write JSON so that a killed run leaves the file as it was before, not half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def load(path: Path) -> dict[str, Any]:
    """Read a result file.

    Raises:
        ValueError: the file is no result of this benchmark.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); give files that `python -m bench` wrote") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ValueError(f"{path} is no benchmark result of format {FORMAT}; measure again with this version")
    return result


def load_all(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Result files, each without the rows of workloads and the points of curves that a later one of the same machine
    measured again. On a GPU peers stand in several files, and only rows beside the same peers are measured again.

    Raises:
        ValueError: a file is no result of this benchmark.
    """
    seen: set[tuple[Any, ...]] = set()
    results: list[dict[str, Any]] = []
    for result in reversed([load(path) for path in paths]):
        machine = (result["environment"].get("cpu"), result["environment"].get("gpu"), result.get("threads"))
        for part, alike in MEASURED_TOGETHER.items():
            every = [(tuple(each[name] for name in alike), each) for each in result.get(part, ())]
            found = [((machine, part, *key, _beside(key, each, every)), each) for key, each in every]
            if found:
                result[part] = [each for key, each in found if key not in seen]
                seen |= {key for key, _ in found}
        results.append(result)
    return results[::-1]


def _beside(key: tuple[Any, ...], row: Mapping[str, Any], every: Sequence[tuple[Any, Any]]) -> tuple[str, ...]:
    """The peers of a row on a GPU."""
    if row.get("device") != "cuda":
        return ()
    return tuple(sorted(other["peer"] for like, other in every if like == key))


def rows_of(result: Mapping[str, Any]) -> list[Row]:
    """The rows of a `run`."""
    return [Row(**{**row, "samples_ms": tuple(row["samples_ms"])}) for row in result.get("rows", ())]


def points_of(result: Mapping[str, Any]) -> list[Point]:
    """The points of a `scaling`."""
    return [Point(**point) for point in result.get("points", ())]
