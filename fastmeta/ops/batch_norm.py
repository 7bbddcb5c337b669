"""Batch norm over a task's own samples: x [T, N, C, ...], γ and β [T, C]. Mathematics in norm.py."""

from __future__ import annotations

from .norm import Norm


def batch_norm(ndim: int, channels: int, eps: float, *, affine: bool, fixed: bool, rows: int | None) -> Norm:
    """`ndim` of a task's x: 2 for [N, C], 4 for [N, C, H, W]."""
    dims = (1, *range(3, ndim + 1))
    shape = (1, channels, *(1,) * (ndim - 2))
    return Norm(dims, shape, eps, affine, fixed, rows)
