"""Another dtype for the same values, x [T, ...]. Tangents take the new one, cotangents the old one, as in autograd."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import MaybeTensors, Needs, Op


@dataclass(frozen=True)
class Cast(Op[torch.dtype, None]):
    """To `dtype`. Between floating types it is linear; of an integer or a bool there is no derivative."""

    dtype: torch.dtype

    def forward(self, *inputs: Tensor) -> tuple[Tensor, torch.dtype]:
        (x,) = inputs
        return x.to(self.dtype), x.dtype

    def backward(self, saved: torch.dtype, dy: Tensor, needs: Needs) -> MaybeTensors:
        return (dy.to(saved),)

    def forward_dot(self, saved: torch.dtype, inputs_dot: MaybeTensors) -> tuple[Tensor, None]:
        (x_dot,) = inputs_dot
        assert x_dot is not None, "an op without any tangent is not swept"
        return x_dot.to(self.dtype), None

    def backward_dot(
        self, saved: torch.dtype, saved_dot: None, dy: Tensor, dy_dot: Tensor, needs: Needs
    ) -> MaybeTensors:
        return (dy_dot.to(saved),)
