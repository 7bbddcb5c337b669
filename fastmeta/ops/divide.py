"""Quotients of tensors, with PyTorch's broadcasting inside a task: y = a / b, a [T, ...], b [T, ...].

da = dy / b,  db = −da y;  y_dot = (a_dot − y b_dot) / b
da_dot = (dy_dot − da b_dot) / b,  db_dot = −(da_dot y + da y_dot)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .arithmetic import align, unbroadcast
from .base import MaybeTensors, Needs, Op, Shape


class Quotient(NamedTuple):
    """What a forward sweep leaves."""

    y: Tensor
    b: Tensor  # of the output's rank
    shapes: tuple[Shape, Shape]


class QuotientDot(NamedTuple):
    """What a tangent sweep leaves."""

    y_dot: Tensor
    b_dot: Tensor | None


class Div(Op[Quotient, QuotientDot]):
    """Inputs: a and b."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Quotient]:
        ndim = max(x.dim() for x in inputs)
        a, b = (align(x, ndim) for x in inputs)
        y = a / b
        return y, Quotient(y, b, (tuple(inputs[0].shape), tuple(inputs[1].shape)))

    @staticmethod
    def _narrowed(saved: Quotient, da: Tensor, db: Tensor | None, needs: Needs) -> MaybeTensors:
        a_shape, b_shape = saved.shapes
        return unbroadcast(da, a_shape) if needs[0] else None, None if db is None else unbroadcast(db, b_shape)

    def backward(self, saved: Quotient, dy: Tensor, needs: Needs) -> MaybeTensors:
        da = dy / saved.b
        return self._narrowed(saved, da, -(da * saved.y) if needs[1] else None, needs)

    def forward_dot(self, saved: Quotient, inputs_dot: MaybeTensors) -> tuple[Tensor, QuotientDot]:
        y, b, _ = saved
        a_dot, b_dot = (None if d is None else align(d, y.dim()) for d in inputs_dot)
        if b_dot is None:
            assert a_dot is not None, "an op without any tangent is not swept"
            y_dot = (a_dot / b).expand(y.shape)
        else:
            y_dot = (-(y * b_dot) if a_dot is None else torch.addcmul(a_dot, y, b_dot, value=-1)) / b
        return y_dot, QuotientDot(y_dot, b_dot)

    def backward_dot(
        self, saved: Quotient, saved_dot: QuotientDot, dy: Tensor, dy_dot: Tensor, needs: Needs
    ) -> MaybeTensors:
        (y, b, _), (y_dot, b_dot) = saved, saved_dot
        da = dy / b if b_dot is not None or needs[1] else dy
        da_dot = (dy_dot if b_dot is None else torch.addcmul(dy_dot, da, b_dot, value=-1)) / b
        db_dot = -torch.addcmul(da_dot * y, da, y_dot) if needs[1] else None
        return self._narrowed(saved, da_dot, db_dot, needs)
