"""The one place through which every kernel is launched, so that launches can be counted, watched or only compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from triton import knobs
from triton.runtime.errors import OutOfResources

Run = Callable[[Any, str, tuple[int, ...], tuple[Any, ...], dict[str, Any]], None]


def _on_device(kernel: Any, label: str, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
    try:
        with np.errstate(all="ignore"):  # the interpreter is NumPy, and NaN a result like any other
            kernel[grid](*args, **options)
    except OutOfResources as error:
        raise RuntimeError(
            f"{kernel.__name__} {label}".rstrip() + f" needs {error.required} of {error.name}, and this GPU has "
            f'{error.limit}: use backend="torch", or precision="bfloat16", which takes less'
        ) from error


run: Run = _on_device
"""What a launch does; `through` puts another function here."""


@contextmanager
def through(instead: Run) -> Iterator[Run]:
    """Inside, every launch is given to `instead`. Yields what a launch did before, for `instead` to call if it likes.

    It holds for the whole process, so one thread at a time.
    """
    global run  # noqa: PLW0603  the one place through which kernels are launched
    before, run = run, instead
    try:
        yield before
    finally:
        run = before


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, label: str = "", **options: Any) -> None:
    """Runs `kernel` on `grid` programs; the label tells launches of one kernel apart in reports.

    Multiply-add fusion is on, whatever a Triton version's default is.
    """
    run(kernel, label, grid, args, {**options, "enable_fp_fusion": True})


def needs_a_gpu() -> bool:
    """Whether launches run, and not in Triton's interpreter."""
    return run is _on_device and not knobs.runtime.interpret
