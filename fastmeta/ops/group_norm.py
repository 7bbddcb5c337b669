"""Group norm: x [T, N, C, ...] normalised over the channels of a group and all positions of a sample; γ, β [T, C]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .base import MaybeTensors, Needs, Op, Shape
from .norm import Norm, Normalised, NormalisedDot


class Grouped(NamedTuple):
    """What a forward sweep leaves: the norm's own values, and x's shape."""

    norm: Normalised
    shape: Shape


@dataclass(frozen=True)
class GroupNorm(Op[Grouped, NormalisedDot]):
    """Norm (norm.py) over [T, N, groups, C / groups, positions]."""

    groups: int
    channels: int
    eps: float
    affine: bool

    @property
    def _norm(self) -> Norm:
        per_group = self.channels // self.groups
        return Norm((3, 4), (1, self.groups, per_group, 1), self.eps, self.affine)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.groups, self.channels // self.groups, -1)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Grouped]:
        x, *affine = inputs
        y, saved = self._norm.forward(self._split(x), *affine)
        return y.reshape(x.shape), Grouped(saved, x.shape)

    def backward(self, saved: Grouped, dy: Tensor, needs: Needs) -> MaybeTensors:
        inner, shape = saved
        dx, *affine = self._norm.backward(inner, self._split(dy), needs)
        return (None if dx is None else dx.reshape(shape), *affine)

    def forward_dot(self, saved: Grouped, inputs_dot: MaybeTensors) -> tuple[Tensor, NormalisedDot]:
        inner, shape = saved
        x_dot, *affine_dot = inputs_dot
        split_dot = None if x_dot is None else self._split(x_dot)
        y_dot, saved_dot = self._norm.forward_dot(inner, (split_dot, *affine_dot))
        return y_dot.reshape(shape), saved_dot

    def backward_dot(
        self, saved: Grouped, saved_dot: NormalisedDot, dy: Tensor, dy_dot: Tensor, needs: Needs
    ) -> MaybeTensors:
        inner, shape = saved
        dx, *affine = self._norm.backward_dot(inner, saved_dot, self._split(dy), self._split(dy_dot), needs)
        return (None if dx is None else dx.reshape(shape), *affine)
