"""Matrix products with the batch dimensions broadcast inside a task: x [T, ..., n, k] · w [T, ..., k, m]."""

from __future__ import annotations

import torch
from torch import Tensor

from .arithmetic import align, unbroadcast
from .base import Bilinear, Shape


class Matmul(Bilinear):
    """Both have two dimensions a task or more; of vectors, lowering makes matrices."""

    def product(self, x: Tensor, w: Tensor) -> Tensor:
        ndim = max(x.dim(), w.dim())
        return _product(align(x, ndim), align(w, ndim), None)

    def product_plus(self, y: Tensor | None, x: Tensor, w: Tensor) -> Tensor:
        ndim = max(x.dim(), w.dim())
        return _product(align(x, ndim), align(w, ndim), y)

    def product_backward(
        self, dy: Tensor, x: Tensor, w: Tensor, need_x: bool, need_w: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        return self.product_backward_plus((None, None), dy, x, w, need_x, need_w)

    def product_backward_plus(
        self, d: tuple[Tensor | None, Tensor | None], dy: Tensor, x: Tensor, w: Tensor, need_x: bool, need_w: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        dx, dw = d
        if need_x:
            dx = _narrowed(dy, align(w, dy.dim()).mT, dx, x.shape)
        if need_w:
            dw = _narrowed(align(x, dy.dim()).mT, dy, dw, w.shape)
        return dx, dw


def _product(a: Tensor, b: Tensor, plus: Tensor | None) -> Tensor:
    """plus + a b for a [..., n, k] and b [..., k, m] of one rank, whose other dimensions broadcast."""
    batch = a.shape[:-2]
    if batch != b.shape[:-2]:
        y = a @ b
        return y if plus is None else y + plus
    if len(batch) == 1:
        return torch.bmm(a, b) if plus is None else torch.baddbmm(plus, a, b)
    flat = a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:])
    y = torch.bmm(*flat) if plus is None else torch.baddbmm(plus.reshape(-1, *plus.shape[-2:]), *flat)
    return y.view(*batch, *y.shape[-2:])


def _narrowed(a: Tensor, b: Tensor, plus: Tensor | None, shape: Shape) -> Tensor:
    """plus + a b summed over what a factor of `shape` was repeated along."""
    same = a.shape[:-2] == b.shape[:-2]  # PyTorch's broadcast_shapes costs more than a small product
    batch = a.shape[:-2] if same else torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    if (*batch, a.shape[-2], b.shape[-1]) == tuple(shape):
        return _product(a, b, plus)
    d = unbroadcast(_product(a, b, None), tuple(shape))
    return d if plus is None else plus + d
