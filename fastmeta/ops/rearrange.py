"""Linear maps that repeat, turn, shift, mask, pad or add up elements of x [T, ...]. Dimensions are a task's own."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .arithmetic import align, unbroadcast
from .base import LinearMap, Shape


@dataclass(frozen=True)
class Expand(LinearMap):
    """expand, broadcast_to: a view of `shape`."""

    shape: tuple[int, ...]

    def apply(self, x: Tensor) -> Tensor:
        return align(x, len(self.shape) + 1).expand(x.shape[0], *self.shape)

    def transpose(self, shape: Shape, dy: Tensor) -> Tensor:
        return unbroadcast(dy, shape)


@dataclass(frozen=True)
class Repeat(LinearMap):
    """Copies side by side: `times` in each dimension, of which there may be more than x has."""

    times: tuple[int, ...]

    def apply(self, x: Tensor) -> Tensor:
        return align(x, len(self.times) + 1).repeat(1, *self.times)

    def transpose(self, shape: Shape, dy: Tensor) -> Tensor:
        sizes = (1,) * (len(self.times) + 1 - len(shape)) + shape[1:]
        split = [n for pair in zip(self.times, sizes, strict=True) for n in pair]
        return dy.reshape(shape[0], *split).sum(list(range(1, 2 * len(sizes), 2))).reshape(shape)


@dataclass(frozen=True)
class Flip(LinearMap):
    """Elements in the opposite order along `dims`."""

    dims: tuple[int, ...]

    def apply(self, x: Tensor) -> Tensor:
        return x.flip([d + 1 for d in self.dims])

    def transpose(self, shape: Shape, dy: Tensor) -> Tensor:
        return self.apply(dy)


@dataclass(frozen=True)
class Roll(LinearMap):
    """Elements moved by `shifts` along `dims`; what leaves at one end comes in at the other."""

    shifts: tuple[int, ...]
    dims: tuple[int, ...]

    def apply(self, x: Tensor) -> Tensor:
        return x.roll(self.shifts, [d + 1 for d in self.dims])

    def transpose(self, shape: Shape, dy: Tensor) -> Tensor:
        return dy.roll([-s for s in self.shifts], [d + 1 for d in self.dims])


@dataclass(frozen=True)
class Triangle(LinearMap):
    """triu or tril of the last two dimensions."""

    upper: bool
    diagonal: int

    def apply(self, x: Tensor) -> Tensor:
        return x.triu(self.diagonal) if self.upper else x.tril(self.diagonal)

    def transpose(self, shape: Shape, dy: Tensor) -> Tensor:
        return self.apply(dy)


@dataclass(frozen=True)
class CumulativeSum(LinearMap):
    """cumsum along `dim`."""

    dim: int

    def apply(self, x: Tensor) -> Tensor:
        return x.cumsum(self.dim + 1)

    def transpose(self, shape: Shape, dy: Tensor) -> Tensor:
        return dy.flip(self.dim + 1).cumsum(self.dim + 1).flip(self.dim + 1)


@dataclass(frozen=True)
class Pad(LinearMap):
    """Zeros around the last dimensions: `widths` as F.pad counts them, negative ones cut."""

    widths: tuple[int, ...]

    def apply(self, x: Tensor) -> Tensor:
        return F.pad(x, self.widths)

    def transpose(self, shape: Shape, dy: Tensor) -> Tensor:
        return F.pad(dy, [-w for w in self.widths])
