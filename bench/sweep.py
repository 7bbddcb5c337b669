"""Loads ahead of their products (`num_stages`) and warps of the perceptron kernels: every pair checked, then timed.

Tiles are no choice there: a program holds whole layers. Kernels are launched through one function
(`kernels/launch.py`), in whose place a pair of numbers is put here. Processes side by side compile all pairs first, to
Triton's cache: compiling takes longer than measuring.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench import device as devices
from bench import environment
from bench.child import SKIPPED
from bench.gate import Gate, make_gate
from bench.peers import PEERS
from bench.problem import Problem
from bench.records import FORMAT, describe_error, write
from bench.timing import interleave
from bench.workloads import WORKLOADS

STAGES, WARPS = (1, 2, 3), (4, 8, 16)
SWEPT = ("sinusoid", "sinusoid-10k")
COLD = ("mean_kernel",)
"""Launched as they are."""
COMPILERS = 8
PEER = "fastmeta triton"


class Config(NamedTuple):
    """None: what the kernels choose by themselves."""

    precision: str
    stages: int | None
    warps: int | None


def configs() -> list[Config]:
    """The kernels' own choice first at each precision."""
    pairs = [(None, None), *itertools.product(STAGES, WARPS)]
    return [Config(precision, *pair) for precision in devices.PRECISIONS for pair in pairs]


@contextmanager
def launched_with(config: Config) -> Iterator[dict[str, list[Any]]]:
    """Inside, hot kernels have the config's stages and warps; the dict takes pairs of CUDA events by kernel."""
    from fastmeta.kernels import launch  # pyright: ignore[reportMissingImports]  # mapped by setup.py

    before = launch.run
    own = {"num_stages": config.stages, "num_warps": config.warps}
    chosen = {name: value for name, value in own.items() if value is not None}
    events: dict[str, list[Any]] = {}

    def run(kernel: Any, label: str, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        hot = kernel.__name__ not in COLD
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        before(kernel, label, grid, args, {**options, **chosen} if hot else options)
        end.record()
        events.setdefault(kernel.__name__, []).append((start, end))

    launch.run = run
    try:
        yield events
    finally:
        launch.run = before


def compile_ahead(workload: str, config: Config) -> str:
    """One meta-step, for what it leaves in Triton's cache; a failure's text."""
    try:
        with launched_with(config):
            _step(workload, config)()
        torch.cuda.synchronize()
    except Exception as error:  # measuring meets it again
        return describe_error(error)
    return ""


def _step(workload: str, config: Config) -> Any:
    sized = WORKLOADS[workload].sized_for("cuda")
    return PEERS[PEER](Problem.of(sized, device="cuda", precision=config.precision))


def measure(workload: str, config: Config, gate: Gate) -> dict[str, Any]:
    """Milliseconds of a meta-step and microseconds of each kernel, medians; none where the gate is red."""
    row: dict[str, Any] = {"workload": workload, **config._asdict()}
    try:
        with launched_with(config) as events:
            step = _step(workload, config)
            row["error"] = gate.error(step())
            row["allowed"] = gate.bound
            if not row["error"] <= gate.bound:
                return row | {"message": f"meta-gradient off by {row['error']:.1e}"}
            timing = interleave({"step": step}, rounds=7, budget_s=1, wait=torch.cuda.synchronize)["step"]
            if isinstance(timing, Exception):
                raise timing
            events.clear()
            for _ in range(20):
                step()
            torch.cuda.synchronize()
            row["ms"] = 1e3 * sorted(timing)[len(timing) // 2]
            row["us"] = {
                name: 1e3 * sorted(a.elapsed_time(b) for a, b in pairs)[len(pairs) // 2]
                for name, pairs in events.items()
            }
    except Exception as error:  # a failure is its result
        row["message"] = describe_error(error)
    return row


def main() -> None:
    """Compile side by side, then measure one after another; the file is rewritten after every row."""
    parser = argparse.ArgumentParser(description="Stages and warps of the perceptron kernels.")
    parser.add_argument("--device", choices=devices.DEVICES, default="cuda")
    parser.add_argument("--compile-limit", type=float, default=60, help="seconds (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.device == "cpu":
        print("the sweep needs a GPU: Triton's interpreter has neither stages nor warps", file=sys.stderr)
        sys.exit(SKIPPED)
    devices.check_device("cuda")
    result: dict[str, Any] = {"format": FORMAT, "environment": environment.describe("cuda"), "sweep": []}
    write(result, options.out)
    start = time.perf_counter()
    cores = len(os.sched_getaffinity(0))
    pool = ProcessPoolExecutor(min(COMPILERS, cores), mp_context=multiprocessing.get_context("spawn"))
    jobs = [pool.submit(compile_ahead, SWEPT[0], config) for config in configs()]
    wait(jobs, timeout=options.compile_limit)
    pool.shutdown(wait=False, cancel_futures=True)
    result["compile s"] = round(time.perf_counter() - start, 1)
    for workload in SWEPT:
        gates: dict[str, Gate | Exception] = {}
        for config in configs():
            if config.precision not in gates:
                try:
                    sized = WORKLOADS[workload].sized_for("cuda")
                    gates[config.precision] = make_gate(sized, device="cuda", precision=config.precision)
                except Exception as error:  # this precision's rows say it
                    gates[config.precision] = error
            gate = gates[config.precision]
            if isinstance(gate, Exception):
                result["sweep"].append({"workload": workload, **config._asdict(), "message": describe_error(gate)})
            else:
                result["sweep"].append(measure(workload, config, gate))
            write(result, options.out)


if __name__ == "__main__":
    main()
