"""What travels through the sweeps of `layerwise.py`: values and their tangents, weights, and where gradients go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .description import Act


class Dual(NamedTuple):
    """A value and, in a sweep of tangents, its tangent."""

    value: Tensor
    dot: Tensor | None = None

    @property
    def both(self) -> tuple[Tensor, Tensor]:
        """Two tensors for a kernel, which reads no second one where there is no tangent."""
        return self.value, self.value if self.dot is None else self.dot

    def like(self, dtype: torch.dtype | None = None) -> Dual:
        """Room for another of this shape."""
        room = torch.empty_like(self.value, dtype=dtype)
        return Dual(room, None if self.dot is None else torch.empty_like(room))


class Weights(NamedTuple):
    """φ of all tasks and the direction v of a sweep of tangents; rows of φ are `row` × 4 values apart: P, or 0 at θ."""

    phi: Dual
    row: int


class Sink(NamedTuple):
    """Where parameters' gradients go (`sink.py`): what a kernel is told of it."""

    tensors: tuple[Tensor, ...]  # to, with, state, next, in rows of all tasks; rates; the schedule's row; rows of u
    ends: tuple[int, int]  # 1 in the first and in the last inner step
    options: dict[str, Any]
    counters: Callable[[int], Tensor]  # so many zeros, which the kernels leave as zeros (`total.py`)


class Norm(NamedTuple):
    """A batch norm that asks for sums of the cotangent of its block's y [HP, WP, C]: what `channel_sums` is told."""

    z: Dual
    stats: Dual
    size: tuple[int, int]  # of y
    options: dict[str, Any]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.z.both, *self.stats.both)


class Cotangent(NamedTuple):
    """d of a stage's output, or of what its `below` names, and the shares' parts of the sums that its norm asks for."""

    d: Dual
    parts: Tensor | None = None


class Below(NamedTuple):
    """What a stage says of the cotangent that the one above makes for it.

    It has the shape of z. A cotangent dx is handed back as dx f'(z), with the f given; `norm` asks for its sums, and
    `into` is what came from other stages already, on top of which dx goes. `alone`: no other stage makes one.
    """

    z: Dual
    act: Act = Act()
    norm: Norm | None = None
    into: Dual | None = None
    alone: bool = True


NO_NORM: dict[str, Any] = {
    "SUMS": False, "HZ": 1, "WZ": 1, "G_AT": -1, "B_AT": -1, "POOL": "none", **Act().constants(),
}  # fmt: skip
"""What a kernel is told where nobody asks for sums."""
