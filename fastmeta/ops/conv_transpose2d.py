"""Transposed convolution, weights of each task's own: x [T, N, C, H, W], W [T, C, O / groups, kh, kw], b [T, O].

On a CPU task by task, elsewhere with tasks as groups, as conv2d.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import Bilinear, shared
from .conv2d import Pair, fold, stack_tasks, unfold

_aten = torch.ops.aten


@dataclass(frozen=True)
class ConvTranspose2d(Bilinear):
    """All pairs are (height, width)."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    output_padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def _settings(self, tasks: int) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, True, self.output_padding, tasks * self.groups

    def product(self, x: Tensor, w: Tensor) -> Tensor:
        tasks, samples = x.shape[:2]
        if tasks == 1 or shared(w):
            return _aten.convolution(x.flatten(0, 1), w[0], None, *self._settings(1)).unflatten(0, (tasks, samples))
        if x.device.type == "cpu":
            return torch.stack([_aten.convolution(x[t], w[t], None, *self._settings(1)) for t in range(tasks)])
        return unfold(_aten.convolution(fold(x), w.flatten(0, 1), None, *self._settings(tasks)), tasks)

    def product_backward(
        self, dy: Tensor, x: Tensor, w: Tensor, need_x: bool, need_w: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        tasks, mask = x.shape[0], (need_x, need_w, False)
        if tasks == 1 or dy.device.type == "cpu":
            parts = [
                _aten.convolution_backward(dy[t], x[t], w[t], None, *self._settings(1), mask) for t in range(tasks)
            ]
            return stack_tasks([dx for dx, _, _ in parts]), stack_tasks([dw for _, dw, _ in parts])
        dx, dw, _ = _aten.convolution_backward(fold(dy), fold(x), w.flatten(0, 1), None, *self._settings(tasks), mask)
        return (
            None if dx is None else unfold(dx, tasks),
            None if dw is None else dw.unflatten(0, (tasks, -1)),
        )

    def bias_like(self, b: Tensor, x: Tensor) -> Tensor:
        return b[:, None, :, None, None]

    def bias_backward(self, dy: Tensor) -> Tensor:
        return dy.sum((1, 3, 4))
