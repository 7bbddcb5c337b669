"""What launches do to memory, counted in Triton's interpreter: bytes asked for, and distinct bytes touched.

Within `counting()` every load and store of every program is recorded. Asked-for bytes are what programs name, before
any cache; the distinct ones are what memory must at least move. An access outside of a launch's tensors is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder

from . import launch


class Memory:
    """The storage of a launch's tensors: which of its bytes were touched."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor  # kept alive, or an address might be given out twice
        self.start, self.size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        self.touched = np.zeros(self.size, bool)


@dataclass
class Counts:
    """Launches in order; bytes asked for; the tensors that hold φ_1 … φ_K; memory touched.

    `watch` keeps every store apart, for `times_written`; `progress` is told the launch, its programs run and in all.
    """

    watch: bool = False
    progress: Callable[[str, int, int], None] | None = None
    launches: list[str] = field(default_factory=list)
    loaded: int = 0
    stored: int = 0
    trajectory: list[Tensor] = field(default_factory=list)
    _memory: dict[int, Memory] = field(default_factory=dict)
    _written: list[list[np.ndarray]] = field(default_factory=list)  # of each launch
    _programs: tuple[int, int] = 0, 0

    def launched(
        self, kernel: Any, label: str, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        self.launches.append(f"{kernel.__name__} {label}".rstrip())
        self._written.append([])
        self._programs = 0, grid[0]
        for arg in args:
            if isinstance(arg, Tensor) and arg.untyped_storage().data_ptr() not in self._memory:
                memory = Memory(arg)
                self._memory[memory.start] = memory
        if kernel.__name__ == "adapt_kernel":
            self._steps_to(args[0][:-1])
        elif options.get("SINK") == "step":
            self._steps_to(args[kernel.arg_names.index("p_to")])

    def _steps_to(self, phi: Tensor) -> None:
        if all(phi.data_ptr() != known.data_ptr() for known in self.trajectory):
            self.trajectory.append(phi)

    def program(self) -> None:
        done, total = self._programs
        self._programs = done + 1, total
        if self.progress is not None:
            self.progress(self.launches[-1], done + 1, total)

    def load(self, pointers: Any, mask: Any) -> None:
        self.loaded += self._touch(*_masked(pointers, mask))

    def store(self, pointers: Any, mask: Any) -> None:
        seen, size = _masked(pointers, mask)
        self.stored += self._touch(seen, size)
        if self.watch:
            self._written[-1].append(seen)

    def _touch(self, seen: np.ndarray, size: int) -> int:
        if seen.size:
            first, last = int(seen.min()), int(seen.max())
            inside = (m for m in self._memory.values() if m.start <= first and last + size <= m.start + m.size)
            memory = next(inside, None)
            if memory is None:
                raise RuntimeError(f"{self.launches[-1]} reaches outside of its tensors")
            for byte in range(size):
                memory.touched[seen - np.uint64(memory.start) + np.uint64(byte)] = True
        return seen.size * size

    def distinct(self) -> int:
        """Distinct bytes touched outside the trajectory."""
        touched = {start: memory.touched.copy() for start, memory in self._memory.items()}
        for phi in self.trajectory:
            start = phi.untyped_storage().data_ptr()
            at = phi.data_ptr() - start
            touched[start][at : at + phi.numel() * phi.element_size()] = False
        return sum(int(t.sum()) for t in touched.values())

    def written_twice(self) -> set[str]:
        """The launches of which some element was stored twice."""
        parts = ((name, np.concatenate(stores)) for name, stores in zip(self.launches, self._written, strict=True))
        return {name for name, addresses in parts if np.unique(addresses).size < addresses.size}

    def times_written(self, tensor: Tensor) -> dict[str, Tensor]:
        """How often each launch that stored to a contiguous tensor stored each of its elements."""
        start, size, found = tensor.data_ptr(), tensor.element_size(), {}
        for i, (name, parts) in enumerate(zip(self.launches, self._written, strict=True)):
            written = np.concatenate([np.zeros(0, np.uint64), *parts])
            inside = written[(written >= start) & (written < start + tensor.numel() * size)] - np.uint64(start)
            if inside.size:
                counts = np.bincount((inside // np.uint64(size)).astype(np.int64), minlength=tensor.numel())
                found[f"{i} {name}"] = torch.from_numpy(counts).view(tensor.shape)
        return found


def _masked(pointers: Any, mask: Any) -> tuple[np.ndarray, int]:
    """The addresses that a load or store really touches, and the bytes of an element."""
    size = pointers.get_element_ty().primitive_bitwidth // 8 or 1
    return pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.uint64), size


@contextmanager
def counting(*, watch: bool = False, progress: Callable[[str, int, int], None] | None = None) -> Iterator[Counts]:
    """Counts what is launched inside. The kernels must have been imported in interpreter mode."""
    counts = Counts(watch, progress)
    interpreter: Any = InterpreterBuilder
    before = interpreter.create_masked_load, interpreter.create_masked_store, interpreter.set_grid_idx
    load, store, begin = before
    run = launch.run

    def counted_load(builder: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        counts.load(pointers, mask)
        return load(builder, pointers, mask, *rest)

    def counted_store(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        counts.store(pointers, mask)
        return store(builder, pointers, value, mask, *rest)

    def counted_program(builder: Any, *index: int) -> None:
        counts.program()
        begin(builder, *index)

    def counted_run(kernel: Any, *rest: Any) -> None:
        counts.launched(kernel, *rest)
        run(kernel, *rest)

    interpreter.create_masked_load, interpreter.create_masked_store = counted_load, counted_store
    interpreter.set_grid_idx, launch.run = counted_program, counted_run
    try:
        yield counts
    finally:
        interpreter.create_masked_load, interpreter.create_masked_store, interpreter.set_grid_idx = before
        launch.run = run
