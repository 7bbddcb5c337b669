"""Softmax and log-softmax over one dimension, x [T, ...].

The Jacobian of softmax, J = diag(y) − y yᵀ, is symmetric: it serves forwards and backwards. With a = x_dot − Σ y x_dot
and u = dy − Σ y dy: y_dot = y a, dx = J dy and dx_dot = J (dy_dot + a u), of which PyTorch has J in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import MaybeTensors, Needs, Op

_aten = torch.ops.aten


@dataclass(frozen=True)
class Softmax(Op[Tensor, Tensor]):
    """Over `dim` of a task. Where a whole row is −∞, a `safe` one gives zeros, as attention has it, a plain one NaN."""

    dim: int
    safe: bool = False

    def _jacobian(self, y: Tensor, d: Tensor) -> Tensor:
        return _aten._softmax_backward_data.default(d, y, self.dim + 1, y.dtype)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        (x,) = inputs
        y = _aten._safe_softmax(x, self.dim + 1) if self.safe else x.softmax(self.dim + 1)
        return y, y

    def backward(self, saved: Tensor, dy: Tensor, needs: Needs) -> MaybeTensors:
        return (self._jacobian(saved, dy),)

    def forward_dot(self, saved: Tensor, inputs_dot: MaybeTensors) -> tuple[Tensor, Tensor]:
        (x_dot,) = inputs_dot
        assert x_dot is not None, "an op without any tangent is not swept"
        a = x_dot - (saved * x_dot).sum(self.dim + 1, keepdim=True)
        return saved * a, a

    def backward_dot(self, saved: Tensor, saved_dot: Tensor, dy: Tensor, dy_dot: Tensor, needs: Needs) -> MaybeTensors:
        u = dy - (saved * dy).sum(self.dim + 1, keepdim=True)
        return (self._jacobian(saved, torch.addcmul(dy_dot, saved_dot, u)),)


@dataclass(frozen=True)
class LogSoftmax(Op[Tensor, Tensor]):
    """y = x − log Σ exp(x): dx = dy − p Σ dy with p = exp(y), y_dot = x_dot − Σ p x_dot, p_dot = p y_dot."""

    dim: int

    def _backward(self, y: Tensor, dy: Tensor) -> Tensor:
        return _aten._log_softmax_backward_data.default(dy, y, self.dim + 1, y.dtype)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        y = inputs[0].log_softmax(self.dim + 1)
        return y, y

    def backward(self, saved: Tensor, dy: Tensor, needs: Needs) -> MaybeTensors:
        return (self._backward(saved, dy),)

    def forward_dot(self, saved: Tensor, inputs_dot: MaybeTensors) -> tuple[Tensor, Tensor]:
        (x_dot,) = inputs_dot
        assert x_dot is not None, "an op without any tangent is not swept"
        p = saved.exp()
        y_dot = x_dot - (p * x_dot).sum(self.dim + 1, keepdim=True)
        return y_dot, p * y_dot

    def backward_dot(self, saved: Tensor, saved_dot: Tensor, dy: Tensor, dy_dot: Tensor, needs: Needs) -> MaybeTensors:
        plain = self._backward(saved, dy_dot)
        return (torch.addcmul(plain, saved_dot, dy.sum(self.dim + 1, keepdim=True), value=-1),)


@dataclass(frozen=True)
class LogSumExp(Op[Tensor, Tensor]):
    """y = log Σ exp(x) over `dims`: dx = p dy with p = exp(x − y), y_dot = Σ p x_dot, p_dot = p (x_dot − y_dot)."""

    dims: tuple[int, ...]
    keepdim: bool

    @property
    def _over(self) -> list[int]:
        return [d + 1 for d in self.dims]

    def _wide(self, y: Tensor) -> Tensor:
        if not self.keepdim:
            for d in sorted(self._over):
                y = y.unsqueeze(d)
        return y

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        (x,) = inputs
        y = torch.logsumexp(x, self._over, keepdim=True)
        p = (
            x - torch.where(y.isinf(), 0.0, y)
        ).exp()  # where all are −∞, or one is ∞, PyTorch's gradient is exp(x), too
        return y if self.keepdim else y.reshape(_without(y, self._over)), p

    def backward(self, saved: Tensor, dy: Tensor, needs: Needs) -> MaybeTensors:
        return (saved * self._wide(dy),)

    def forward_dot(self, saved: Tensor, inputs_dot: MaybeTensors) -> tuple[Tensor, Tensor]:
        (x_dot,) = inputs_dot
        assert x_dot is not None, "an op without any tangent is not swept"
        term = saved * x_dot
        y_dot = term.sum(self._over, keepdim=True)
        p_dot = torch.addcmul(term, saved, y_dot, value=-1)
        return y_dot if self.keepdim else y_dot.reshape(_without(y_dot, self._over)), p_dot

    def backward_dot(self, saved: Tensor, saved_dot: Tensor, dy: Tensor, dy_dot: Tensor, needs: Needs) -> MaybeTensors:
        return (torch.addcmul(saved * self._wide(dy_dot), saved_dot, self._wide(dy)),)


def _without(y: Tensor, dims: list[int]) -> list[int]:
    return [n for i, n in enumerate(y.shape) if i not in dims]
