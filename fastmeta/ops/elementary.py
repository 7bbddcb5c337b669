"""What a pointwise function is made of, and the elementary functions of calculus: powers, exponentials, circles."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kind:
    """value(x, *args) = f; slope = f'; curvature = f'', or None where f is piecewise linear.

    Where PyTorch has f'(x) d in one pass, that is `pull(d, x, *args)`, and slope is None.
    """

    value: Callable[..., Tensor]
    slope: Callable[..., Tensor] | None
    curvature: Callable[..., Tensor] | None
    monotone: bool  # non-decreasing: commutes with max-pooling
    pull: Callable[..., Tensor] | None = None


def _power_curvature(x: Tensor, exponent: float) -> Tensor:
    return torch.zeros_like(x) if exponent in (0, 1) else exponent * (exponent - 1) * x.pow(exponent - 2)


def _power_pull(d: Tensor, x: Tensor, exponent: float) -> Tensor:
    """Of exponent 0, PyTorch's gradient is zero, not 0 / 0 at zero."""
    if exponent == 0:
        return torch.zeros_like(d)
    return d * x * 2 if exponent == 2 else exponent * x.pow(exponent - 1) * d


def _huber(x: Tensor, delta: float) -> Tensor:
    """Huber 1964: x² / 2 up to delta, then linear."""
    return torch.where(x.abs() < delta, 0.5 * x * x, delta * (x.abs() - 0.5 * delta))


def _huber_pull(d: Tensor, x: Tensor, delta: float) -> Tensor:
    return d * x.clamp(-delta, delta)


def _erf_slope(x: Tensor) -> Tensor:
    return torch.exp(-x * x) * (2.0 / math.sqrt(math.pi))


def _log1p_slope(x: Tensor) -> Tensor:
    return (x + 1).reciprocal()


def _tan_slope(x: Tensor) -> Tensor:
    return torch.tan(x).square() + 1


def _tan_curvature(x: Tensor) -> Tensor:
    t = torch.tan(x)
    return 2 * t * (t.square() + 1)


def _atan_slope(x: Tensor) -> Tensor:
    return (x * x + 1).reciprocal()


ELEMENTARY: dict[str, Kind] = {
    "abs": Kind(torch.abs, torch.sgn, None, False),
    "atan": Kind(torch.atan, _atan_slope, lambda x: -2 * x * _atan_slope(x).square(), True),
    "cos": Kind(torch.cos, lambda x: -torch.sin(x), lambda x: -torch.cos(x), False),
    "cosh": Kind(torch.cosh, torch.sinh, torch.cosh, False),
    "erf": Kind(torch.erf, _erf_slope, lambda x: -2 * x * _erf_slope(x), True),
    "exp": Kind(torch.exp, torch.exp, torch.exp, True),
    "expm1": Kind(torch.expm1, torch.exp, torch.exp, True),
    "huber": Kind(_huber, None, lambda x, delta: (x.abs() < delta).to(x.dtype), False, _huber_pull),
    "log": Kind(torch.log, torch.reciprocal, lambda x: -(x * x).reciprocal(), False),
    "log1p": Kind(torch.log1p, _log1p_slope, lambda x: -_log1p_slope(x).square(), False),
    "pow": Kind(torch.pow, None, _power_curvature, False, _power_pull),
    "reciprocal": Kind(torch.reciprocal, lambda x: -x.pow(-2), lambda x: 2 * x.pow(-3), False),
    "rsqrt": Kind(torch.rsqrt, lambda x: -0.5 * x.pow(-1.5), lambda x: 0.75 * x.pow(-2.5), False),
    "sin": Kind(torch.sin, torch.cos, lambda x: -torch.sin(x), False),
    "sinh": Kind(torch.sinh, torch.cosh, torch.sinh, True),
    "sqrt": Kind(torch.sqrt, lambda x: 0.5 * x.rsqrt(), lambda x: -0.25 * x.pow(-1.5), False),
    "tan": Kind(torch.tan, _tan_slope, _tan_curvature, False),
}
