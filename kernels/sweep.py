"""What travels through the sweeps of `layerwise.py`: values and their tangents, weights, and where gradients go."""

from __future__ import annotations

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
    """φ of all tasks and the direction v of a sweep of tangents; rows of φ are `row` values apart: P, or 0 at θ."""

    phi: Dual
    row: int


class Sink(NamedTuple):
    """Where parameters' gradients go (`sink.py`): what a kernel is told of it."""

    tensors: tuple[Tensor, ...]  # to, with, state and next, in rows of all tasks; learning rates; the schedule's row
    ends: tuple[int, int]  # 1 in the first and in the last inner step
    options: dict[str, Any]


class Before(NamedTuple):
    """The pre-activations z = x that a cotangent dx is to belong to: dx f'(z) is handed back, with the f given."""

    z: Dual
    act: Act
