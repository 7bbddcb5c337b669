"""Convolution with weights of each task's own: x [T, N, C, H, W], W [T, O, C / groups, kh, kw], b [T, O].

On a CPU a task's convolution runs by itself, in channels-last layout: 200 GFLOP/s on 2 cores at 64 channels against
110 to 190 for one grouped convolution over all tasks, and 50 in contiguous layout. Elsewhere tasks become groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Bilinear, shared

_aten = torch.ops.aten
Pair = tuple[int, int]


@dataclass(frozen=True)
class Conv2d(Bilinear):
    """stride, padding and dilation as (height, width); zero padding on both sides alike."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def product(self, x: Tensor, w: Tensor) -> Tensor:
        tasks, samples = x.shape[:2]
        if self._pointwise(x, w):
            return self._of_pixels(_pixel_product(self._pixels(x), w.flatten(2).mT), x)
        if tasks == 1 or shared(w):
            y = self._conv(x.flatten(0, 1), w[0], self.groups)
            return y.unflatten(0, (tasks, samples))
        if x.device.type == "cpu":
            return torch.stack([self._conv(x[t], w[t], self.groups) for t in range(tasks)])
        y = self._conv(fold(x), w.flatten(0, 1), tasks * self.groups)
        return unfold(y, tasks)

    def product_backward(
        self, dy: Tensor, x: Tensor, w: Tensor, need_x: bool, need_w: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        tasks = x.shape[0]
        if self._pointwise(x, w):
            rows = _rows(dy)
            dx = self._spread(_pixel_product(rows, w.flatten(2)), x) if need_x else None
            return dx, torch.bmm(rows.mT, self._pixels(x)).view(w.shape) if need_w else None
        if shared(w) and need_x and tasks > 1:  # one convolution for all tasks; dW is each task's own
            dx, _ = self._conv_backward(dy.flatten(0, 1), x.flatten(0, 1), w[0], self.groups, True, False)
            dw = self._task_by_task_backward(dy, x, w, False, True)[1] if need_w else None
            return None if dx is None else dx.unflatten(0, x.shape[:2]), dw
        return self._task_by_task_backward(dy, x, w, need_x, need_w)

    def _task_by_task_backward(
        self, dy: Tensor, x: Tensor, w: Tensor, need_x: bool, need_w: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """With filters of every task's own: one call a task on a CPU, where grouped convolutions are slow."""
        tasks = x.shape[0]
        if tasks == 1 or dy.device.type == "cpu":
            parts = [self._conv_backward(dy[t], x[t], w[t], self.groups, need_x, need_w) for t in range(tasks)]
            return stack_tasks([dx for dx, _ in parts]), stack_tasks([dw for _, dw in parts])
        dx, dw = self._conv_backward(fold(dy), fold(x), w.flatten(0, 1), tasks * self.groups, need_x, need_w)
        return (
            None if dx is None else unfold(dx, tasks),
            None if dw is None else dw.unflatten(0, (tasks, -1)),
        )

    # 1 × 1 filters on a CPU: of few images PyTorch runs its slowest convolution, and a product of matrices takes all
    # tasks at once (10 images of 16×16, 16 → 96 channels: 0.26 ms for 0.31 forward, 0.06 for 0.51 backward)

    def _pointwise(self, x: Tensor, w: Tensor) -> bool:
        return w.shape[3:] == (1, 1) and self.padding == (0, 0) and self.groups == 1 and x.device.type == "cpu"

    def _pixels(self, x: Tensor) -> Tensor:
        """Those that 1 × 1 filters see, [T, pixels, C]."""
        return _rows(x if self.stride == (1, 1) else x[..., :: self.stride[0], :: self.stride[1]])

    def _of_pixels(self, y: Tensor, x: Tensor) -> Tensor:
        """[T, pixels, O] as outputs for x."""
        height, width = (-(-n // step) for n, step in zip(x.shape[3:], self.stride, strict=True))
        return y.view(*x.shape[:2], height, width, y.shape[2]).permute(0, 1, 4, 2, 3)

    def _spread(self, d: Tensor, x: Tensor) -> Tensor:
        """The transpose of `_pixels`."""
        small = self._of_pixels(d, x)
        if self.stride == (1, 1):
            return small
        dx = x.new_zeros(x.shape)
        dx[..., :: self.stride[0], :: self.stride[1]] = small
        return dx

    def bias_like(self, b: Tensor, x: Tensor) -> Tensor:
        return b[:, None, :, None, None]

    def bias_backward(self, dy: Tensor) -> Tensor:
        return dy.sum((1, 3, 4))

    def _conv(self, x: Tensor, w: Tensor, groups: int) -> Tensor:
        x, stride = self._read(x, w)
        return _aten.convolution(_dense(x), _dense(w), None, stride, self.padding, self.dilation, False, (0, 0), groups)

    def _conv_backward(
        self, dy: Tensor, x: Tensor, w: Tensor, groups: int, need_x: bool, need_w: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        read, stride = self._read(x, w)
        dx, dw, _ = _aten.convolution_backward(
            _dense(dy), _dense(read), _dense(w), None,
            stride, self.padding, self.dilation, False, (0, 0), groups, (need_x, need_w, False),
        )  # fmt: skip
        if dx is not None and read is not x:
            dx, small = x.new_zeros(x.shape), dx
            self._strided(dx).copy_(small)
        return dx, dw

    def _strided(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride[0], :: self.stride[1]]

    def _read(self, x: Tensor, w: Tensor) -> tuple[Tensor, Pair]:
        """What is convolved, and in which strides: of strided 1 × 1 filters only the pixels that they see.

        On a CPU, oneDNN's gradient of such filters in channels-last layout writes beyond its memory where there are 3
        to 7 input channels (torch 2.13 aborts with "double free or corruption").
        """
        alone = w.shape[2:] == (1, 1) and self.padding == (0, 0) and self.stride != (1, 1) and x.device.type == "cpu"
        return (self._strided(x), (1, 1)) if alone else (x, self.stride)


def _rows(x: Tensor) -> Tensor:
    """[T, N, C, H, W] as [T, pixels, C]."""
    return x.permute(0, 1, 3, 4, 2).reshape(x.shape[0], -1, x.shape[2])


def _pixel_product(x: Tensor, w: Tensor) -> Tensor:
    """x [T, pixels, k] times w [T, k, n]; filters that all tasks share are read once."""
    return x.matmul(w[0]) if shared(w) else torch.bmm(x, w)


def _dense(x: Tensor) -> Tensor:
    """Channels last on a CPU; elsewhere as it is, for the device's own convolution to choose."""
    if x.device.type != "cpu":
        return x
    if x.shape[1] == 1:
        # one channel is dense in either layout, and strides that say "contiguous" send the convolution down the
        # slow path: 3.9 ms against 0.24 for 25 images of 28×28 and 64 filters
        height, width = x.shape[2:]
        return x.contiguous().as_strided(x.shape, (height * width, 1, width, 1))
    return x.contiguous(memory_format=torch.channels_last)


def stack_tasks(parts: list[Tensor | None]) -> Tensor | None:
    """Tasks of their own as one tensor; a single task without a copy."""
    dense = [part for part in parts if part is not None]
    if not dense:
        return None
    return dense[0].unsqueeze(0) if len(dense) == 1 else torch.stack(dense)


def fold(x: Tensor) -> Tensor:
    """[T, N, C, H, W] → [N, T·C, H, W]."""
    return x.transpose(0, 1).flatten(1, 2)


def unfold(x: Tensor, tasks: int) -> Tensor:
    """[N, T·C, H, W] → [T, N, C, H, W]."""
    return x.unflatten(1, (tasks, -1)).transpose(0, 1)
