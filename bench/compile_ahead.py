"""Compiles the kernels of workloads side by side, to Triton's cache: one by one a network's would take minutes.

No process touches the GPU. What is compiled is what `fastmeta triton` launches, by its real arguments.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from functools import partial
from typing import Any

from . import device as devices
from .part import parser_of, skip_on_cpu
from .records import FORMAT, describe_error, write
from .workloads import WORKLOADS

COMPILED = (("omniglot-20w1s", "float32"), ("torchbench-maml", "float32"), ("mini-5w1s", "float32"),
            ("omniglot-20w1s", "tf32"), ("torchbench-maml", "tf32"), ("mini-5w1s", "tf32"),
            ("omniglot-20w1s", "bfloat16"), ("mini-5w1s", "bfloat16"))  # fmt: skip
SHARES = 8
"""Jobs that a workload's kernels are dealt out to."""


def compile_share(
    workload: str, precision: str, target: str, *, share: int = 0, of: int = 1, forced: Mapping[str, int] | None = None
) -> int:
    """Compiles every `of`-th kernel of a meta-step; those that multiply with the options `forced`. How many it was."""
    from fastmeta.kernels import launch  # pyright: ignore[reportMissingImports]  # mapped by setup.py
    from fastmeta.kernels.ahead_of_time import compiled_for  # pyright: ignore[reportMissingImports]

    from .kernels.sessions import session

    seen: list[str] = []
    done: list[str] = []

    def one_of(kernel: Any, label: str, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        options = {**options, **(forced or {})} if "PRECISION" in options else options
        key = f"{kernel.__name__} {options} {[getattr(arg, 'dtype', type(arg)) for arg in args]}"
        if key not in seen:
            seen.append(key)
            if len(seen) % of == share:
                compile_one(kernel, label, grid, args, options)

    with compiled_for(target, lambda name, *_: done.append(name)), launch.through(one_of) as compile_one:
        session(WORKLOADS[workload].unrepeated(), precision).meta_step(keep=True)  # the number of tasks is a grid's
    return len(done)


def compile_side_by_side(jobs: Sequence[Callable[[], Any]], *, limit_s: float) -> list[Any]:
    """What the jobs give that end within the limit; the others are given up. They must be picklable."""
    processes = min(len(os.sched_getaffinity(0)), len(jobs))
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    futures = [pool.submit(job) for job in jobs]
    done, _ = wait(futures, timeout=limit_s)
    pool.shutdown(wait=False, cancel_futures=True)
    return [future.result() for future in futures if future in done]


def _job(workload: str, precision: str, target: str, share: int) -> dict[str, Any]:
    start = time.perf_counter()
    row: dict[str, Any] = {"workload": workload, "precision": precision, "share": share}
    try:
        row["kernels"] = compile_share(workload, precision, target, share=share, of=SHARES)
    except Exception as error:  # measuring meets it again
        row["message"] = describe_error(error)
    return row | {"s": round(time.perf_counter() - start, 1)}


def main() -> None:
    """Compile for the GPU that is here."""
    parser = parser_of("Kernels of the workloads on images, side by side.")
    parser.add_argument("--limit", type=float, default=90, help="seconds (default: %(default)s)")
    options = parser.parse_args()
    skip_on_cpu(options.device, "nothing is compiled for a CPU")
    devices.check_device("cuda")
    import torch

    target = "sm_{}{}".format(*torch.cuda.get_device_capability())
    jobs = [partial(_job, *pair, target, share) for pair in COMPILED for share in range(SHARES)]
    write({"format": FORMAT, "compiled": compile_side_by_side(jobs, limit_s=options.limit)}, options.out)


if __name__ == "__main__":
    main()
