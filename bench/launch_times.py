"""Microseconds of every launch of a meta-step on Triton kernels, in order of what they take together.

Without a profiler: an event stands before and behind each launch, and the device sleeps first, so that the host is
ahead of it and what lies between two events is the kernel. On a CPU, where Triton's interpreter runs them, the host's
clock is read instead, to see that all of this works.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch

from . import device as devices
from . import environment
from .names import PRECISIONS
from .part import parser_of
from .peers import PEERS
from .problem import MetaStep, Problem
from .records import FORMAT, describe_error, write
from .workloads import WORKLOADS, Workload

PEER = "fastmeta triton"
ROUNDS = 5
ASLEEP = 80_000_000
"""Clocks that a device sleeps: 45 ms, three times as long as a host takes to launch a meta-step on images."""


class Launch(NamedTuple):
    """One launch of a meta-step."""

    kernel: str
    label: str
    programs: int
    us: float


def launches(step: MetaStep, device: str) -> tuple[list[Launch], float]:
    """The launches of a step in order, and microseconds from the first one's begin to the last one's end."""
    from fastmeta.kernels import launch  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    marks: list[tuple[str, str, int, Any, Any]] = []

    def run(kernel: Any, label: str, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        begin = _mark(device)
        made = before(kernel, label, grid, args, options)
        marks.append((kernel.__name__, label, grid[0], begin, _mark(device)))
        return made

    with launch.through(run) as before:
        if device == "cuda":
            torch.cuda._sleep(ASLEEP)
        step()
        devices.wait(device)
    found = [Launch(name, label, programs, _us(begin, end)) for name, label, programs, begin, end in marks]
    return found, _us(marks[0][3], marks[-1][4]) if marks else 0.0


def _mark(device: str) -> Any:
    if device == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _us(begin: Any, end: Any) -> float:
    return 1e6 * (end - begin) if isinstance(begin, float) else 1e3 * begin.elapsed_time(end)


def together(rounds: list[list[Launch]]) -> list[dict[str, Any]]:
    """Launches of the same kernel, label and grid as a row, the longest together first; medians over rounds.

    Raises:
        RuntimeError: the rounds did not launch the same kernels.
    """
    kinds = {tuple(each[:3] for each in launched) for launched in rounds}
    if len(kinds) != 1:
        raise RuntimeError("two meta-steps launched different kernels")
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for same in zip(*rounds, strict=True):
        us = median(each.us for each in same)
        kernel, label, programs, _ = same[0]
        row = rows.setdefault((kernel, label, programs), {
            "kernel": kernel, "label": label, "programs": programs, "launches": 0, "us": 0.0, "least us": us,
            "most us": us,
        })  # fmt: skip
        row["launches"] += 1
        row["us"] += us
        row |= {"least us": min(row["least us"], us), "most us": max(row["most us"], us)}
    for row in rows.values():
        row |= {name: round(row[name], 2) for name in ("us", "least us", "most us")}
    return sorted(rows.values(), key=lambda row: -row["us"])


def measure(workload: Workload, precision: str, device: str, prepare: Callable[[Problem], MetaStep]) -> dict[str, Any]:
    """A row for a workload at a precision; a failure is its result."""
    row: dict[str, Any] = {"workload": workload.name, "precision": precision}
    try:
        step = prepare(Problem.of(workload, device=device, precision=precision))
        step()
        devices.wait(device)
        found = [launches(step, device) for _ in range(ROUNDS if device == "cuda" else 1)]
        kernels = together([launched for launched, _ in found])
    except Exception as error:  # the next one is measured
        return row | {"message": describe_error(error)}
    return row | {
        "launches": sum(kernel["launches"] for kernel in kernels),
        "kernels us": round(sum(kernel["us"] for kernel in kernels), 1),
        "first to last us": round(median(us for _, us in found), 1),
        "kernels": kernels,
    }


def main() -> None:
    """Measure, and write the file after every row."""
    parser = parser_of("Microseconds of every launch of a meta-step.")
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, required=True, metavar="NAME")
    options = parser.parse_args()
    devices.check_device(options.device)
    works = [WORKLOADS[name].sized_for(options.device) for name in options.workload]
    works = [works[0].small()] if options.quick else works
    where = environment.describe(options.device)
    result: dict[str, Any] = {"format": FORMAT, "environment": where, "launch times": []}
    # at the precision that is held to IEEE's errors first
    for workload, precision in ((workload, precision) for precision in PRECISIONS for workload in works):
        result["launch times"].append(measure(workload, precision, options.device, PEERS[PEER]))
        write(result, options.out)


if __name__ == "__main__":
    main()
