"""Rules of pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastmeta.ops.pool import AvgPool2d, MaxPool2d
from fastmeta.ops.shape import Reduce

from .base import Lower, NotKnown, Slot, pair


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
