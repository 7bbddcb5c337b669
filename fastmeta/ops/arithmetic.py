"""Sums and products of tensors, with PyTorch's broadcasting inside a task: a [T, ...] ∘ b [T, ...]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .base import Bilinear, Factors, FactorsDot, LinearMap, MaybeTensors, Needs, Op, Shape, total


def align(x: Tensor, ndim: int) -> Tensor:
    """Adds the dimensions that broadcasting wants behind the task dimension instead of in front of it."""
    return x.reshape(x.shape[0], *(1,) * (ndim - x.dim()), *x.shape[1:]) if x.dim() < ndim else x


def unbroadcast(d: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sums a cotangent over the dimensions along which a value [T, ...] of `shape` was repeated."""
    wide = (shape[0], *(1,) * (d.dim() - len(shape)), *shape[1:])
    dims = [i for i in range(1, d.dim()) if wide[i] == 1 and d.shape[i] != 1]
    if dims:
        d = d.sum(dims, keepdim=True)
    return d.reshape(shape)


class Shapes(NamedTuple):
    """Of Add's inputs and output, [T, ...] each."""

    a: Shape
    b: Shape
    y: Shape


@dataclass(frozen=True)
class Add(Op[Shapes, None]):
    """a + scale · b."""

    scale: float = 1.0

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Shapes]:
        a, b = inputs
        ndim = max(a.dim(), b.dim())
        y = align(a, ndim).add(align(b, ndim), alpha=self.scale)
        return y, Shapes(tuple(a.shape), tuple(b.shape), tuple(y.shape))

    def backward(self, saved: Shapes, dy: Tensor, needs: Needs) -> MaybeTensors:
        a_shape, b_shape, _ = saved
        da = unbroadcast(dy, a_shape) if needs[0] else None
        db = unbroadcast(dy if self.scale == 1 else dy * self.scale, b_shape) if needs[1] else None
        return da, db

    def forward_dot(self, saved: Shapes, inputs_dot: MaybeTensors) -> tuple[Tensor, None]:
        _, _, shape = saved
        a_dot, b_dot = (None if d is None else align(d, len(shape)) for d in inputs_dot)
        y_dot = total(a_dot, b_dot if b_dot is None or self.scale == 1 else b_dot * self.scale)
        assert y_dot is not None, "an op without any tangent is not swept"
        return y_dot.expand(shape), None

    def backward_dot(self, saved: Shapes, saved_dot: None, dy: Tensor, dy_dot: Tensor, needs: Needs) -> MaybeTensors:
        return self.backward(saved, dy_dot, needs)


class Mul(Bilinear):
    """a · b, elementwise."""

    def product(self, x: Tensor, w: Tensor) -> Tensor:
        ndim = max(x.dim(), w.dim())
        return align(x, ndim) * align(w, ndim)

    def product_backward(
        self, dy: Tensor, x: Tensor, w: Tensor, need_x: bool, need_w: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        dx = dy * align(w, dy.dim()) if need_x else None
        dw = dy * align(x, dy.dim()) if need_w else None
        return dx, dw

    def backward(self, saved: Factors, dy: Tensor, needs: Needs) -> MaybeTensors:
        return self._narrow(saved, super().backward(saved, dy, needs))

    def backward_dot(
        self, saved: Factors, saved_dot: FactorsDot, dy: Tensor, dy_dot: Tensor, needs: Needs
    ) -> MaybeTensors:
        return self._narrow(saved, super().backward_dot(saved, saved_dot, dy, dy_dot, needs))

    @staticmethod
    def _narrow(saved: Factors, ds: MaybeTensors) -> MaybeTensors:
        return tuple(None if d is None else unbroadcast(d, tuple(v.shape)) for d, v in zip(ds, saved, strict=True))


@dataclass(frozen=True)
class Scale(LinearMap):
    """x · factor with a plain number."""

    factor: float

    def apply(self, x: Tensor) -> Tensor:
        return x * self.factor

    def transpose(self, shape: tuple[int, ...], dy: Tensor) -> Tensor:
        return dy * self.factor


@dataclass(frozen=True)
class Shift(Op[None, None]):
    """x + offset with a plain number."""

    offset: float

    def forward(self, *inputs: Tensor) -> tuple[Tensor, None]:
        return inputs[0] + self.offset, None

    def backward(self, saved: None, dy: Tensor, needs: Needs) -> MaybeTensors:
        return (dy,)

    def forward_dot(self, saved: None, inputs_dot: MaybeTensors) -> tuple[Tensor, None]:
        assert inputs_dot[0] is not None, "an op without any tangent is not swept"
        return inputs_dot[0], None

    def backward_dot(self, saved: None, saved_dot: None, dy: Tensor, dy_dot: Tensor, needs: Needs) -> MaybeTensors:
        return (dy_dot,)
