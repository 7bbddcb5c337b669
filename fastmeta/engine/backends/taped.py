"""Meta-steps on kernels whose launches are kept: from the second on they are made again, on memory that stays.

Between the first line of a backend's and the last launch lie thousands of lines of Python for each meta-step of a
convolutional network, and what they come to is the same every time. A tape holds it. What the launches read is copied
into the tape's memory, and what the user keeps is copied out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor

from fastmeta.internals import copy_all
from fastmeta.kernels.launch import Tape, can_be_taped  # pyright: ignore[reportMissingImports]  # mapped by setup.py

from .turns import Turns

MOST_MEMORY = 1 / 8
"""Of a GPU's, that the tapes of a process hold together. A meta-step that needs more takes a GPU so long that nobody
waits for Python."""

_alive: WeakSet[Tape] = WeakSet()

R = TypeVar("R")  # what launches read
S = TypeVar("S")  # what they leave
T = TypeVar("T")


class Memory(NamedTuple, Generic[R]):
    """Where a tape's launches read: as they read it, and the tensors in it, into which a meta-step's own are copied."""

    read: R
    tensors: list[Tensor]


class _Kept(NamedTuple, Generic[S]):
    tape: Tape
    together: list[tuple[int, Tensor]]  # places in the list of what is read, and where it goes, in one launch
    apart: list[tuple[int, Tensor]]
    left: S

    def take(self, tensors: Sequence[Tensor]) -> None:
        """Copies what is read into the tape's memory."""
        copy_all([into for _, into in self.together], [tensors[i] for i, _ in self.together])
        for i, into in self.apart:
            into.copy_(tensors[i])


class Tapes(Generic[R, S]):
    """Those of one backend's meta-step, with and without the meta-gradient, each kept at the second call of its kind.

    Args:
        device: where it runs.
        memory: room for what is read, given tensors like it.
        launches: what is kept; (what is read, whether with the meta-gradient) → what they leave.
    """

    def __init__(
        self, device: torch.device, memory: Callable[[Sequence[Tensor]], Memory[R]], launches: Callable[[R, bool], S]
    ) -> None:
        self._device, self._memory, self._launches = device, memory, launches
        self._turns = Turns(device)
        self._kept: dict[bool, _Kept[S] | None] = {}  # None: seen once
        self._never = False

    def run(self, tensors: Sequence[Tensor], finish: Callable[[S], T], *, keep: bool) -> T | None:
        """`finish` of what the launches leave, in memory that the next meta-step overwrites; None: not this time."""
        if self._never or not can_be_taped() or _capturing(self._device):
            return None
        with self._turns:
            if keep not in self._kept:
                self._kept[keep] = None
                return None
            kept = self._kept[keep]
            if kept is not None:
                kept.take(tensors)
                kept.tape.play()
                return finish(kept.left)
            try:
                kept = self._record(tensors, keep=keep)
            except torch.OutOfMemoryError:
                self._give_up()
                return None
            ended = finish(kept.left)
            if self._too_much():
                self._give_up()
            return ended

    def _record(self, tensors: Sequence[Tensor], *, keep: bool) -> _Kept[S]:
        with torch.inference_mode(False), torch.no_grad():  # whatever mode later meta-steps are made in
            memory, tape = self._memory(tensors), Tape(self._device)
            together: list[tuple[int, Tensor]] = []
            others: list[tuple[int, Tensor]] = []
            for pair in enumerate(memory.tensors):  # one launch takes tensors of one dtype that lie alike
                alike = pair[1].is_floating_point() and tensors[pair[0]].is_contiguous()
                (together if alike else others).append(pair)
            kept = _Kept(tape, together, others, None)
            kept.take(tensors)
            with tape.recording():
                left = self._launches(memory.read, keep)
        _alive.add(tape)
        kept = self._kept[keep] = _Kept(tape, together, others, left)
        return kept

    def _too_much(self) -> bool:
        if self._device.type != "cuda":
            return False
        held = sum(tape.bytes for tape in _alive if tape.device == self._device)
        return held > MOST_MEMORY * torch.cuda.get_device_properties(self._device).total_memory

    def _give_up(self) -> None:
        self._never = True
        self._kept.clear()


def _capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is recorded, which has memory of its own."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
