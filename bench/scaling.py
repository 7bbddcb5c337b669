"""Time and memory of one meta-step over the number of tasks, of inner steps, or the width, and where memory ends.

Every peer runs in a process of its own, value after value. On a CPU that process may not map more than a limit, so that
the end of memory is a result and the machine stays up; on a GPU the device's memory is the limit. A value of which a
step took longer than a budget is the last one.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from . import child, environment
from .records import FORMAT, Point, describe_error, without_folders, write

AXES = {
    "tasks": (1, 10, 100, 1000, 10_000),
    "steps": (1, 2, 5, 10, 20),
    "width": (20, 40, 80, 160, 320),
}
QUICK = {"tasks": (1, 10), "steps": (1, 2), "width": (10, 20)}
LETTERS = {"tasks": "T", "steps": "K", "width": "width"}

PEERS = ("autograd loop", "torch.func vmap", "jax vmap", "fastmeta eager", "fastmeta compiled")
EXTRA = {"cpu": ("fastmeta recompute",), "cuda": ("fastmeta recompute", "fastmeta triton")}

ROUNDS, BLOCK_S = 3, 1.0
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "RESOURCE_EXHAUSTED", "bad_alloc", "MemoryError",
                 "Cannot allocate memory", "Unable to allocate")  # fmt: skip
"""How PyTorch, JAX, C++ and Python say it."""


def run(
    *,
    workload: str,
    axes: Iterable[str],
    values: Sequence[int] | None,
    peers: Iterable[str],
    algorithm: str,
    device: str,
    precision: str,
    memory_gib: float,
    step_s: float,
    limit_s: float,
    threads: int,
    quick: bool,
    out: Path | None,
) -> dict[str, Any]:
    """Measure, printing a line for each point; the file at `out` is rewritten after every peer.

    Args:
        memory_gib: what a peer may map on a CPU.
        step_s: a step longer than this ends a peer's axis.
        limit_s: seconds of one peer on one axis.
    """
    from . import ceilings

    result: dict[str, Any] = {
        "format": FORMAT,
        "environment": environment.describe(device),
        "threads": threads,
        "ceilings": ceilings.measure(device, precisions=tuple({"float32", precision})),
        "memory limit GiB": memory_gib,
        "points": [],
    }
    peers = list(peers)
    for axis in axes:
        for peer in peers:
            wanted = values or (QUICK if quick else AXES)[axis]
            settings = {
                "workload": workload, "peer": peer, "axis": axis, "values": list(wanted), "algorithm": algorithm,
                "device": device, "precision": precision, "memory_gib": memory_gib, "step_s": step_s,
                "threads": threads, "limit_s": limit_s,
            }  # fmt: skip
            for point in measure(settings):
                print(describe(point), flush=True)
                result["points"].append(asdict(point))
            if out is not None:
                write(result, out)
    return result


def measure(settings: dict[str, Any]) -> list[Point]:
    """One peer along one axis, in a process of its own; a point for every value, measured or not."""
    points: list[Point] = []

    def collect(line: str) -> None:
        if line.startswith("{"):
            points.append(Point(**json.loads(line)))

    command = [sys.executable, "-m", "bench.scaling", json.dumps(settings)]
    ended = child.run(command, limit_s=settings["limit_s"], each_line=collect)
    empty = Point(settings["workload"], settings["algorithm"], settings["peer"], settings["axis"], 0, "not measured")
    if len(points) < len(settings["values"]) and (ended.status != 0 or ended.timed_out):
        points.append(replace(empty, value=settings["values"][len(points)], **how_it_ended(ended)))
    return [*points, *(replace(empty, value=value) for value in settings["values"][len(points) :])]


def how_it_ended(ended: child.Ended) -> dict[str, str]:
    """Status and message of the value at which a process ended."""
    if ended.timed_out:
        return {"status": "too slow", "message": ended.reason()}
    if any(words in ended.errors for words in OUT_OF_MEMORY):
        return {"status": "out of memory", "message": ended.reason()}
    return {"status": "failed", "message": without_folders(ended.reason())}


def describe(point: Point) -> str:
    """One line."""
    what = f"{point.ms:10.3f} ms" if point.ms is not None else f"{point.status} {point.message}"
    memory = f" {point.peak_mib:9.1f} MiB" if point.peak_mib is not None else ""
    return f"{point.workload:16} {point.peer:20} {LETTERS[point.axis]}={point.value:<6} {what}{memory}"


# --- in the child ---


def _limit_memory(gib: float) -> None:
    """So much more private memory than is mapped now; beyond it allocations fail."""
    from .device import resident_kib

    mapped = resident_kib("VmData") * 1024
    most = mapped + int(gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _point(template: Point, settings: dict[str, Any]) -> Point:
    """Gate, time and memory at one value."""
    from . import device as devices
    from .floors import meta_step_bytes, meta_step_flop
    from .gate import NoGate, make_gate
    from .problem import Problem
    from .records import Row
    from .run import admit
    from .timing import interleave
    from .workloads import WORKLOADS

    device, problem = settings["device"], {k: settings[k] for k in ("algorithm", "device", "precision")}
    workload = replace(WORKLOADS[template.workload].sized_for(device), **{template.axis: template.value})
    if template.axis == "tasks":
        # what a large batch repeats has to divide every T of the axis
        workload = replace(workload, distinct=next(d for d in (workload.distinct, 10, 1) if not template.value % d))
    algorithm = problem["algorithm"]
    template = replace(template, flop=meta_step_flop(workload, algorithm), bytes=meta_step_bytes(workload, algorithm))
    try:
        gate = make_gate(workload, **problem)
    except NoGate as reason:
        return replace(template, status="no gate", message=str(reason))
    with devices.products(device, problem["precision"]):
        row = Row(workload.name, {}, algorithm, template.peer, "ok", bound=gate.bound)
        row, step = admit(row, Problem.of(workload, **problem), gate, settings["limit_s"])
        template = replace(template, error=row.error, status=row.status, message=row.message)
        if step is None:
            if any(words in row.message for words in OUT_OF_MEMORY):
                return replace(template, status="out of memory")
            return template
        seconds = interleave({"step": step}, rounds=ROUNDS, budget_s=BLOCK_S, wait=lambda: devices.wait(device))["step"]
        if isinstance(seconds, Exception):
            raise seconds
        template = replace(template, ms=1e3 * statistics.median(seconds))
        # JAX's memory on a GPU is not PyTorch's to count
        if device == "cpu" or not template.peer.startswith("jax"):
            template = replace(template, peak_mib=devices.peak_mib(step, device))
    return template


def _child(settings: dict[str, Any]) -> None:
    environment.limit_threads(settings["threads"])
    environment.choose_device(settings["device"])
    import torch

    from . import run as _  # noqa: F401  imports everything before the limit

    torch.set_num_threads(settings["threads"])
    if settings["device"] == "cpu":
        _limit_memory(settings["memory_gib"])
    empty = Point(settings["workload"], settings["algorithm"], settings["peer"], settings["axis"], 0, "ok")
    for value in settings["values"]:
        try:
            point = _point(replace(empty, value=value), settings)
        except Exception as error:  # a peer's failure is its result
            message = describe_error(error)
            memory = isinstance(error, MemoryError) or any(words in message for words in OUT_OF_MEMORY)
            point = replace(empty, value=value, status="out of memory" if memory else "failed", message=message)
        print(json.dumps(asdict(point)), flush=True)
        torch._dynamo.reset()
        gc.collect()
        if point.status in ("out of memory", "failed", "too slow") or (point.ms or 0) > 1e3 * settings["step_s"]:
            break


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", type=json.loads)
    _child(parser.parse_args().settings)
