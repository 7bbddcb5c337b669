"""Compiles the kernels of workloads side by side, to Triton's cache: one by one a network's would take minutes.

No process touches the GPU. What is compiled is what `fastmeta triton` launches when it is measured: its real arguments
at the workload's own size, as even the number of tasks decides how a kernel shares out its work.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from . import device as devices
from .names import PRECISIONS, TARGETS
from .options import known
from .part import parser_of
from .records import FORMAT, describe_error, write
from .workloads import WORKLOADS, Workload

SHARES = 8
"""Jobs that a workload's kernels are dealt out to."""
AS_MUCH = 4
"""A perceptron has so many kernels; more shares of them would be empty."""

PRELOADED = ("bench.kernels.sessions", "fastmeta.engine.backends.triton", "fastmeta.kernels.ahead_of_time")
"""What every job needs."""


def shares_of(workload: Workload) -> int:
    """Jobs that the workload is worth."""
    return AS_MUCH if workload.network == "sinusoid-mlp" else SHARES


def compile_share(
    workload: Workload, precision: str, target: str, *, share: int = 0, of: int = 1,
    forced: Mapping[str, int] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Compiles every `of`-th kernel of a meta-step; those that multiply with the options `forced`.

    Returns:
        "codes": a hash of each kernel's code by its place among the meta-step's; "failed": by place, why there is none.
    """
    from fastmeta.kernels import launch  # pyright: ignore[reportMissingImports]  # mapped by setup.py
    from fastmeta.kernels.ahead_of_time import compiled_for, keep_launcher  # pyright: ignore[reportMissingImports]

    places: dict[tuple[Any, ...], int] = {}
    found: dict[str, Any] = {"codes": {}, "failed": {}}

    def one_of(kernel: Any, label: str, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        options = {**options, **(forced or {})} if "PRECISION" in options else options
        key = key_of(kernel, args, options)
        if key in places:
            return
        places[key] = len(places)
        if places[key] % of != share:
            return
        try:
            compile_one(kernel, label, grid, args, options)
        except Exception as error:  # the others are compiled
            found["failed"][str(places[key])] = f"{kernel.__name__} {label}: {describe_error(error)}"

    def compiled(_: str, __: str, ___: tuple[int, ...], ____: dict[str, Any], binary: Any) -> None:
        found["codes"][str(len(places) - 1)] = hashlib.sha256(binary.asm["ptx"].encode()).hexdigest()[:16]
        keep_launcher(binary)

    with compiled_for(target, compiled), launch.through(one_of) as compile_one:
        meta_step(workload, precision)
    return found


def meta_step(workload: Workload, precision: str) -> None:
    """What is measured, with every launch handed to whatever `launch.run` is."""
    from .kernels.sessions import session

    session(workload, precision).meta_step(keep=True)


def key_of(kernel: Any, args: Sequence[Any], options: Mapping[str, Any]) -> tuple[Any, ...]:
    """What Triton compiles a kernel anew for: constants, types, and which addresses and numbers divide by 16."""
    return (kernel.__name__, str(sorted(options.items(), key=str)), *map(_kind, args))


def _kind(arg: Any) -> Any:
    if isinstance(arg, tuple):
        return tuple(map(_kind, arg))
    if hasattr(arg, "data_ptr"):
        return arg.dtype, arg.data_ptr() % 16 == 0
    if isinstance(arg, int):
        return arg == 1, arg % 16 == 0, -(2**31) <= arg < 2**31
    return type(arg)


def job(workload: Workload, precision: str, target: str, share: int) -> dict[str, Any]:
    """A share of a workload's kernels, as a row."""
    start = time.perf_counter()
    found = compile_share(workload, precision, target, share=share, of=shares_of(workload))
    row = {"workload": workload.name, "precision": precision, "share": share, "kernels": len(found["codes"])}
    return row | {"failed": [*found["failed"].values()], "s": round(time.perf_counter() - start, 1)}


def pairs_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """(workload, precision) of "workload:precision".

    Raises:
        ValueError: one is not known.
    """
    pairs = []
    for name in names:
        workload, _, precision = name.partition(":")
        known("workload", [workload], WORKLOADS)
        known("precision", [precision], PRECISIONS)
        pairs.append((workload, precision))
    return pairs


def main() -> None:
    """Compile for the GPU that is here, or for one that is not; the file is rewritten after every share.

    The exit status is 1 where a kernel does not compile, or not in time.
    """
    parser = parser_of("Kernels of workloads, side by side.")
    parser.add_argument("--kernels", nargs="+", required=True, metavar="WORKLOAD:PRECISION", help="what to compile")
    parser.add_argument("--target", choices=TARGETS, help="default: the GPU that is here")
    parser.add_argument("--limit", type=float, default=90, help="seconds (default: %(default)s)")
    options = parser.parse_args()
    pairs = pairs_of(options.kernels)
    os.nice(10)  # tests that run beside it come first
    os.environ.pop("TRITON_INTERPRET", None)  # the interpreter compiles nothing
    target = options.target or this_target()
    from fastmeta.kernels.side_by_side import side_by_side  # pyright: ignore[reportMissingImports]

    works = [(WORKLOADS[name].small() if options.quick else WORKLOADS[name], precision) for name, precision in pairs]
    jobs = [(*work, target, share) for work in works for share in range(shares_of(work[0]))]
    result: dict[str, Any] = {"format": FORMAT, "compiled": []}
    calls = [partial(job, *each) for each in jobs]
    for done in side_by_side(calls, limit_s=options.limit, preload=PRELOADED):
        workload, precision, _, share = jobs[done.place]
        lost = {"workload": workload.name, "precision": precision, "share": share, "kernels": 0}
        row = lost | {"failed": [f"share {share}: {done.failure}"]} if done.result is None else done.result
        result["compiled"].append(row)
        write(result, options.out)
    failed = [f"{row['workload']} {row['precision']}: {why}" for row in result["compiled"] for why in row["failed"]]
    print(f"{sum(row['kernels'] for row in result['compiled'])} kernels compiled")
    if failed:
        print("\n".join([*failed, f"{len(failed)} failed; the first: {failed[0]}"]), file=sys.stderr)
        sys.exit(1)


def this_target() -> str:
    """The GPU that is here, as Triton names it.

    Raises:
        ValueError: there is none.
    """
    import torch

    devices.check_device("cuda")
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


if __name__ == "__main__":
    main()
