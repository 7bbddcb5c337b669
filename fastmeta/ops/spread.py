"""Variance, standard deviation and Euclidean norm of x [T, ...] over `dims`, those of one task.

With c = x − m(x), n the elements that are averaged and k = 2 / (n − correction):

    v = k/2 Σ c²;  dx = k c dv,  v_dot = k Σ c x_dot,  dx_dot = k (c dv_dot + c_dot dv)
    s = √v;        dv = q = ds / (2 s),  s_dot = v_dot / (2 s),  q_dot = (ds_dot − 2 q s_dot) / (2 s)

The norm is s with c = x and k = 2. Where s is zero, PyTorch has a gradient of zero, and so have all sweeps here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .base import MaybeTensors, Needs, Op


class Centred(NamedTuple):
    """What a forward sweep leaves."""

    c: Tensor  # as x
    double: Tensor | None  # 2 s with the dimensions kept and ∞ for zero, where there is a root


class CentredDot(NamedTuple):
    """What a tangent sweep leaves."""

    c_dot: Tensor
    s_dot: Tensor | None  # with the dimensions kept


@dataclass(frozen=True)
class Spread(Op[Centred, CentredDot]):
    """Sum of squares: of what is left without the mean where `centred`, divided by n − `correction`, under a `root`."""

    dims: tuple[int, ...]
    keepdim: bool
    centred: bool
    root: bool
    correction: float = 0.0

    @property
    def _over(self) -> list[int]:
        return [d + 1 for d in self.dims]

    def _centre(self, x: Tensor) -> Tensor:
        return x - x.mean(self._over, keepdim=True) if self.centred else x

    def _factor(self, x: Tensor) -> float:
        """k."""
        return 2.0 / (math.prod(x.shape[d] for d in self._over) - self.correction) if self.centred else 2.0

    def _wide(self, y: Tensor) -> Tensor:
        if not self.keepdim:
            for d in sorted(self._over):
                y = y.unsqueeze(d)
        return y

    def _narrow(self, y: Tensor) -> Tensor:
        return y if self.keepdim else y.reshape([n for d, n in enumerate(y.shape) if d not in self._over])

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Centred]:
        (x,) = inputs
        c = self._centre(x)
        v = c.square().sum(self._over, keepdim=True)
        if self.centred:
            v = v * (self._factor(x) / 2)
        if not self.root:
            return self._narrow(v), Centred(c, None)
        s = v.sqrt()
        return self._narrow(s), Centred(c, (2 * s).masked_fill(s == 0, math.inf))

    def backward(self, saved: Centred, dy: Tensor, needs: Needs) -> MaybeTensors:
        c, double = saved
        dv = self._wide(dy) if double is None else self._wide(dy) / double
        return (c * (dv * self._factor(c)),)

    def forward_dot(self, saved: Centred, inputs_dot: MaybeTensors) -> tuple[Tensor, CentredDot]:
        (x_dot,) = inputs_dot
        assert x_dot is not None, "an op without any tangent is not swept"
        c, double = saved
        y_dot = (c * x_dot).sum(self._over, keepdim=True) * self._factor(c)
        s_dot = None
        if double is not None:
            y_dot = s_dot = y_dot / double
        return self._narrow(y_dot), CentredDot(self._centre(x_dot), s_dot)

    def backward_dot(
        self, saved: Centred, saved_dot: CentredDot, dy: Tensor, dy_dot: Tensor, needs: Needs
    ) -> MaybeTensors:
        (c, double), (c_dot, s_dot) = saved, saved_dot
        dv, dv_dot = self._wide(dy), self._wide(dy_dot)
        if double is not None and s_dot is not None:
            dv = dv / double
            dv_dot = (dv_dot - 2 * dv * s_dot) / double
        return ((c * dv_dot + c_dot * dv) * self._factor(c),)
