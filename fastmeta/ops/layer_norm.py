"""Layer norm over the last dimensions of each sample: x [T, N, ..., D], γ and β [T, D]. Mathematics in norm.py."""

from __future__ import annotations

from .norm import Norm


def layer_norm(ndim: int, normalized_shape: tuple[int, ...], eps: float, *, affine: bool) -> Norm:
    """`ndim` of a task's x; `normalized_shape` its last dimensions."""
    k = len(normalized_shape)
    dims = tuple(range(ndim + 1 - k, ndim + 1))
    return Norm(dims, (*(1,) * (ndim - k), *normalized_shape), eps, affine)
