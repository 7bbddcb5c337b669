"""Normalisation: x̂ = (x − μ) r, r = (var + ε)^−½, y = γ x̂ + β: batch norm, layer norm, and what group norm is made of.

With m(·) the mean over the normalised elements and dx̂ = γ dy (Ioffe & Szegedy 2015):

    dx     = r u,  u = dx̂ − m(dx̂) − x̂ m(dx̂ x̂)
    x̂_dot = r (x_dot − m(x_dot) − x̂ m(x̂ x_dot)),  r_dot = −r² m(x̂ x_dot)
    dx_dot = r_dot u + r (dx̂_dot − m(dx̂_dot) − x̂_dot m(dx̂ x̂) − x̂ m(dx̂_dot x̂ + dx̂ x̂_dot))
    dγ_dot = Σ dy_dot x̂ + dy x̂_dot,  dβ_dot = Σ dy_dot
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .base import MaybeTensors, Needs, Op, Shape, total


class Normalised(NamedTuple):
    """What a forward sweep leaves."""

    xh: Tensor  # x̂, as x
    r: Tensor  # broadcasts to x, as gamma
    gamma: Tensor | None
    affine_shape: Shape  # γ's own, [T, ...]; () without


class NormalisedDot(NamedTuple):
    """What a tangent sweep leaves; None where nothing moves."""

    xh_dot: Tensor | None
    r_dot: Tensor | None
    gamma_dot: Tensor | None


@dataclass(frozen=True)
class Norm(Op[Normalised, NormalisedDot]):
    """Inputs: x [T, ...], then γ and β where `affine`, then fixed mean and variance where `fixed`.

    Args:
        dims: dimensions that are normalised over, counted with the task dimension.
        affine_shape: γ's and β's shape for broadcasting against x, without the task dimension.
        eps: ε.
        affine: whether γ and β are inputs.
        fixed: mean and variance (shaped like γ) are given and constant: batch norm in eval mode.
        rows: statistics come from the first `rows` samples only (the support set), for all samples behind them too.
    """

    dims: tuple[int, ...]
    affine_shape: tuple[int, ...]
    eps: float
    affine: bool
    fixed: bool = False
    rows: int | None = None

    def _wide(self, p: Tensor) -> Tensor:
        return p.reshape(p.shape[0], *self.affine_shape)

    def _narrow(self, d: Tensor, shape: tuple[int, ...]) -> Tensor:
        dims = [i + 1 for i, n in enumerate(self.affine_shape) if n == 1]
        return (d.sum(dims) if dims else d).reshape(shape)

    def _mean(self, x: Tensor) -> Tensor:
        """m(·) of a value: over the rows that the statistics come from."""
        return (x if self.rows is None else x[:, : self.rows]).mean(self.dims, keepdim=True)

    def _adjoint_mean(self, d: Tensor) -> Tensor:
        """m(·) of a cotangent: every sample is normalised by the statistics, so the sum runs over all of
        them, while the mean is one of the first rows."""
        if self.rows is None:
            return d.mean(self.dims, keepdim=True)
        return d.sum(self.dims, keepdim=True) * (d.shape[1] / (self.rows * _count(d, self.dims)))

    def _spread(self, x: Tensor) -> Tensor:
        """Only the rows that made the statistics receive what flows back through them."""
        if self.rows is None:
            return x
        return torch.cat([x[:, : self.rows], torch.zeros_like(x[:, self.rows :])], 1)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Normalised]:
        x, *rest = inputs
        gamma = self._wide(rest[0]) if self.affine else None
        if self.fixed:
            mean, var = (self._wide(s) for s in rest[-2:])
            centred = x - mean
        elif x.device.type == "cpu":
            centred = x - self._mean(x)
            # two passes: as exact as Welford's recurrence, whose divisions cost five to ten times as much here
            var = self._mean(centred.square())
        else:
            source = x if self.rows is None else x[:, : self.rows]
            var, mean = torch.var_mean(source, self.dims, correction=0, keepdim=True)
            centred = x - mean
        r = (var + self.eps).rsqrt()
        xh = centred * r
        y = xh if gamma is None else torch.addcmul(self._wide(rest[1]), xh, gamma)
        return y, Normalised(xh, r, gamma, tuple(rest[0].shape) if self.affine else ())

    def _residual(self, dxh: Tensor, xh: Tensor) -> tuple[Tensor, Tensor | None]:
        """u and m(dx̂ x̂)."""
        if self.fixed:
            return dxh, None
        slope = self._adjoint_mean(dxh * xh)
        return dxh - self._spread(self._adjoint_mean(dxh) + xh * slope), slope

    def _affine_backward(self, terms: Tensor, dy: Tensor, shape: tuple[int, ...], needs: Needs) -> list[Tensor | None]:
        if not self.affine:
            return []
        return [
            self._narrow(terms, shape) if needs[1] else None,
            self._narrow(dy, shape) if needs[2] else None,
        ]

    def backward(self, saved: Normalised, dy: Tensor, needs: Needs) -> MaybeTensors:
        xh, r, gamma, shape = saved
        dx = None
        if needs[0]:
            u, _ = self._residual(dy if gamma is None else dy * gamma, xh)
            dx = u * r
        return (dx, *self._affine_backward(dy * xh, dy, shape, needs), *self._statistics())

    def _statistics(self) -> tuple[None, ...]:
        return (None, None) if self.fixed else ()

    def forward_dot(self, saved: Normalised, inputs_dot: MaybeTensors) -> tuple[Tensor, NormalisedDot]:
        xh, r, gamma, _ = saved
        x_dot, *rest = inputs_dot
        gamma_dot = self._wide(rest[0]) if self.affine and rest[0] is not None else None
        beta_dot = self._wide(rest[1]) if self.affine and rest[1] is not None else None
        xh_dot = r_dot = y_dot = None
        if x_dot is not None:
            if self.fixed:
                xh_dot = x_dot * r
            else:
                slope = self._mean(xh * x_dot)
                xh_dot = r * (x_dot - self._mean(x_dot) - xh * slope)
                r_dot = -r.square() * slope
            y_dot = xh_dot if gamma is None else xh_dot * gamma
        if gamma_dot is not None:
            y_dot = total(y_dot, gamma_dot * xh)
        if beta_dot is not None:
            y_dot = beta_dot.expand_as(xh) if y_dot is None else y_dot + beta_dot
        assert y_dot is not None, "an op without any tangent is not swept"
        return y_dot, NormalisedDot(xh_dot, r_dot, gamma_dot)

    def backward_dot(
        self, saved: Normalised, saved_dot: NormalisedDot, dy: Tensor, dy_dot: Tensor, needs: Needs
    ) -> MaybeTensors:
        xh, r, gamma, shape = saved
        xh_dot, r_dot, gamma_dot = saved_dot
        dx_dot = None
        if needs[0]:
            dxh, dxh_dot = (dy, dy_dot) if gamma is None else (dy * gamma, dy_dot * gamma)
            if gamma_dot is not None:
                dxh_dot = dxh_dot + dy * gamma_dot
            dx_dot = self._input_backward_dot(xh, r, xh_dot, r_dot, dxh, dxh_dot)
        terms = dy_dot * xh if xh_dot is None else dy_dot * xh + dy * xh_dot
        return (dx_dot, *self._affine_backward(terms, dy_dot, shape, needs), *self._statistics())

    def _input_backward_dot(
        self, xh: Tensor, r: Tensor, xh_dot: Tensor | None, r_dot: Tensor | None, dxh: Tensor, dxh_dot: Tensor
    ) -> Tensor:
        if self.fixed:
            return dxh_dot * r
        if xh_dot is None or r_dot is None:  # only γ moves
            return self._residual(dxh_dot, xh)[0] * r
        u, slope = self._residual(dxh, xh)
        assert slope is not None
        bend = self._adjoint_mean(dxh_dot * xh + dxh * xh_dot)
        flow = self._adjoint_mean(dxh_dot) + xh_dot * slope + xh * bend
        return r_dot * u + r * (dxh_dot - self._spread(flow))


def batch_norm(ndim: int, channels: int, eps: float, *, affine: bool, fixed: bool, rows: int | None) -> Norm:
    """Over a task's own samples: x [T, N, C, ...], γ and β [T, C].

    `ndim` is that of a task's x: 2 for [N, C], 4 for [N, C, H, W]. For the other arguments see `Norm`.
    """
    dims = (1, *range(3, ndim + 1))
    shape = (1, channels, *(1,) * (ndim - 2))
    return Norm(dims, shape, eps, affine, fixed, rows)


def layer_norm(ndim: int, normalized_shape: tuple[int, ...], eps: float, *, affine: bool) -> Norm:
    """Over the last dimensions of each sample: x [T, N, ..., *normalized_shape], γ and β [T, *normalized_shape].

    `ndim` is that of a task's x.
    """
    k = len(normalized_shape)
    dims = tuple(range(ndim + 1 - k, ndim + 1))
    return Norm(dims, (*(1,) * (ndim - k), *normalized_shape), eps, affine)


def _count(x: Tensor, dims: tuple[int, ...]) -> int:
    """Elements that a mean over `dims` averages."""
    n = 1
    for dim in dims:
        n *= x.shape[dim]
    return n
