"""Writes in place, said without writing: a new value for what was written, and for every view of the same memory.

Tensors that share memory are places in one row, the memory in its order. A write through one of them makes another
row; any other is read out of that row from then on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from fastmeta.internals import storage_of, without_fake_tensors

from .trace import Untraceable, Value


def read_places(row: Tensor, places: Tensor) -> Tensor:
    """Elements of a memory [size], in the shape of `places`."""
    return row.reshape(-1)[places]


def write_places(row: Tensor, places: Tensor, x: Tensor) -> Tensor:
    """The memory [size] with x written to `places`."""
    return row.reshape(-1).index_put((places.reshape(-1),), x.reshape(-1))


class Notes(Protocol):
    """What of a recorder is asked for."""

    def known(self, tensor: Tensor) -> Value | None:
        """What was noted of a tensor last."""
        ...

    def give(self, tensor: Tensor, *, stored: Tensor | None = None, fresh: bool = False) -> Value:
        """A value that is there before the next call."""
        ...

    def record(self, function: Callable[..., Tensor], args: tuple[Any, ...], like: Tensor, *, gradient: bool) -> Value:
        """Notes a call of our own."""
        ...


class _Memory:
    """What is known of one storage."""

    def __init__(self) -> None:
        self.views: dict[int, Tensor] = {}
        self.written = 0  # how often
        self.row: Value | None = None  # all of it, after the last write; None: no view covers it
        self.fresh: dict[int, tuple[int, Value]] = {}  # of a view: its value, and after how many writes


class Storages:
    """Which tensors share memory, and what was written to it."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._memories: dict[int, _Memory] = {}
        self._places: dict[tuple[Any, ...], Value] = {}

    def saw(self, tensor: Tensor) -> None:
        """A tensor was made, or given."""
        memory = self._memories.setdefault(storage_of(tensor), _Memory())
        memory.views[id(tensor)] = tensor
        if memory.written:
            value = self._notes.known(tensor)
            assert value is not None
            memory.fresh[id(tensor)] = (memory.written, value)

    def now(self, tensor: Tensor, value: Value) -> Value:
        """What a tensor holds, `value` at first.

        Raises:
            Untraceable: its memory was written through a view, and no tensor that was seen covers all of it.
        """
        memory = self._memories[storage_of(tensor)]
        if not memory.written:
            return value
        at, known = memory.fresh.get(id(tensor), (0, value))
        if at == memory.written:
            return known
        if memory.row is None:
            raise Untraceable("it writes in place through a view of a tensor that the run does not see whole")
        if _covers(tensor):
            found = self._notes.record(torch.reshape, (memory.row, tuple(tensor.shape)), tensor,
                                       gradient=tensor.requires_grad)  # fmt: skip
        else:
            found = self._notes.record(
                read_places, (memory.row, self._index(tensor)), tensor, gradient=tensor.requires_grad
            )
        memory.fresh[id(tensor)] = (memory.written, found)
        return found

    def wrote(self, tensor: Tensor, value: Value) -> None:
        """A call wrote into a tensor, which is `value` now.

        Raises:
            Untraceable: it wrote behind autograd's back, through a detached view of a tensor that has a gradient.
        """
        memory = self._memories[storage_of(tensor)]
        if not tensor.requires_grad and any(view.requires_grad for view in memory.views.values()):
            raise Untraceable("it writes through a detached view into a tensor whose gradient stays as it was")
        if _covers(tensor):
            memory.row = value
        elif len(memory.views) > 1:
            row = self._row_before(memory)
            if row is not None:
                given, gradient = (row, self._index(tensor), value), value.gradient or row.gradient
                row = self._notes.record(write_places, given, row.like.reshape(-1), gradient=gradient)
            memory.row = row
        else:
            memory.row = None
        memory.written += 1
        memory.fresh[id(tensor)] = (memory.written, value)

    def _row_before(self, memory: _Memory) -> Value | None:
        """All of a memory before a write that is being noted: what covers it, or covered it at the last write."""
        if memory.written:
            return memory.row
        for view in memory.views.values():
            if _covers(view):
                return self._notes.known(view)
        return None

    def _index(self, tensor: Tensor) -> Value:
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        key = (size, tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.device)
        if key not in self._places:
            with without_fake_tensors():
                places = torch.arange(size, device=tensor.device).as_strided(*key[1:4]).contiguous()
            self._places[key] = self._notes.give(places, stored=places, fresh=True)
        return self._places[key]


def _covers(tensor: Tensor) -> bool:
    """Whether it is all of its memory, in order."""
    nbytes = tensor.untyped_storage().nbytes()
    return tensor.is_contiguous() and tensor.numel() * tensor.element_size() == nbytes
