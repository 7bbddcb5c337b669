"""Convolution → batch norm → activation → optional 2×2 max-pool as one op, with few passes over the large arrays.

A monotone activation and a batch norm commute with a maximum, up to the sign of γ, so the pool comes first: winners
are picked on sign(γ) z, and normalisation, activation and all reductions of the backward sweep see a quarter of the
elements. The convolution's output z is read once for its statistics and once for the pool; its cotangent is the
scattered pool cotangent plus a line in z per channel (M elements a channel, mathematics in norm.py):

    dz     = scatter(γ r g) + c0 + c1 (z − μ),  c1 = −γ r² dγ / M,  c0 = −γ r dβ / M
    dz_dot = scatter((γ r)_dot g + γ r g_dot) + (a line in z and z_dot per channel)

with g the cotangent behind the activation. A convolution bias is taken away by the mean: it is not even added, and
its gradient is zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .activation import Activation
from .base import MaybeTensors, Needs, Op, total
from .conv2d import Conv2d
from .window import gather, pool, scatter

_aten = torch.ops.aten

# Inside the block channels come last, [T, N, H, W, C], as the convolutions on a CPU have them in memory: compiled
# code lays out what it makes in the order of the dimensions, and another order would transpose at every step.


def _sum(x: Tensor) -> Tensor:
    """Sum per channel [T, 1, 1, 1, C], in two stages: one running sum of 20,000 float32 values is off by 1e-6, enough
    to push pre-activations across the kink of a ReLU."""
    return x.sum(3, keepdim=True).sum((1, 2), keepdim=True)


def _last(x: Tensor) -> Tensor:
    return x.permute(0, 1, 3, 4, 2)


def _second(x: Tensor) -> Tensor:
    return x.permute(0, 1, 4, 2, 3)


def _first(x: Tensor) -> Tensor:
    """One task's [N, H, W, C] as [N, C, H, W]; the kernels of batch norm take no other strides."""
    return x.contiguous().permute(0, 3, 1, 2)


class Block(NamedTuple):
    """What a forward sweep leaves. Wide tensors have the size of the convolution's output, others of the pool's."""

    x: Tensor
    w: Tensor
    z: Tensor  # wide
    mean: Tensor  # [T, 1, 1, 1, C], as r and gamma
    r: Tensor
    gamma: Tensor
    winner: Tensor | None  # which of its window's four elements the pool took
    xh: Tensor | None  # None: the dual sweeps make it
    pre: Tensor  # before the activation

    def with_xh(self) -> Block:
        """With x̂."""
        return self if self.xh is not None else self._replace(xh=(self.z - self.mean) * self.r)


class BlockDot(NamedTuple):
    """What a tangent sweep leaves; None where nothing before the block moves."""

    x_dot: Tensor | None
    w_dot: Tensor | None
    z_dot: Tensor | None
    drift: Tensor | None  # m(z_dot)
    slope: Tensor | None  # m(x̂ z_dot)
    gamma_dot: Tensor | None
    xh: Tensor | None
    xh_dot: Tensor | None
    pre_dot: Tensor


class Flow(NamedTuple):
    """Cotangent behind the activation, and the channel sums dβ and dγ."""

    g: Tensor
    d_beta: Tensor
    d_gamma: Tensor


@dataclass(frozen=True)
class ConvBlock(Op[Block, BlockDot]):
    """Inputs: x [T, N, C, H, W], W [T, O, C, kh, kw], conv bias [T, O] where `biased`, γ and β [T, O].

    With `pool` the activation must be monotone.
    """

    conv: Conv2d
    eps: float
    activation: Activation
    pool: bool
    biased: bool

    def _split(self, inputs: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        x, w, *bias, gamma, beta = inputs
        assert len(bias) == self.biased
        return x, w, gamma, beta

    def _wide(self, p: Tensor) -> Tensor:
        return p[:, None, None, None, :]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Block]:
        x, w, gamma, beta = self._split(inputs)
        assert x is not None
        assert w is not None
        assert gamma is not None
        assert beta is not None
        z = _last(self.conv.product(x, w))
        if self._by_pytorch(z):
            pre, mean, r = self._batch_norm(z, gamma, beta)
            return _second(self.activation.value(pre)), Block(x, w, z, mean, r, self._wide(gamma), None, None, pre)
        gamma, beta = self._wide(gamma), self._wide(beta)
        # two passes: as exact as Welford's recurrence, whose divisions cost ten times as much here
        mean = _sum(z) / _count(z)
        centred = z - mean
        # in place where nobody reads it again: of many large images, new memory costs more than what is written to it
        squares = centred.square_() if self.pool else centred.square()
        r = (_sum(squares) / _count(z) + self.eps).rsqrt()
        winner = None
        if self.pool:
            winner, picked = pool(z, gamma.sign())
            centred = picked - mean
        xh = centred * r
        pre = torch.addcmul(beta, xh, gamma)
        return _second(self.activation.value(pre)), Block(x, w, z, mean, r, gamma, winner, xh, pre)

    def _by_pytorch(self, z: Tensor) -> bool:
        """Whether PyTorch's own batch norm, two passes over z for seven, does without a pool's shortcuts."""
        return not self.pool and z.device.type == "cpu" and not torch.compiler.is_compiling()

    def _batch_norm(self, z: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """γ x̂ + β, mean and r."""
        found = [
            _aten.native_batch_norm(
                _first(z[t]), gamma[t].contiguous(), beta[t].contiguous(), None, None, True, 0.0, self.eps
            )
            for t in range(z.shape[0])
        ]
        pre, mean, r = (
            parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts) for parts in zip(*found, strict=True)
        )
        return _last(pre), self._wide(mean), self._wide(r)

    def _batch_norm_backward(self, saved: Block, g: Tensor) -> tuple[Tensor, Flow]:
        """dz [T, N, C, H, W], and what flows."""
        gamma, mean, r = (p.flatten(1).contiguous() for p in (saved.gamma, saved.mean, saved.r))
        found = [
            _aten.native_batch_norm_backward(
                _first(g[t]),
                _first(saved.z[t]),
                gamma[t],
                None,
                None,
                mean[t],
                r[t],
                True,
                self.eps,
                [True, True, False],
            )
            for t in range(g.shape[0])
        ]
        dz, dg = (
            parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(parts)
            for parts in zip(*(part[:2] for part in found), strict=True)
        )
        return dz, Flow(g, _sum(g), self._wide(dg))  # the kernel's own sum of g rounds more

    def _flow(self, saved: Block, dy: Tensor) -> Flow:
        assert saved.xh is not None
        g = self.activation.times_slope(saved.pre, _last(dy))
        return Flow(g, _sum(g), _sum(g * saved.xh))

    def _dz(self, saved: Block, flow: Flow) -> Tensor:
        scale, count = saved.gamma * saved.r, _count(saved.z)
        c1 = -scale * flow.d_gamma / count
        c0 = -scale * flow.d_beta / count
        if saved.winner is None:
            assert saved.xh is not None
            return torch.addcmul(torch.addcmul(c0, scale, flow.g), c1, saved.xh)
        line = saved.z - saved.mean
        line = torch.addcmul(c0, c1 * saved.r, line, out=line)
        return scatter(scale * flow.g, saved.winner, saved.z).add_(line)

    def backward(self, saved: Block, dy: Tensor, needs: Needs) -> MaybeTensors:
        if saved.xh is None:
            dz, flow = self._batch_norm_backward(saved, self.activation.times_slope(saved.pre, _last(dy)))
            dx, dw = self.conv.product_backward(dz, saved.x, saved.w, needs[0], needs[1])
            return self._join(dx, dw, flow, needs)
        flow = self._flow(saved, dy)
        dx = dw = None
        if needs[0] or needs[1]:
            dx, dw = self.conv.product_backward(_second(self._dz(saved, flow)), saved.x, saved.w, needs[0], needs[1])
        return self._join(dx, dw, flow, needs)

    def _join(self, dx: Tensor | None, dw: Tensor | None, flow: Flow, needs: Needs) -> MaybeTensors:
        d_gamma, d_beta = (d.flatten(1) for d in (flow.d_gamma, flow.d_beta))
        d_bias = (torch.zeros_like(d_beta) if needs[2] else None,) if self.biased else ()
        return (dx, dw, *d_bias, d_gamma if needs[-2] else None, d_beta if needs[-1] else None)

    def forward_dot(self, saved: Block, inputs_dot: MaybeTensors) -> tuple[Tensor, BlockDot]:
        x_dot, w_dot, gamma_dot, beta_dot = self._split(inputs_dot)
        saved = saved.with_xh()
        assert saved.xh is not None
        gamma_dot, beta_dot = (None if d is None else self._wide(d) for d in (gamma_dot, beta_dot))
        z_dot = total(
            None if x_dot is None else _last(self.conv.product(x_dot, saved.w)),
            None if w_dot is None else _last(self.conv.product(saved.x, w_dot)),
        )
        drift = slope = xh_dot = pre_dot = None
        if z_dot is not None:
            drift = _sum(z_dot) / _count(z_dot)
            if saved.winner is None:
                slope, picked_dot = _sum(saved.xh * z_dot) / _count(z_dot), z_dot
            else:
                slope = _sum((saved.z - saved.mean) * z_dot) * saved.r / _count(z_dot)
                picked_dot = gather(z_dot, saved.winner)
            xh_dot = saved.r * (picked_dot - drift - saved.xh * slope)
            pre_dot = saved.gamma * xh_dot
        if gamma_dot is not None:
            pre_dot = total(pre_dot, gamma_dot * saved.xh)
        if beta_dot is not None:
            pre_dot = beta_dot.expand_as(saved.pre) if pre_dot is None else pre_dot + beta_dot
        if pre_dot is None:  # only the convolution's bias moves, which the mean takes away
            pre_dot = torch.zeros_like(saved.pre)
        y_dot = self.activation.times_slope(saved.pre, pre_dot)
        return _second(y_dot), BlockDot(x_dot, w_dot, z_dot, drift, slope, gamma_dot, saved.xh, xh_dot, pre_dot)

    def backward_dot(self, saved: Block, saved_dot: BlockDot, dy: Tensor, dy_dot: Tensor, needs: Needs) -> MaybeTensors:
        saved = saved._replace(xh=saved_dot.xh)
        flow = self._flow(saved, dy)
        g_dot = self.activation.times_slope(saved.pre, _last(dy_dot))
        if self.activation.curved:
            bend = self.activation.times_curvature(saved.pre, saved_dot.pre_dot * _last(dy))
            g_dot = g_dot if bend is None else g_dot + bend
        assert saved.xh is not None
        terms = g_dot * saved.xh
        if saved_dot.xh_dot is not None:
            terms = terms + flow.g * saved_dot.xh_dot
        flow_dot = Flow(g_dot, _sum(g_dot), _sum(terms))
        dx_dot = dw_dot = None
        if needs[0] or needs[1]:
            dz_dot = _second(self._dz_dot(saved, saved_dot, flow, flow_dot))
            dx_dot, dw_dot = self.conv.product_backward(dz_dot, saved.x, saved.w, needs[0], needs[1])
            need_x, need_w = (
                needs[0] and saved_dot.w_dot is not None,
                needs[1] and saved_dot.x_dot is not None,
            )
            if need_x or need_w:
                dz = _second(self._dz(saved, flow))
                along_x = saved.x if saved_dot.x_dot is None else saved_dot.x_dot
                along_w = saved.w if saved_dot.w_dot is None else saved_dot.w_dot
                terms = self.conv.product_backward(dz, along_x, along_w, need_x, need_w)
                dx_dot, dw_dot = total(dx_dot, terms[0]), total(dw_dot, terms[1])
        return self._join(dx_dot, dw_dot, flow_dot, needs)

    def _dz_dot(self, saved: Block, dot: BlockDot, flow: Flow, flow_dot: Flow) -> Tensor:
        scale, r, count = saved.gamma * saved.r, saved.r, _count(saved.z)
        gamma_dot = torch.zeros_like(saved.gamma) if dot.gamma_dot is None else dot.gamma_dot
        scale_dot = gamma_dot * r
        if dot.slope is not None:
            scale_dot = scale_dot - saved.gamma * r.square() * dot.slope  # r_dot = −r² m(x̂ z_dot)
        constant = -(scale_dot * flow.d_beta + scale * flow_dot.d_beta) / count
        along = -(scale_dot * flow.d_gamma + scale * flow_dot.d_gamma) / count  # times x̂
        moved = -scale * flow.d_gamma * r / count  # times z_dot − m(z_dot) − x̂ m(x̂ z_dot)
        away = None  # z_dot − m(z_dot)
        if dot.z_dot is not None:
            assert dot.drift is not None
            assert dot.slope is not None
            away, along = dot.z_dot - dot.drift, along - moved * dot.slope
        if saved.winner is None:
            assert saved.xh is not None
            line = torch.addcmul(torch.addcmul(constant, along, saved.xh), scale, flow_dot.g)
            line = line if away is None else torch.addcmul(line, moved, away)
            return torch.addcmul(line, scale_dot, flow.g)
        line = saved.z - saved.mean
        line = torch.addcmul(constant, along * r, line, out=line)
        line = line if away is None else line.addcmul_(moved, away)
        return scatter(scale_dot * flow.g + scale * flow_dot.g, saved.winner, saved.z).add_(line)


def _count(z: Tensor) -> int:
    """M: elements of a channel."""
    return z[0, ..., 0].numel()
