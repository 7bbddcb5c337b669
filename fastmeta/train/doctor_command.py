"""The command `fastmeta doctor`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from fastmeta.doctor import WORKLOADS, described, examine, missing

from .config import Execution
from .flags import add_options, given
from .run_config import from_values


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--workloads", nargs="*", choices=tuple(WORKLOADS), metavar="NAME", default=tuple(WORKLOADS),
                        help=f"of {', '.join(WORKLOADS)}; default: all; nothing behind it: none")  # fmt: skip
    parser.add_argument("--precision", choices=("float32", "tf32", "bfloat16"), default="float32",
                        help="of matrix products on a GPU")  # fmt: skip
    add_options(parser, "execution", Execution, only=("device",))


def doctor(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """Say what fastmeta runs on, which programs Triton kernels take, what backend="auto" chooses, and what is missing.

    On a GPU kernels are proved and timed as by a first meta-step, a minute for each convolutional network, and what is
    found is kept. Exit status: 0 where all is well, 1 where something is missing or kernels failed.
    """
    device = from_values(Execution, given(arguments, Execution)).torch_device()
    for title, text in described(device):
        print(f"{title:<10} {text}", flush=True)
    failed: list[str] = []
    if arguments.workloads:
        print('\nMAML on the benchmark\'s workloads: do Triton kernels take them, and what does backend="auto" choose?')
    for name in arguments.workloads:
        row = examine(name, device, precision=arguments.precision)
        print(f"  {name:<16} kernels: {row.kernels}; auto: {row.backend} ({row.why})", flush=True)
        for line in row.details:
            print(f"    {line}")
        failed += [f"Triton kernels failed on {name}: {row.why}"] * row.failed
    problems = [*missing(device), *failed]
    print("\nmissing: nothing" if not problems else "\nmissing:")
    for problem in problems:
        print(f"  {problem}")
    return 1 if problems else 0
