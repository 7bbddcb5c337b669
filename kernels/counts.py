"""What launches do to memory, counted in Triton's interpreter: bytes asked for, moved and distinct; products' FLOP.

Within `counting()` every load, store, atomic and product of every program is recorded. Asked-for bytes are what
programs name, before any cache. Moved bytes count a byte once a launch and direction: caches serve re-use within a
launch, and between launches data goes through memory. Distinct ones count once in all. An access outside of a launch's
tensors is an error.
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

Maps = dict[int, np.ndarray]
"""By width of access in bytes: which of a storage's elements of that width were touched."""


class Memory:
    """The storage of a launch's tensors: which of it was touched, in this launch and ever."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor  # kept alive, or an address might be given out twice
        self.start, self.size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        self.loaded: Maps = {}
        self.stored: Maps = {}
        self.ever: Maps = {}

    def touch(self, addresses: np.ndarray, size: int, *directions: Maps) -> None:
        at = (addresses - np.uint64(self.start)) >> np.uint64(size.bit_length() - 1)
        for touched in directions:
            if size not in touched:
                touched[size] = np.zeros(-(-self.size // size), bool)
            touched[size][at] = True

    def end_of_launch(self) -> tuple[int, int]:
        """Distinct bytes loaded and stored since the last one ended."""
        moved = _bytes(self.loaded), _bytes(self.stored)
        for touched in (self.loaded, self.stored):
            for size, elements in touched.items():
                self.ever[size] = self.ever[size] | elements if size in self.ever else elements
            touched.clear()
        return moved


def _bytes(touched: Maps) -> int:
    return sum(size * int(np.count_nonzero(elements)) for size, elements in touched.items())


@dataclass
class Moved:
    """One launch: the arguments' storages (address, bytes), distinct bytes of each loaded and stored, FLOP."""

    name: str
    phase: str
    programs: int
    arguments: list[tuple[int, int]]
    loaded: dict[int, int] = field(default_factory=dict)
    stored: dict[int, int] = field(default_factory=dict)
    flop: int = 0

    def bytes(self, wanted: Callable[[int], bool] = lambda _: True) -> int:
        """Moved both ways, of the storages whose address is wanted."""
        both = (*self.loaded.items(), *self.stored.items())
        return sum(moved for start, moved in both if wanted(start))


@dataclass
class Counts:
    """Launches in order; bytes asked for; the tensors that hold φ_1 … φ_K; memory touched.

    `watch` keeps every store apart, for `times_written`; `progress` is told the launch, its programs run and in all.
    `phase` may be set between launches, and stands in the records of those that follow.
    """

    watch: bool = False
    progress: Callable[[str, int, int], None] | None = None
    phase: str = ""
    records: list[Moved] = field(default_factory=list)
    loaded: int = 0
    stored: int = 0
    trajectory: list[Tensor] = field(default_factory=list)
    _memory: dict[int, Memory] = field(default_factory=dict)
    _here: list[Memory] = field(default_factory=list)  # of the present launch
    _written: list[list[np.ndarray]] = field(default_factory=list)  # of each launch
    _done: int = 0

    @property
    def launches(self) -> list[str]:
        return [record.name for record in self.records]

    def launched(
        self, kernel: Any, label: str, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        record = record_of(kernel, label, grid, args, self.phase)
        self.records.append(record)
        self._written.append([])
        self._done = 0
        for tensor in tensors_of(args):
            if tensor.untyped_storage().data_ptr() not in self._memory:
                memory = Memory(tensor)
                self._memory[memory.start] = memory
        self._here = [self._memory[start] for start in dict(record.arguments)]
        if kernel.__name__ == "adapt_kernel":
            self._steps_to(args[0][:-1])
        elif options.get("SINK") == "step":
            self._steps_to(args[kernel.arg_names.index("p_to")])

    def ended(self) -> None:
        """The launch is over."""
        record = self.records[-1]
        for memory in self._here:
            record.loaded[memory.start], record.stored[memory.start] = memory.end_of_launch()

    def _steps_to(self, phi: Tensor) -> None:
        if all(phi.data_ptr() != known.data_ptr() for known in self.trajectory):
            self.trajectory.append(phi)

    def program(self) -> None:
        self._done += 1
        if self.progress is not None:
            self.progress(self.records[-1].name, self._done, self.records[-1].programs)

    def load(self, pointers: Any, mask: Any) -> None:
        seen, size = _masked(pointers, mask)
        self.loaded += seen.size * size
        if seen.size:
            memory = self._around(seen, size)
            memory.touch(seen, size, memory.loaded)

    def store(self, pointers: Any, mask: Any) -> None:
        seen, size = _masked(pointers, mask)
        self.stored += seen.size * size
        if seen.size:
            memory = self._around(seen, size)
            memory.touch(seen, size, memory.stored)
        if self.watch:
            self._written[-1].append(seen)

    def exchange(self, pointers: Any, mask: Any) -> None:
        """An atomic: loads and stores, and many programs may do so to one place."""
        seen, size = _masked(pointers, mask)
        self.loaded += seen.size * size
        self.stored += seen.size * size
        if seen.size:
            memory = self._around(seen, size)
            memory.touch(seen, size, memory.loaded, memory.stored)

    def product(self, a: Any, b: Any) -> None:
        self.records[-1].flop += 2 * a.data.size * b.data.shape[-1]

    def _around(self, seen: np.ndarray, size: int) -> Memory:
        first, last = int(seen.min()), int(seen.max())
        inside = (m for m in self._here if m.start <= first and last + size <= m.start + m.size)
        memory = next(inside, None)
        if memory is None:
            raise RuntimeError(f"{self.records[-1].name} reaches outside of its tensors")
        return memory

    def moved(self) -> int:
        """Distinct bytes loaded and distinct bytes stored of each launch, of all launches together."""
        return sum(record.bytes() for record in self.records)

    def distinct(self) -> int:
        """Distinct bytes touched outside the trajectory."""
        touched = {start: {n: m.copy() for n, m in memory.ever.items()} for start, memory in self._memory.items()}
        for phi in self.trajectory:
            start = phi.untyped_storage().data_ptr()
            at, end = phi.data_ptr() - start, phi.data_ptr() - start + phi.numel() * phi.element_size()
            for size, elements in touched[start].items():
                elements[at // size : end // size] = False
        return sum(map(_bytes, touched.values()))

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


def tensors_of(args: tuple[Any, ...]) -> Iterator[Tensor]:
    """The tensors among a launch's arguments, those inside tuples too."""
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, tuple):
            yield from tensors_of(arg)


def record_of(kernel: Any, label: str, grid: tuple[int, ...], args: tuple[Any, ...], phase: str) -> Moved:
    """A launch of which nothing is counted yet."""
    storages = [tensor.untyped_storage() for tensor in tensors_of(args)]
    arguments = [(storage.data_ptr(), storage.nbytes()) for storage in storages]
    return Moved(f"{kernel.__name__} {label}".rstrip(), phase, int(np.prod(grid)), arguments)


def _masked(pointers: Any, mask: Any) -> tuple[np.ndarray, int]:
    """The addresses that a load or store really touches, and the bytes of an element."""
    size = pointers.get_element_ty().primitive_bitwidth // 8 or 1
    return pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.uint64, copy=False), size


@contextmanager
def _hooked(hooks: dict[str, Callable[[Any], Any]]) -> Iterator[None]:
    """Inside, methods of the interpreter are what each hook makes of them."""
    interpreter: Any = InterpreterBuilder
    before = {name: getattr(interpreter, name) for name in hooks}
    for name, hook in hooks.items():
        setattr(interpreter, name, hook(before[name]))
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(interpreter, name, method)


def _then(note: Callable[..., None], *places: int) -> Callable[[Any], Any]:
    """A hook that tells `note` the arguments at some places, then does what was done before."""

    def hook(method: Any) -> Any:
        def hooked(builder: Any, *args: Any) -> Any:
            note(*(args[i] for i in places))
            return method(builder, *args)

        return hooked

    return hook


@contextmanager
def counting(*, watch: bool = False, progress: Callable[[str, int, int], None] | None = None) -> Iterator[Counts]:
    """Counts what is launched inside. The kernels must have been imported in interpreter mode."""
    counts = Counts(watch, progress)
    run = launch.run

    def counted_run(kernel: Any, *rest: Any) -> None:
        counts.launched(kernel, *rest)
        run(kernel, *rest)
        counts.ended()

    hooks = {  # places differ between Triton's versions behind these only
        "create_masked_load": _then(counts.load, 0, 1), "create_masked_store": _then(counts.store, 0, 2),
        "create_atomic_rmw": _then(counts.exchange, 1, 3), "create_dot": _then(counts.product, 0, 1),
        "set_grid_idx": _then(counts.program),
    }  # fmt: skip
    launch.run = counted_run
    try:
        with _hooked(hooks):
            yield counts
    finally:
        launch.run = run


@contextmanager
def listing() -> Iterator[Counts]:
    """Launches and their arguments only; nothing runs."""
    counts = Counts()
    run = launch.run
    launch.run = counts.launched
    try:
        yield counts
    finally:
        launch.run = run
