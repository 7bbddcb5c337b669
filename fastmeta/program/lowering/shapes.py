"""Rules of whatever rearranges, selects or sums elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from fastmeta.ops.shape import Concatenate, Permute, Reduce, Reshape, Select

from .base import Lower, NotKnown, Slot
from .rearrange import indexed, numbers


def reshape(to: Lower, x: Slot, *given: Any, shape: Any = None) -> Slot:
    """view and reshape; the target may hold one -1."""
    if any(isinstance(s, torch.dtype) for s in given):
        raise NotKnown("a view by dtype")
    sizes = list(numbers(given, shape))
    elements = math.prod(x.shape)
    if -1 in sizes:
        sizes[sizes.index(-1)] = elements // max(1, math.prod(s for s in sizes if s != -1))
    return to.emit(Reshape(tuple(sizes)), x)


def flatten(to: Lower, x: Slot, start_dim: int = 0, end_dim: int = -1) -> Slot:
    shape = x.shape or (1,)
    start, end = start_dim % len(shape), end_dim % len(shape)
    return to.emit(Reshape((*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])), x)


def squeeze(to: Lower, x: Slot, dim: Any = None) -> Slot:
    n = len(x.shape)
    if n == 0:
        return x
    dims = range(n) if dim is None else [d % n for d in ([dim] if isinstance(dim, int) else dim)]
    return to.emit(Reshape(tuple(s for i, s in enumerate(x.shape) if i not in dims or s != 1)), x)


def unsqueeze(to: Lower, x: Slot, dim: int) -> Slot:
    at = dim % (len(x.shape) + 1)
    return to.emit(Reshape((*x.shape[:at], 1, *x.shape[at:])), x)


def permute(to: Lower, x: Slot, *order: Any, dims: Any = None) -> Slot:
    return to.emit(Permute(tuple(d % len(x.shape) for d in numbers(order, dims))), x)


def transpose(to: Lower, x: Slot, dim0: int, dim1: int) -> Slot:
    order = list(range(len(x.shape)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return to.emit(Permute(tuple(order)), x)


def _reduce(to: Lower, x: Slot, dim: Any, keepdim: bool, mean: bool) -> Slot:
    n = len(x.shape)
    if n == 0:  # without dimensions of its own PyTorch would reduce over the tasks
        return x
    dims = range(n) if dim is None or dim in ((), []) else [d % n for d in ([dim] if isinstance(dim, int) else dim)]
    if not x.like.dtype.is_floating_point:
        raise NotKnown(f"a reduction of {x.like.dtype}")
    return to.emit(Reduce(tuple(dims), keepdim, mean), x)


def mean(to: Lower, x: Slot, dim: Any = None, keepdim: bool = False) -> Slot:
    return _reduce(to, x, dim, keepdim, True)


def total(to: Lower, x: Slot, dim: Any = None, keepdim: bool = False) -> Slot:
    return _reduce(to, x, dim, keepdim, False)


def cat(to: Lower, tensors: Sequence[Slot], dim: int = 0) -> Slot:
    tensors = [t for t in tensors if t.shape != (0,)] or tensors  # as PyTorch, whatever the others' rank
    if len({len(t.shape) for t in tensors}) > 1 or len({t.like.dtype for t in tensors}) > 1:
        raise NotKnown("cat of values of several ranks or dtypes")
    return to.emit(Concatenate(dim % len(tensors[0].shape)), *tensors)


def getitem(to: Lower, x: Any, index: Any) -> Any:
    if not isinstance(x, Slot):
        return x[index]
    parts = index if isinstance(index, tuple) else (index,)
    basic = (int, slice, type(None), type(Ellipsis))
    if any(isinstance(p, bool) or not isinstance(p, basic) for p in parts):
        return indexed(to, x, index)
    return to.emit(Select(parts), x)


def split(to: Lower, x: Slot, split_size: Any, dim: int = 0) -> tuple[Slot, ...]:
    dim %= len(x.shape)
    size = x.shape[dim]
    sizes = split_size
    if isinstance(sizes, int):
        sizes = [min(sizes, size - i) for i in range(0, size, sizes)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    lead = (slice(None),) * dim
    return tuple(to.emit(Select((*lead, slice(a, a + n))), x) for a, n in zip(starts, sizes, strict=True))


def chunk(to: Lower, x: Slot, chunks: int, dim: int = 0) -> tuple[Slot, ...]:
    return split(to, x, -(-x.shape[dim] // chunks), dim)


def unbind(to: Lower, x: Slot, dim: int = 0) -> tuple[Slot, ...]:
    dim %= len(x.shape)
    lead = (slice(None),) * dim
    return tuple(to.emit(Select((*lead, i)), x) for i in range(x.shape[dim]))


def identity(to: Lower, x: Slot, *_: Any) -> Slot:  # noqa: ARG001
    return x
