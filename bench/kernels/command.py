"""The command `python -m bench kernels`: compile the Triton kernels for a GPU that is not there, or count them."""

from __future__ import annotations

import argparse
import json
import sys

from bench.kernels import compiled, counted


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--target", choices=compiled.TARGETS, help="compile every kernel for this architecture")
    workloads = tuple(compiled.WORKLOADS)
    what.add_argument("--count", choices=workloads, help="launches, bytes and FLOP of one meta-step")
    what.add_argument("--peak-memory", choices=workloads, help="bytes alive at once, exact and first-order MAML")
    parser.add_argument(
        "--workload", nargs="+", choices=tuple(compiled.WORKLOADS), default=compiled.DESIGNED,
        help=f"what to compile; default: {' '.join(compiled.DESIGNED)}",
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=compiled.PRECISIONS,
        help="default: float32 of what is counted, all of what is compiled",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Compile the Triton kernels for a GPU that is not there, or count what they do to memory.

    With --target: registers, stack, shared memory, programs a multiprocessor holds, matrix instructions and widths of
    global accesses, for every kernel and precision; the exit status is 1 where one spills, asks for more shared memory
    than there is, or multiplies in another precision than asked for. With --count, which runs in Triton's interpreter:
    launches of a meta-step, bytes asked for, moved, distinct and compulsory, and FLOP; on images, from what one image
    takes. With --peak-memory: bytes alive at once in a meta-step of exact MAML and of first-order MAML.
    """
    if arguments.count or arguments.peak_memory:
        of = counted.counts if arguments.count else counted.memory
        row = of(arguments.count or arguments.peak_memory, arguments.precision or "float32")
        print(json.dumps(row, indent=1) if arguments.json else counted.text(row))
        return 0
    precisions = (arguments.precision,) if arguments.precision else compiled.PRECISIONS
    rows = compiled.compiled(arguments.target, arguments.workload, precisions)
    print(json.dumps(rows, indent=1) if arguments.json else compiled.table(rows))
    wrong = compiled.problems(rows)
    for problem in wrong:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if wrong else 0
