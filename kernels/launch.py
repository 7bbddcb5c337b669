"""The one place through which every kernel is launched, so that launches can be counted and looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Watcher = Callable[[str, tuple[int, ...], dict[str, Any]], None]

watchers: list[Watcher] = []
"""Called before each launch with the kernel's name, its grid and its keyword arguments."""


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Runs `kernel` on `grid` programs. Multiply-add fusion is on, whatever a Triton version's default is."""
    for watcher in watchers:
        watcher(kernel.__name__, grid, options)
    kernel[grid](*args, **options, enable_fp_fusion=True)
