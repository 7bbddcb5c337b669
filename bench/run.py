"""One row for each workload and peer: the gate first, then speed, and a reason wherever there is none."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import environment
from bench.floors import matrix_product_rate, meta_step_flop
from bench.gate import Gate, make_gate
from bench.peers import PEERS, MetaStep, Problem, Unsupported
from bench.timing import interleave
from bench.workloads import WORKLOADS, Workload

ALGORITHMS = ("maml", "fomaml")
FORMAT = 1


@dataclass(frozen=True)
class Row:
    """One peer on one workload. Without a speed, `status` is not "ok" and `message` says why.

    Attributes:
        status: "ok", "not installed", "unsupported", "failed", or "wrong" (the gate is red).
        error, bound: of the meta-gradient against float64, and the largest error that passes (see gate.py).
        first_call_s: seconds until the first meta-gradient: set-up, tracing, compilation and one step.
        samples_ms: milliseconds a meta-step, one figure for each round.
    """

    workload: str
    sizes: Mapping[str, int]
    algorithm: str
    peer: str
    status: str
    message: str = ""
    error: float | None = None
    bound: float | None = None
    first_call_s: float | None = None
    samples_ms: tuple[float, ...] = field(default=())
    flop: int = 0

    @property
    def median_ms(self) -> float:
        """The figure that tables show; NaN without samples."""
        return self.percentile_ms(50)

    def percentile_ms(self, percent: float) -> float:
        """Percentile over rounds; NaN without samples."""
        return float(np.percentile(self.samples_ms, percent)) if self.samples_ms else math.nan


def run(
    *,
    workloads: Iterable[str],
    peers: Iterable[str],
    algorithm: str,
    rounds: int,
    budget_s: float,
    small: bool,
    threads: int,
    out: Path | None,
) -> dict[str, Any]:
    """Measure, printing a line for each row; the file at `out` is rewritten after every workload.

    Returns:
        What the file holds: environment, settings and rows.
    """
    torch.set_num_threads(threads)
    peers = list(peers)
    result: dict[str, Any] = {
        "format": FORMAT,
        "environment": environment.describe(),
        "threads": threads,
        "matrix_product_gflops": round(matrix_product_rate() / 1e9, 1),
        "rows": [],
    }
    for name in workloads:
        workload = WORKLOADS[name].small() if small else WORKLOADS[name]
        for row in measure(workload, peers, algorithm=algorithm, rounds=rounds, budget_s=budget_s):
            speed = f"{row.median_ms:10.3f} ms" if row.samples_ms else f"{row.status}: {row.message}"
            print(f"{row.workload:20} {row.peer:20} {speed}", flush=True)
            result["rows"].append(asdict(row))
        if out is not None:
            write(result, out)
    return result


def measure(workload: Workload, peers: Iterable[str], *, algorithm: str, rounds: int, budget_s: float) -> Iterator[Row]:
    """Rows of one workload, in the order of `peers`."""
    first_order = algorithm == "fomaml"
    gate = make_gate(workload, first_order=first_order)
    template = Row(
        workload=workload.name,
        sizes={"T": workload.tasks, "N": workload.support, "M": workload.query, "K": workload.steps},
        algorithm=algorithm,
        peer="",
        status="ok",
        bound=gate.bound,
        flop=meta_step_flop(workload, first_order=first_order),
    )
    rows: list[Row] = []
    steps: dict[str, MetaStep] = {}
    for peer in peers:
        row, step = admit(replace(template, peer=peer), Problem.of(workload, first_order=first_order), gate)
        rows.append(row)
        if step is not None:
            steps[peer] = step
    timings = interleave(steps, rounds=rounds, budget_s=budget_s)
    for row in rows:
        timing = timings.get(row.peer)
        if timing is None:
            yield row
        elif isinstance(timing, Exception):
            yield replace(row, status="failed", message=describe_error(timing))
        else:
            yield replace(row, samples_ms=tuple(1e3 * s for s in timing))


def admit(row: Row, problem: Problem, gate: Gate) -> tuple[Row, MetaStep | None]:
    """Set a peer up, call it once and hold its meta-gradient against the truth; the step where it passes."""
    try:
        start = time.perf_counter()
        step = PEERS[row.peer](problem)
        gradient = step()
        row = replace(row, first_call_s=time.perf_counter() - start)
        error = gate.error(gradient)
    except Unsupported as failure:
        return replace(row, status="unsupported", message=str(failure)), None
    except ModuleNotFoundError as failure:
        return replace(row, status="not installed", message=f"no module {failure.name}"), None
    except Exception as failure:  # a peer's failure is its result
        return replace(row, status="failed", message=describe_error(failure)), None
    row = replace(row, error=error)
    if not error <= gate.bound:  # NaN fails too
        message = f"meta-gradient off by {error:.1e}, allowed {gate.bound:.1e}"
        return replace(row, status="wrong", message=message), None
    return row, step


def describe_error(error: Exception) -> str:
    """Type and first line of an exception, with folders cut out of the paths in it."""
    first = next(iter(str(error).strip().splitlines()), "")
    return re.sub(r"(/[\w.+-]+)+/", "", f"{type(error).__name__}: {first}")[:200]


def write(result: Mapping[str, Any], path: Path) -> None:
    """Write JSON so that a killed run leaves the file of the workload before, not half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)
