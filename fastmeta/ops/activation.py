"""Pointwise activations: value, first and second derivative. Any shape [T, ...].

y_dot = f'(x) x_dot;  dx = f'(x) dy;  dx_dot = f'(x) dy_dot + f''(x) x_dot dy. Where f is piecewise linear f'' is zero,
also at its kinks, as PyTorch has it: relu'(0) = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import MaybeTensors, Needs, Op
from .elementary import ELEMENTARY, Kind

_aten = torch.ops.aten


def _leaky_slope(x: Tensor, negative_slope: float) -> Tensor:
    one = torch.ones_like(x)  # of two plain numbers `where` would make float32
    return torch.where(x > 0, one, one * negative_slope)


def _elu_slope(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > 0, 1.0, alpha * x.clamp(max=0).exp())


def _elu_curvature(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x < 0, alpha * x.clamp(max=0).exp(), 0.0)


def _normal_pdf(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))


_GELU_SCALE, _GELU_CUBE = math.sqrt(2.0 / math.pi), 0.044715  # Hendrycks & Gimpel 2016, tanh form


def _gelu_tanh_pull(d: Tensor, x: Tensor) -> Tensor:
    return _aten.gelu_backward.default(d, x, approximate="tanh")


def _gelu_tanh_curvature(x: Tensor) -> Tensor:
    """(1 − t²) (u1 + x u2 / 2 − x t u1²) with t = tanh(u), u = a (x + c x³), u1 and u2 its derivatives."""
    a, b, squares = _GELU_SCALE, _GELU_SCALE * _GELU_CUBE, x * x
    t = torch.tanh(x * (b * squares + a))
    bend = torch.addcmul(6.0 * b * squares + a, x * t, (3.0 * b * squares + a).square(), value=-1)
    return (1.0 - t * t) * bend


def _silu_curvature(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1.0 - s) * (2.0 + x * (1.0 - 2.0 * s))


def _tanh_pull(d: Tensor, x: Tensor) -> Tensor:
    return _aten.tanh_backward.default(d, torch.tanh(x))


def _tanh_curvature(x: Tensor) -> Tensor:
    t = torch.tanh(x)
    return -2.0 * t * (1.0 - t * t)


def _sigmoid_pull(d: Tensor, x: Tensor) -> Tensor:
    return _aten.sigmoid_backward.default(d, torch.sigmoid(x))


def _sigmoid_curvature(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1.0 - s) * (1.0 - 2.0 * s)


def _softplus_slope(x: Tensor, beta: float, threshold: float) -> Tensor:
    return torch.where(beta * x > threshold, 1.0, torch.sigmoid(beta * x))


def _softplus_curvature(x: Tensor, beta: float, threshold: float) -> Tensor:
    s = torch.sigmoid(beta * x)
    return torch.where(beta * x > threshold, 0.0, beta * s * (1.0 - s))


def _softsign_slope(x: Tensor) -> Tensor:
    return (x.abs() + 1).pow(-2)


def _softsign_curvature(x: Tensor) -> Tensor:
    return -2.0 * torch.sgn(x) * (x.abs() + 1).pow(-3)


def _within(x: Tensor, low: float, high: float) -> Tensor:
    """One between two bounds, zero at them."""
    return ((x > low) & (x < high)).to(x.dtype)


def _clamp_pull(d: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """Slope one at the bounds, where hardtanh has zero."""
    return torch.where((x >= low) & (x <= high), d, 0.0)


def _mish_curvature(x: Tensor) -> Tensor:
    t, s = torch.tanh(F.softplus(x)), torch.sigmoid(x)
    t1 = (1.0 - t * t) * s  # the derivative of t
    return 2.0 * t1 + x * t1 * (1.0 - s - 2.0 * t * s)


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805  # Klambauer et al. 2017


def _logsigmoid_curvature(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return -s * (1.0 - s)


KINDS: dict[str, Kind] = {
    **ELEMENTARY,
    "identity": Kind(lambda x: x, torch.ones_like, None, True),
    "relu": Kind(torch.relu, lambda x: (x > 0).to(x.dtype), None, True),
    "leaky_relu": Kind(F.leaky_relu, _leaky_slope, None, True),
    "elu": Kind(F.elu, _elu_slope, _elu_curvature, True),
    "gelu": Kind(F.gelu, None, lambda x: _normal_pdf(x) * (2.0 - x * x), False, _aten.gelu_backward.default),
    "gelu_tanh": Kind(lambda x: F.gelu(x, approximate="tanh"), None, _gelu_tanh_curvature, False, _gelu_tanh_pull),
    "silu": Kind(F.silu, None, _silu_curvature, False, _aten.silu_backward.default),
    "tanh": Kind(torch.tanh, None, _tanh_curvature, True, _tanh_pull),
    "sigmoid": Kind(torch.sigmoid, None, _sigmoid_curvature, True, _sigmoid_pull),
    "softplus": Kind(F.softplus, _softplus_slope, _softplus_curvature, True),
    "softsign": Kind(F.softsign, _softsign_slope, _softsign_curvature, True),
    "hardtanh": Kind(F.hardtanh, None, None, True, _aten.hardtanh_backward.default),
    "clamp": Kind(torch.clamp, None, None, True, _clamp_pull),
    "hardswish": Kind(F.hardswish, None, lambda x: _within(x, -3.0, 3.0) / 3, False, _aten.hardswish_backward),
    "mish": Kind(F.mish, None, _mish_curvature, False, _aten.mish_backward),
    "selu": Kind(
        F.selu,
        lambda x: _SELU_SCALE * _elu_slope(x, _SELU_ALPHA),
        lambda x: _SELU_SCALE * _elu_curvature(x, _SELU_ALPHA),
        True,
    ),
    "logsigmoid": Kind(F.logsigmoid, lambda x: torch.sigmoid(-x), _logsigmoid_curvature, True),
}


@dataclass(frozen=True)
class Activation(Op[Tensor, Tensor]):
    """f applied to every element; `kind` is a key of `KINDS`, `args` its parameters (slope, alpha, ...)."""

    kind: str
    args: tuple[float, ...] = ()

    @property
    def monotone(self) -> bool:
        """Whether f commutes with max-pooling (a negative leaky slope would break it)."""
        if self.kind == "softplus" and self.args[1] < 20:  # falls by log(1 + exp(-threshold)) / beta at its threshold
            return False
        sloped = self.kind in ("leaky_relu", "elu", "softplus")  # their first argument is a factor
        return KINDS[self.kind].monotone and (not sloped or self.args[0] > 0)

    @property
    def curved(self) -> bool:
        """Whether f'' is other than zero somewhere."""
        return KINDS[self.kind].curvature is not None

    def value(self, x: Tensor) -> Tensor:
        """f(x)."""
        return KINDS[self.kind].value(x, *self.args)

    def times_slope(self, x: Tensor, d: Tensor) -> Tensor:
        """f'(x) d."""
        if self.kind == "relu":  # one fused pass instead of a comparison, a cast and a product
            return _aten.threshold_backward.default(d, x, 0.0)
        if self.kind == "identity":
            return d
        kind = KINDS[self.kind]
        if kind.pull is not None:
            return kind.pull(d, x, *self.args)
        assert kind.slope is not None, "a kind has one of the two"
        return kind.slope(x, *self.args) * d

    def times_curvature(self, x: Tensor, d: Tensor) -> Tensor | None:
        """f''(x) d, `None` where f is piecewise linear."""
        curvature = KINDS[self.kind].curvature
        return None if curvature is None else curvature(x, *self.args) * d

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        (x,) = inputs
        y = self.value(x)
        # relu's slope reads from its output as well as from its input, and the output lives on in the next op
        return y, y if self.kind == "relu" else x

    def backward(self, saved: Tensor, dy: Tensor, needs: Needs) -> MaybeTensors:
        return (self.times_slope(saved, dy),)

    def forward_dot(self, saved: Tensor, inputs_dot: MaybeTensors) -> tuple[Tensor, Tensor]:
        (x_dot,) = inputs_dot
        assert x_dot is not None, "an op without any tangent is not swept"
        return self.times_slope(saved, x_dot), x_dot

    def backward_dot(self, saved: Tensor, saved_dot: Tensor, dy: Tensor, dy_dot: Tensor, needs: Needs) -> MaybeTensors:
        dx_dot = self.times_slope(saved, dy_dot)
        bend = self.times_curvature(saved, saved_dot * dy) if self.curved else None
        return (dx_dot if bend is None else dx_dot + bend,)
