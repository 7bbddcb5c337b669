"""Rules of pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastmeta.ops.pool import AvgPool2d, MaxPool2d
from fastmeta.ops.shape import Reduce

from .base import Lower, NotKnown, Slot, pair
from .shapes import squeeze, unsqueeze


def max_pool2d(
    to: Lower,
    x: Slot,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Slot:
    if return_indices or len(x.shape) != 4:
        raise NotKnown("max-pool with return_indices or of an unbatched image")
    kernel = pair(kernel_size)
    return to.emit(MaxPool2d(kernel, pair(stride) if stride else kernel, pair(padding), pair(dilation), ceil_mode), x)


def avg_pool2d(
    to: Lower,
    x: Slot,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Slot:
    if len(x.shape) != 4:
        raise NotKnown("avg-pool of an unbatched image")
    kernel = pair(kernel_size)
    op = AvgPool2d(
        kernel,
        pair(stride) if stride else kernel,
        pair(padding),
        ceil_mode,
        count_include_pad,
        divisor_override,
    )
    return to.emit(op, x)


def max_pool1d(
    to: Lower,
    x: Slot,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Slot:
    """Of rows [N, C, L] as images one pixel high."""
    kernel, step, around, apart = _row(kernel_size, stride, padding, dilation)
    image = _as_image(to, x)
    return squeeze(to, max_pool2d(to, image, kernel, step, (0, around[1]), apart, ceil_mode, return_indices), -2)


def avg_pool1d(
    to: Lower,
    x: Slot,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Slot:
    kernel, step, around, _ = _row(kernel_size, stride, padding, 1)
    image = _as_image(to, x)
    return squeeze(to, avg_pool2d(to, image, kernel, step, (0, around[1]), ceil_mode, count_include_pad), -2)


def adaptive_avg_pool1d(to: Lower, x: Slot, output_size: Any) -> Slot:
    return squeeze(to, adaptive_avg_pool2d(to, _as_image(to, x), (1, pair(output_size)[0])), -2)


def _as_image(to: Lower, x: Slot) -> Slot:
    if len(x.shape) != 3:
        raise NotKnown(f"pooling of an unbatched row {list(x.shape)}")
    return unsqueeze(to, x, -2)


def _row(kernel: Any, stride: Any, padding: Any, dilation: Any) -> list[tuple[int, int]]:
    """Each for an image one pixel high."""
    return [(1, pair(value)[0]) for value in (kernel, stride or kernel, padding, dilation)]


def adaptive_avg_pool2d(to: Lower, x: Slot, output_size: Any) -> Slot:
    sizes = output_size if isinstance(output_size, Sequence) else (output_size, output_size)
    sizes = tuple(have if want is None else want for want, have in zip(sizes, x.shape[-2:], strict=True))
    if len(x.shape) != 4:
        raise NotKnown("adaptive avg-pool of an unbatched image")
    if sizes == x.shape[-2:]:
        return x
    if sizes == (1, 1):
        return to.emit(Reduce((2, 3), True, True), x)
    if any(have % want for want, have in zip(sizes, x.shape[-2:], strict=True)):
        raise NotKnown(f"adaptive avg-pool from {list(x.shape[-2:])} to {list(sizes)} has windows of several sizes")
    kernel = (x.shape[-2] // sizes[0], x.shape[-1] // sizes[1])
    return to.emit(AvgPool2d(kernel, kernel, (0, 0), False, True, None), x)
