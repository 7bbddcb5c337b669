"""Finds races in kernels that run in Triton's interpreter: places that two threads or programs reach without order.

The interpreter runs a program's operations one behind the other, and programs as well; a GPU runs warps and programs
side by side. Inside `watching()` every access is held against those made before it in the same launch:

- of one program: a load and a store of one place, or two stores, with no `debug_barrier` between. They are in order
  where one thread makes both. That is so where both blocks of pointers have one shape and the place stands at the same
  position in both: the compiler gives them one layout. Another shape or position is another thread, and so is one
  block that has the place twice. A block of fewer elements than threads is loaded by several threads, of which one
  stores: then a load in front of a store is in order only if it is the one load of the place, made by the function that
  stores or by one that it calls, for nothing else is made of what the others loaded.
- of two programs: a load and a store, or two stores. They are in order where the first program came to an atomic
  counter behind a barrier, the second one came to the same counter later, and a barrier stands between that and its
  access (`kernels/total.py`). So are stores of the bits that are there already, whoever comes first; a program that
  stores them and then loads reads what it stored.

What atomics reach is theirs. Of several programs that read or write a place the first and the last are remembered.
"""

from __future__ import annotations

import ctypes
import linecache
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Race(NamedTuple):
    """Two accesses that nothing orders; a place is "file.function:line" of a kernel."""

    kernel: str
    kinds: str  # "load, store of one program" and so on
    first: str
    second: str


class Access(NamedTuple):
    """One load or store. Epochs lie between two barriers, and are counted through all programs of a launch."""

    program: int
    epoch: int
    shape: tuple[int, ...]
    small: bool  # fewer elements than threads
    stores: bool
    stack: tuple[str, ...]  # functions of the kernel that are running, the innermost first
    line: int

    @property
    def place(self) -> str:
        return f"{self.stack[0]}:{self.line}"

    def in_order_with(self, later: Access) -> bool:
        """Of an element that stands at one position in both."""
        if self.shape != later.shape:
            return False
        if not self.small:
            return True
        # other threads' values go nowhere where the function that read them is the one that stores them
        ends = "inner.push" if later.stack[:2] == ("inner.pushed", "inner.push") else later.stack[0]
        return later.stores and (self.stores or ends in self.stack)


class Touched:
    """Of each element of a storage: who loaded it, or who stored it."""

    def __init__(self, count: int) -> None:
        self.first, self.last = np.full(count, -1), np.full(count, -1)  # number of the access
        self.position = np.full(count, -1)  # in the last access's block of pointers
        self.several = np.full(count, -1)  # epoch in which several threads did

    def by_others(self, at: np.ndarray, positions: np.ndarray, mine: Access, accesses: list[Access]) -> np.ndarray:
        """Which elements another thread of the same program reached in the present epoch."""
        last, found = self.last[at], self.several[at] == mine.epoch
        for number in np.unique(last[last >= 0]).tolist():
            if accesses[number].epoch == mine.epoch:
                in_order = (self.position[at] == positions) & accesses[number].in_order_with(mine)
                found |= (last == number) & ~in_order
        return found

    def add(self, at: np.ndarray, positions: np.ndarray, number: int, accesses: list[Access]) -> bool:
        """Adds the last of the accesses. Whether it reaches some element twice."""
        epoch = accesses[number].epoch
        self.several[at[self.by_others(at, positions, accesses[number], accesses)]] = epoch
        self.first[at] = np.where(self.first[at] < 0, number, self.first[at])
        self.last[at], self.position[at] = number, positions
        twice = self.position[at] != positions
        self.several[at[twice]] = epoch
        return bool(twice.any())


@dataclass
class Watch:
    """The races found so far. Barriers are taken out whose place or line of code has the text `without`."""

    without: str | None = None
    races: set[Race] = field(default_factory=set)
    launches: set[str] = field(default_factory=set)
    taken_out: int = 0
    _kernel: str = ""
    _threads: int = 0
    _program: int = -1
    _epoch: int = 0
    _accesses: list[Access] = field(default_factory=list)
    _storages: dict[int, int] = field(default_factory=dict)
    _touched: dict[tuple[int, int, str], Touched] = field(default_factory=dict)
    _arrivals: dict[int, dict[int, tuple[int, int]]] = field(default_factory=lambda: defaultdict(dict))
    """By program and counter: the epochs of its first and of its last arrival."""

    def launched(self, kernel: str, threads: int, storages: dict[int, int]) -> None:
        """A new launch on storages of so many bytes, by their addresses."""
        self.launches.add(kernel)
        self._threads = threads
        self._kernel, self._storages, self._program, self._epoch, self._accesses = kernel, storages, -1, 0, []
        self._touched.clear()
        self._arrivals.clear()

    def program(self) -> None:
        self._program += 1
        self._epoch += 1

    def barrier(self) -> None:
        function, file, line = _stack()[0]
        if self.without is not None and self.without in f"{function}:{line} {linecache.getline(file, line)}":
            self.taken_out += 1
        else:
            self._epoch += 1

    def load(self, pointers: Any, mask: Any) -> None:
        self._reached("load", pointers, mask)

    def store(self, pointers: Any, value: Any, mask: Any) -> None:
        self._reached("store", pointers, mask, value)

    def atomic(self, pointers: Any, mask: Any) -> None:
        """An arrival at a counter."""
        mine = self._arrivals[self._program]
        for address in _reached(pointers, mask)[0].tolist():
            mine[address] = (mine.get(address, (self._epoch,))[0], self._epoch)

    def _reached(self, kind: str, pointers: Any, mask: Any, value: Any = None) -> None:
        addresses, positions, size = _reached(pointers, mask)
        counters = {counter for arrivals in self._arrivals.values() for counter in arrivals}
        if counters:
            theirs = np.isin(addresses, np.array([*counters], np.uint64))
            addresses, positions = addresses[~theirs], positions[~theirs]
        if not addresses.size:
            return
        start = next(s for s, n in self._storages.items() if s <= addresses[0] < s + n)
        at = (addresses - np.uint64(start)).astype(np.int64) // size
        number, small, stack = len(self._accesses), pointers.data.size < self._threads, _stack()
        names = tuple(call.function for call in stack)
        shape, line = pointers.data.shape, stack[0].line
        mine = Access(self._program, self._epoch, shape, small, kind == "store", names, line)
        self._accesses.append(mine)
        for other in ("load", "store") if kind == "store" else ("store",):
            if (start, size, other) in self._touched:
                touched = self._touched[start, size, other]
                self._compare_threads(touched, f"{other}, {kind}", at, positions, mine)
                new = at[~_kept(start, size, at, positions, value)] if kind == "store" else self._not_own(touched, at)
                self._compare_programs(touched, f"{other}, {kind}", new, mine)
        own = self._touched.setdefault((start, size, kind), Touched(-(-self._storages[start] // size)))
        if own.add(at, positions, number, self._accesses) and kind == "store":
            self._found("store of one element twice", mine, mine)

    def _compare_threads(
        self, touched: Touched, kinds: str, at: np.ndarray, positions: np.ndarray, mine: Access
    ) -> None:
        others = touched.by_others(at, positions, mine, self._accesses)
        for number in np.unique(touched.last[at[others]]).tolist():
            self._found(f"{kinds} of one program", self._accesses[number], mine)

    def _not_own(self, stored: Touched, at: np.ndarray) -> np.ndarray:
        """Elements that this program was not the last to store."""
        numbers = np.unique(stored.last[at]).tolist()
        own = [number for number in numbers if number >= 0 and self._accesses[number].program == self._program]
        return at[~np.isin(stored.last[at], own)]

    def _compare_programs(self, touched: Touched, kinds: str, at: np.ndarray, mine: Access) -> None:
        for number in np.unique((touched.first[at], touched.last[at])).tolist():
            before = self._accesses[number]
            if number >= 0 and before.program != mine.program and not self._in_order(before, mine):
                self._found(f"{kinds} of two programs", before, mine)

    def _in_order(self, before: Access, after: Access) -> bool:
        """Whether a counter orders accesses of two programs."""
        first, second = self._arrivals[before.program], self._arrivals[after.program]
        return any(before.epoch < first[c][1] and second[c][0] < after.epoch for c in first.keys() & second.keys())

    def _found(self, kinds: str, first: Access, second: Access) -> None:
        self.races.add(Race(self._kernel, kinds, first.place, second.place))


def _kept(start: int, size: int, at: np.ndarray, positions: np.ndarray, value: Any) -> np.ndarray:
    """Which elements hold the bits already that are stored to them, at positions of a block of values."""
    bits = np.dtype(f"u{size}")
    memory = np.ctypeslib.as_array(ctypes.cast(start, ctypes.POINTER(ctypes.c_uint8)), ((int(at.max()) + 1) * size,))
    values = np.ascontiguousarray(value.data).reshape(-1)
    if values.dtype.itemsize != size:
        return np.zeros(at.size, bool)
    return memory.view(bits)[at] == values.view(bits)[positions if values.size > 1 else 0]


def _reached(pointers: Any, mask: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """Addresses that an access really reaches, their positions in its block, and the bytes of an element."""
    inside = np.broadcast_to(mask.data, pointers.data.shape).reshape(-1)
    size = pointers.get_element_ty().primitive_bitwidth // 8 or 1
    return pointers.data.reshape(-1)[inside].astype(np.uint64), np.flatnonzero(inside), size


class _Call(NamedTuple):
    """A kernel's function that is running, "file.function", and the line in its file."""

    function: str
    file: str
    line: int


def _stack() -> list[_Call]:
    """Calls of the kernel that runs, the innermost first. Its files lie in a folder `kernels`."""
    found, frame = [], sys._getframe(1)
    while frame is not None and Path(frame.f_code.co_filename).stem != "launch":
        path = Path(frame.f_code.co_filename)
        if path.parent.name == "kernels" and path.stem != "counts":
            found.append(_Call(f"{path.stem}.{frame.f_code.co_name}", str(path), frame.f_lineno))
        frame = frame.f_back
    return found


@contextmanager
def watching(*, without: str | None = None) -> Iterator[Watch]:
    """Watches what is launched inside. The kernels must have been imported in interpreter mode."""
    from fastmeta.kernels import launch
    from fastmeta.kernels.counts import _hooked, _then, tensors_of

    watch = Watch(without)

    def watched(kernel: Any, label: str, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        storages = (tensor.untyped_storage() for tensor in tensors_of(args))
        threads = 32 * options.get("num_warps", 4)
        watch.launched(kernel.__name__, threads, {storage.data_ptr(): storage.nbytes() for storage in storages})
        run(kernel, label, grid, args, options)

    hooks: dict[str, Callable[[Any], Any]] = {
        "create_masked_load": _then(watch.load, 0, 1), "create_masked_store": _then(watch.store, 0, 1, 2),
        "create_atomic_rmw": _then(watch.atomic, 1, 3), "create_barrier": _then(watch.barrier),
        "set_grid_idx": _then(watch.program),
    }  # fmt: skip
    with launch.through(watched) as run, _hooked(hooks):
        yield watch
