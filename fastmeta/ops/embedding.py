"""Embedding: rows of a task's own table. W [T, V, D], index [T, N, ...] int64 → [T, N, ..., D]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Bilinear, shared


@dataclass(frozen=True)
class Embedding(Bilinear):
    """Bilinear in (one-hot index, W), of which only W has a tangent. Row `padding` receives no gradient."""

    rows: int
    padding: int | None = None

    def product(self, x: Tensor, w: Tensor) -> Tensor:
        if shared(w):
            return w[0][x]
        flat = x.flatten(1)
        y = w.gather(1, flat.unsqueeze(2).expand(-1, -1, w.shape[2]))
        return y.view(*x.shape, w.shape[2])

    def product_backward(
        self, dy: Tensor, x: Tensor, w: Tensor, need_x: bool, need_w: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        assert not need_x, "an index has no gradient"
        if not need_w:
            return None, None
        width, flat = dy.shape[-1], x.flatten(1)
        values = dy.reshape(dy.shape[0], -1, width)
        if self.padding is not None:
            values = torch.where((flat == self.padding).unsqueeze(2), 0.0, values)
        table = values.new_zeros(dy.shape[0], self.rows, width)
        return None, table.scatter_add(1, flat.unsqueeze(2).expand(-1, -1, width), values)
