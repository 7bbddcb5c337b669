"""What a launch costs: bare kernels one by one and inside a CUDA graph, and the host's share of whole meta-steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import device as devices
from . import environment
from .ceilings import best_seconds
from .gate import make_gate
from .part import parser_of
from .problem import Problem
from .records import FORMAT, Row, describe_error, write
from .run import admit
from .workloads import WORKLOADS, Workload

CALLS = 200
STEPS = {"cpu": 1, "cuda": 20}
WORKLOADS_TIMED = ("sinusoid", "omniglot-5w1s")
PEERS_TIMED = ("fastmeta triton graph", "fastmeta triton", "fastmeta eager graph", "fastmeta eager",
               "torch.func vmap graph", "torch.func vmap", "jax vmap")  # fmt: skip


def bare(device: str) -> list[dict[str, Any]]:
    """Microseconds a launch of kernels that do next to nothing."""
    x = torch.zeros(1, device=device)
    rows = []
    for name, launch in (("torch add_ of one element", lambda: x.add_(1)), ("empty Triton kernel", _empty(x))):
        for captured in (False, True):
            row: dict[str, Any] = {"kernel": name, "graph": captured}
            try:
                row["us"] = round(1e6 * _seconds_a_launch(launch, device, captured=captured), 3)
            except Exception as error:  # a failure is its result
                row["message"] = describe_error(error)
            rows.append(row)
    return rows


def _empty(x: torch.Tensor) -> Callable[[], object]:
    import triton

    @triton.jit
    def nothing(pointer):  # noqa: ANN001, ANN202, ARG001  Triton's language
        return

    return lambda: nothing[(1,)](x)


def _seconds_a_launch(launch: Callable[[], object], device: str, *, captured: bool) -> float:
    def many() -> None:
        for _ in range(CALLS):
            launch()

    if not captured:
        return best_seconds(many, device) / CALLS
    launch()
    devices.wait(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        many()
    return best_seconds(graph.replay, device) / CALLS


def meta_steps(workload: Workload, device: str) -> Iterator[dict[str, Any]]:
    """Milliseconds that a meta-step keeps the host, milliseconds until the device is done, kernels."""
    gate, steps = make_gate(workload, device=device), STEPS[device]
    for peer in PEERS_TIMED:
        with devices.products(device, "float32"):
            row, step = admit(
                Row(workload.name, {}, "maml", peer, "ok", bound=gate.bound), Problem.of(workload, device=device),
                gate, 60,
            )  # fmt: skip
            found: dict[str, Any] = {"workload": workload.name, "peer": peer, "status": row.status}
            found["message"] = row.message
            if step is not None:
                step()
                devices.wait(device)
                start = time.perf_counter()
                for _ in range(steps):
                    step()
                host = time.perf_counter() - start
                devices.wait(device)
                total = time.perf_counter() - start
                found |= {"host ms": round(1e3 * host / steps, 4), "ms": round(1e3 * total / steps, 4)}
                found["launches"] = devices.launches(step, device)
        yield found


def main() -> None:
    """Measure, and write the file after every row."""
    options = parser_of("The cost of launches.").parse_args()
    environment.choose_device(options.device)
    devices.check_device(options.device)
    result = {"format": FORMAT, "environment": environment.describe(options.device), "launches": [], "meta-steps": []}
    result["launches"] = bare(options.device)
    write(result, options.out)
    # a CPU has nothing to launch: one is enough to see that it runs
    for name in WORKLOADS_TIMED if options.device == "cuda" else WORKLOADS_TIMED[:1]:
        workload = WORKLOADS[name].sized_for(options.device)
        for row in meta_steps(workload.small() if options.quick else workload, options.device):
            result["meta-steps"].append(row)
            write(result, options.out)


if __name__ == "__main__":
    main()
