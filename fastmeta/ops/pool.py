"""Pooling of x [T, N, C, H, W]: maximum (the first of equal elements in row-major order, as PyTorch) and mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import LinearMap, MaybeTensors, Needs, Op, Shape

_aten = torch.ops.aten
Pair = tuple[int, int]


class Winners(NamedTuple):
    """What a forward sweep leaves: which element of its image each window took, and x's shape."""

    index: Tensor  # [T·N, C, H', W'] int64
    shape: Shape


@dataclass(frozen=True)
class MaxPool2d(Op[Winners, None]):
    """Linear once the winners are known, so the tangent gathers and the cotangent scatters at their indices."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    ceil_mode: bool

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Winners]:
        (x,) = inputs
        flat = x.flatten(0, 1)
        y, index = _aten.max_pool2d_with_indices(
            flat, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode
        )
        return y.unflatten(0, x.shape[:2]), Winners(index, x.shape)

    def _scatter(self, saved: Winners, dy: Tensor) -> Tensor:
        index, shape = saved
        # the operator reads only the shape of its input
        x = dy.new_empty(()).expand(shape[0] * shape[1], *shape[2:])
        dx = _aten.max_pool2d_with_indices_backward(
            dy.flatten(0, 1), x, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode, index
        )
        return dx.unflatten(0, shape[:2])

    def backward(self, saved: Winners, dy: Tensor, needs: Needs) -> MaybeTensors:
        return (self._scatter(saved, dy),)

    def forward_dot(self, saved: Winners, inputs_dot: MaybeTensors) -> tuple[Tensor, None]:
        index, shape = saved
        (x_dot,) = inputs_dot
        assert x_dot is not None, "an op without any tangent is not swept"
        y_dot = x_dot.flatten(0, 1).flatten(2).gather(2, index.flatten(2))
        return y_dot.view(shape[0], shape[1], *index.shape[1:]), None

    def backward_dot(self, saved: Winners, saved_dot: None, dy: Tensor, dy_dot: Tensor, needs: Needs) -> MaybeTensors:
        return (self._scatter(saved, dy_dot),)


@dataclass(frozen=True)
class AvgPool2d(LinearMap):
    """Mean over windows; options as `F.avg_pool2d`."""

    kernel: Pair
    stride: Pair
    padding: Pair
    ceil_mode: bool
    count_include_pad: bool
    divisor: int | None

    def apply(self, x: Tensor) -> Tensor:
        y = F.avg_pool2d(
            x.flatten(0, 1),
            self.kernel,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor,
        )
        return y.unflatten(0, x.shape[:2])

    def transpose(self, shape: tuple[int, ...], dy: Tensor) -> Tensor:
        x = dy.new_empty(()).expand(shape[0] * shape[1], *shape[2:])
        dx = _aten.avg_pool2d_backward(
            dy.flatten(0, 1).contiguous(), x, self.kernel, self.stride, self.padding,
            self.ceil_mode, self.count_include_pad, self.divisor,
        )  # fmt: skip
        return dx.unflatten(0, shape[:2])
