"""Peak memory of one meta-step, each figure from a process of its own.

The figure is the highest resident size during the step less the resident size before it. Linux keeps the
former as VmHWM in /proc/self/status, and writing 5 to /proc/self/clear_refs resets it. The parent fixes
glibc's threshold for mapped allocations in the child, so that a tensor that is freed leaves the resident size
at once.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench import environment
from bench.peers import PEERS, Problem
from bench.run import FORMAT, describe_error, write
from bench.workloads import WORKLOADS, Workload

DEFAULT_PEERS = ("autograd loop", "torch.func vmap", "fastmeta eager", "fastmeta recompute")
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class MemoryRow:
    """Peak of one peer at one number of inner steps; without one, `message` says why."""

    workload: str
    peer: str
    steps: int
    peak_mib: float | None
    message: str = ""


def resident_kib(field: str) -> int:
    """VmRSS (now) or VmHWM (highest since the reset) of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    match = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    if match is None:
        raise RuntimeError(f"/proc/self/status has no {field}; memory is measured on Linux only")
    return int(match.group(1))


def peak_of_step(workload: Workload, peer: str) -> float:
    """MiB that one meta-step needs beyond what stands before it.

    A smaller step before it, of one task and one inner step, loads code and starts threads, which are not
    the step's.
    """
    for warm_up in (replace(workload, tasks=1, steps=1), workload):
        step = PEERS[peer](Problem.of(warm_up, first_order=False))
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = resident_kib("VmRSS")
        step()
        peak = resident_kib("VmHWM") - before
        del step
    return peak / 1024


def measure(workload: str, peer: str, steps: int, *, threads: int) -> MemoryRow:
    """`peak_of_step` in a fresh process."""
    command = [sys.executable, "-m", "bench.memory", workload, peer, str(steps), str(threads)]
    child = subprocess.run(
        command,
        cwd=environment.ROOT,
        env=os.environ | ALLOCATOR,
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode != 0:
        reason = next(reversed(child.stderr.strip().splitlines()), "")
        return MemoryRow(workload, peer, steps, None, reason or f"ended with status {child.returncode}")
    return MemoryRow(workload, peer, steps, float(json.loads(child.stdout.splitlines()[-1])))


def run(*, workload: str, peers: Iterable[str], steps: Iterable[int], threads: int, out: Path | None) -> dict[str, Any]:
    """Peaks of every peer at every number of inner steps, printed line by line and written to `out`."""
    counts = list(steps)
    rows: list[MemoryRow] = []
    for peer in peers:
        for count in counts:
            row = measure(workload, peer, count, threads=threads)
            peak = f"{row.peak_mib:9.1f} MiB" if row.peak_mib is not None else row.message
            print(f"{workload:20} {peer:20} K={count:<3} {peak}", flush=True)
            rows.append(row)
    result = {
        "format": FORMAT,
        "environment": environment.describe(),
        "threads": threads,
        "memory": [asdict(row) for row in rows],
    }
    if out is not None:
        write(result, out)
    return result


def _child() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("peer")
    parser.add_argument("steps", type=int)
    parser.add_argument("threads", type=int)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    workload = replace(WORKLOADS[arguments.workload], steps=arguments.steps)
    try:
        print(json.dumps(peak_of_step(workload, arguments.peer)))
    except Exception as error:  # the parent's row shows it
        raise SystemExit(describe_error(error)) from None


if __name__ == "__main__":
    _child()
