"""What launches do to memory, counted in Triton's interpreter: bytes asked for, and distinct bytes touched.

Within `counting()` every load and store of every program is recorded. Asked-for bytes are what programs name, before
any cache; the distinct ones are what memory must at least move.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder

from . import launch


@dataclass
class Counts:
    """Launches in order; bytes asked for; the tensors that hold φ_1 … φ_K; addresses touched."""

    launches: list[str] = field(default_factory=list)
    loaded: int = 0
    stored: int = 0
    trajectory: list[Tensor] = field(default_factory=list)
    _addresses: list[np.ndarray] = field(default_factory=list)
    _alive: list[Any] = field(default_factory=list)  # or an address might be given out twice

    def launched(self, name: str, args: tuple[Any, ...]) -> None:
        self.launches.append(name)
        self._alive.append(args)
        if name == "adapt_kernel":
            self.trajectory.append(args[0][:-1])

    def touch(self, pointers: Any, mask: Any) -> int:
        size = pointers.get_element_ty().primitive_bitwidth // 8 or 1
        seen = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.uint64)
        self._addresses.append(np.unique(seen[:, None] + np.arange(size, dtype=np.uint64)))
        return int(seen.size) * size

    def distinct(self) -> int:
        """Distinct bytes outside the trajectory."""
        addresses = np.unique(np.concatenate(self._addresses))
        for tensor in self.trajectory:
            start = tensor.data_ptr()
            inside = (addresses >= start) & (addresses < start + tensor.numel() * tensor.element_size())
            addresses = addresses[~inside]
        return int(addresses.size)


@contextmanager
def counting() -> Iterator[Counts]:
    """Counts what is launched inside. The kernels must have been imported in interpreter mode."""
    counts = Counts()
    interpreter: Any = InterpreterBuilder
    load, store, run = interpreter.create_masked_load, interpreter.create_masked_store, launch.run

    def counted_load(builder: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        counts.loaded += counts.touch(pointers, mask)
        return load(builder, pointers, mask, *rest)

    def counted_store(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        counts.stored += counts.touch(pointers, mask)
        return store(builder, pointers, value, mask, *rest)

    def counted_run(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        counts.launched(kernel.__name__, args)
        run(kernel, grid, args, options)

    interpreter.create_masked_load = counted_load
    interpreter.create_masked_store = counted_store
    launch.run = counted_run
    try:
        yield counts
    finally:
        interpreter.create_masked_load, interpreter.create_masked_store = load, store
        launch.run = run
