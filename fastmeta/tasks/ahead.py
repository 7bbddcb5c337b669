"""Images of the next meta-batch, read from their file while the current one is learned from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

Draw = Callable[[int, torch.Generator], Tensor]
"""(tasks, generator) → rows of the images, int64 of any shape, on the generator's device."""


class _Next(NamedTuple):
    """A meta-batch that is read ahead.

    Attributes:
        before: the generator's state that it was drawn from.
        after: the state that drawing it left behind.
        tasks: their number.
        pixels: what the thread gives.
    """

    before: Tensor
    after: Tensor
    tasks: int
    pixels: Future[Tensor]


class ReadAhead:
    """Pixels that stay in a mapped file, and reach the device one meta-batch at a time.

    The next meta-batch is drawn with a copy of the generator, and used where the generator then stands at the copied
    state: episodes are those that a reader without foresight draws, and a resumed run draws the same.

    Args:
        images: uint8 [n, channels, H, W], in a file.
        draw: which rows a meta-batch takes.
        device: where episodes lie; through pinned memory where that is a GPU.
    """

    def __init__(self, images: Tensor, draw: Draw, device: torch.device) -> None:
        self.images, self.device = images, device
        self._draw = draw
        self._thread: ThreadPoolExecutor | None = None
        self._next: _Next | None = None
        self._stream: torch.cuda.Stream | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without its thread, which another process makes anew."""
        return {**self.__dict__, "_thread": None, "_next": None, "_stream": None}

    def pixels(self, tasks: int, generator: torch.Generator) -> Tensor:
        """uint8 [*rows, channels, H, W] of a meta-batch, on the device."""
        ahead, self._next = self._next, None
        if ahead is not None and ahead.tasks == tasks and torch.equal(ahead.before, generator.get_state()):
            generator.set_state(ahead.after)
            found = ahead.pixels.result()
        else:
            rows = self._draw(tasks, generator).cpu()
            found = self._gather(rows, self._room(rows))
        return found.to(self.device, non_blocking=True)

    def read_next(self, tasks: int, generator: torch.Generator) -> None:
        """Begin to read what `pixels` will be asked for, once the generator has made the rest of an episode."""
        before = generator.get_state()
        copy = torch.Generator(generator.device)
        copy.set_state(before)
        with self._aside():
            rows = self._draw(tasks, copy).cpu()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="fastmeta-images")
        pixels = self._thread.submit(self._gather, rows, self._room(rows))
        self._next = _Next(before, copy.get_state(), tasks, pixels)

    def _aside(self) -> contextlib.AbstractContextManager[object]:
        """A stream of its own for drawing rows on a GPU: to wait for them is not to wait for the meta-step."""
        if self.device.type != "cuda":
            return contextlib.nullcontext()
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        return torch.cuda.stream(self._stream)

    def _room(self, rows: Tensor) -> Tensor:
        """Made by the caller's thread: another one must not call CUDA while a graph is captured."""
        shape = (rows.numel(), *self.images.shape[1:])
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")

    def _gather(self, rows: Tensor, room: Tensor) -> Tensor:
        return torch.index_select(self.images, 0, rows.flatten(), out=room).unflatten(0, rows.shape)
