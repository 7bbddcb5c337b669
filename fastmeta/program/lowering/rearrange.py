"""Rules of whatever repeats, turns, pads or picks elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from fastmeta.ops.arithmetic import Add
from fastmeta.ops.index import Gather, Index
from fastmeta.ops.rearrange import CumulativeSum, Expand, Flip, Pad, Repeat, Roll, Triangle
from fastmeta.ops.shape import Concatenate, Permute, Reshape, Select

from .base import Lower, NotKnown, Slot


def numbers(given: tuple[Any, ...], named: Any = None) -> tuple[int, ...]:
    """Sizes or dimensions that come one by one, as one sequence or by name."""
    values = named if named is not None else given[0] if len(given) == 1 and isinstance(given[0], Sequence) else given
    values = (values,) if isinstance(values, int) else tuple(values)
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise NotKnown("a size or a dimension that is not a plain number")
    return values


def _dims(x: Slot, dims: Sequence[int]) -> tuple[int, ...]:
    if not x.shape:
        raise NotKnown("a value without dimensions")
    return tuple(d % len(x.shape) for d in dims)


def expand(to: Lower, x: Slot, *sizes: Any, size: Any = None, implicit: bool = False) -> Slot:  # noqa: ARG001
    shape = list(numbers(sizes, size))
    new = len(shape) - len(x.shape)
    shape = [x.shape[i - new] if n == -1 else n for i, n in enumerate(shape)]
    if tuple(shape) == x.shape:
        return x
    return to.emit(Expand(tuple(shape)), x)


def expand_as(to: Lower, x: Slot, other: Slot) -> Slot:
    return expand(to, x, other.shape)


def broadcast_to(to: Lower, x: Slot, size: Any) -> Slot:
    return expand(to, x, size)


def repeat(to: Lower, x: Slot, *sizes: Any, repeats: Any = None) -> Slot:
    return to.emit(Repeat(numbers(sizes, repeats)), x)


def repeat_interleave(to: Lower, x: Slot, repeats: Any, dim: int | None = None, *, output_size: Any = None) -> Slot:  # noqa: ARG001
    if not isinstance(repeats, int) or dim is None or not x.shape:
        raise NotKnown("repeat_interleave by a tensor, or of all elements in a row")
    (at,) = _dims(x, [dim])
    before, after = x.shape[: at + 1], x.shape[at + 1 :]
    wide = to.emit(Expand((*before, repeats, *after)), to.emit(Reshape((*before, 1, *after)), x))
    return to.emit(Reshape((*before[:-1], before[-1] * repeats, *after)), wide)


def interpolate(
    to: Lower,
    x: Slot,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: Any = None,  # noqa: ARG001  of other modes
    recompute_scale_factor: Any = None,  # noqa: ARG001  of fractions
    antialias: bool = False,  # noqa: ARG001  of other modes
) -> Slot:
    """Each pixel a whole number of times."""
    inner = x.shape[2:]
    if size is None:
        factors = [scale_factor] * len(inner) if isinstance(scale_factor, int | float) else list(scale_factor)
    else:
        wanted = [size] * len(inner) if isinstance(size, int) else list(size)
        factors = [want / have for want, have in zip(wanted, inner, strict=True)]
    if mode != "nearest" or not inner or any(f != int(f) or f < 1 for f in factors):
        raise NotKnown(f"interpolation with mode={mode!r} by {factors}")
    times = [int(f) for f in factors]
    split = [n for have in inner for n in (have, 1)]
    wide = [n for have, k in zip(inner, times, strict=True) for n in (have, k)]
    y = to.emit(Expand((*x.shape[:2], *wide)), to.emit(Reshape((*x.shape[:2], *split)), x))
    return to.emit(Reshape((*x.shape[:2], *(have * k for have, k in zip(inner, times, strict=True)))), y)


def stack(to: Lower, tensors: Sequence[Slot], dim: int = 0) -> Slot:
    if not all(isinstance(t, Slot) for t in tensors) or len({t.like.dtype for t in tensors}) > 1:
        raise NotKnown("stack of several dtypes")
    shape = tensors[0].shape
    at = dim % (len(shape) + 1)
    parts = [to.emit(Reshape((*shape[:at], 1, *shape[at:])), t) for t in tensors]
    return to.emit(Concatenate(at), *parts)


def flip(to: Lower, x: Slot, *given: Any, dims: Any = None) -> Slot:
    return to.emit(Flip(_dims(x, numbers(given, dims))), x)


def roll(to: Lower, x: Slot, shifts: Any, dims: Any = None) -> Slot:
    by = numbers((shifts,))
    if dims is None or dims in ((), []):  # of all elements in a row
        flat = to.emit(Reshape((math.prod(x.shape),)), x)
        return to.emit(Reshape(x.shape), to.emit(Roll(by, (0,)), flat))
    return to.emit(Roll(by, _dims(x, numbers((dims,)))), x)


def narrow(to: Lower, x: Slot, dim: int, start: Any, length: int) -> Slot:
    if not isinstance(start, int):
        raise NotKnown("a range that starts at a tensor")
    (at,) = _dims(x, [dim])
    start = start % x.shape[at] if start < 0 else start
    return to.emit(Select((*(slice(None),) * at, slice(start, start + length))), x)


def select(to: Lower, x: Slot, dim: int, index: Any) -> Slot:
    if not isinstance(index, int):
        raise NotKnown("a selection by a tensor")
    (at,) = _dims(x, [dim])
    return to.emit(Select((*(slice(None),) * at, index)), x)


def t(to: Lower, x: Slot) -> Slot:
    return to.emit(Permute((1, 0)), x) if len(x.shape) == 2 else x


def reversed_dims(to: Lower, x: Slot) -> Slot:
    """x.T."""
    return to.emit(Permute(tuple(reversed(range(len(x.shape))))), x)


def matrix_transpose(to: Lower, x: Slot) -> Slot:
    """x.mT."""
    n = len(x.shape)
    if n < 2:
        raise NotKnown("the transpose of a vector")
    return to.emit(Permute((*range(n - 2), n - 1, n - 2)), x)


def movedim(to: Lower, x: Slot, source: Any, destination: Any) -> Slot:
    n, moved = len(x.shape), dict(zip(_dims(x, numbers((destination,))), _dims(x, numbers((source,))), strict=True))
    rest = iter(d for d in range(n) if d not in moved.values())
    return to.emit(Permute(tuple(moved[d] if d in moved else next(rest) for d in range(n))), x)


def swapaxes(to: Lower, x: Slot, axis0: int, axis1: int) -> Slot:
    first, second = _dims(x, [axis0, axis1])
    order = list(range(len(x.shape)))
    order[first], order[second] = second, first
    return to.emit(Permute(tuple(order)), x)


def unflatten(to: Lower, x: Slot, dim: int, sizes: Any) -> Slot:
    (at,) = _dims(x, [dim])
    inner = list(numbers((sizes,)))
    if -1 in inner:
        inner[inner.index(-1)] = x.shape[at] // max(1, math.prod(s for s in inner if s != -1))
    return to.emit(Reshape((*x.shape[:at], *inner, *x.shape[at + 1 :])), x)


def reshape_as(to: Lower, x: Slot, other: Slot) -> Slot:
    """view_as, too."""
    return to.emit(Reshape(other.shape), x)


def _triangle(to: Lower, x: Slot, upper: bool, diagonal: int) -> Slot:
    if len(x.shape) < 2:
        raise NotKnown("a triangle of a vector")
    return to.emit(Triangle(upper, diagonal), x)


def triu(to: Lower, x: Slot, diagonal: int = 0) -> Slot:
    return _triangle(to, x, True, diagonal)


def tril(to: Lower, x: Slot, diagonal: int = 0) -> Slot:
    return _triangle(to, x, False, diagonal)


def cumsum(to: Lower, x: Slot, dim: int, *, dtype: Any = None) -> Slot:
    if not x.like.dtype.is_floating_point or dtype not in (None, x.like.dtype):
        raise NotKnown(f"a cumulative sum of {x.like.dtype} as {dtype}")
    return to.emit(CumulativeSum(*_dims(x, [dim])), x) if x.shape else x


def pad(to: Any, x: Slot, pad: Any, mode: str = "constant", value: float | None = None) -> Slot:
    if mode != "constant":
        raise NotKnown(f"padding with mode={mode!r}")
    widths = numbers((pad,))
    value = float(value or 0)
    if not value:
        return to.emit(Pad(widths), x)
    if not math.isfinite(value) or not x.like.dtype.is_floating_point:
        raise NotKnown(f"padding of {x.like.dtype} with {value}")
    inside = torch.zeros(x.shape, dtype=x.like.dtype, device=x.like.device)
    border = torch.nn.functional.pad(inside, widths, value=value)
    return to.emit(Add(), to.emit(Pad(widths), x), to.constant(border))


def gather(to: Lower, x: Slot, dim: int, index: Slot, *, sparse_grad: bool = False) -> Slot:
    if sparse_grad or not x.shape or len(index.shape) != len(x.shape):
        raise NotKnown("gather with sparse_grad, or of a value without dimensions")
    return to.emit(Gather(*_dims(x, [dim])), x, index)


def index_select(to: Lower, x: Slot, dim: int, index: Slot) -> Slot:
    if not _is_index(index) or not x.shape:
        raise NotKnown(f"a selection by {index.like.dtype}")
    (at,) = _dims(x, [dim])
    return to.emit(Index((at,), at), x, index if index.shape else to.emit(Reshape((1,)), index))


def _is_index(value: Any) -> bool:
    return isinstance(value, Slot) and value.like.dtype == torch.int64


def indexed(to: Any, x: Slot, index: Any) -> Slot:
    """x[index] with tensors or lists of integers among slices and Ellipsis."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(p is None or isinstance(p, bool | int) for p in parts):
        raise NotKnown("indexing with tensors beside numbers or None")
    if Ellipsis in [p for p in parts if not isinstance(p, Slot)]:
        at = next(i for i, p in enumerate(parts) if p is Ellipsis)
        parts[at : at + 1] = [slice(None)] * (len(x.shape) + 1 - len(parts))
    parts = [_as_index(to, p, x) for p in parts]
    if any(p != slice(None) for p in parts if isinstance(p, slice)):
        x = to.emit(Select(tuple(p if isinstance(p, slice) else slice(None) for p in parts)), x)
    dims = tuple(i for i, p in enumerate(parts) if isinstance(p, Slot))
    adjacent = dims[-1] - dims[0] == len(dims) - 1
    return to.emit(Index(dims, dims[0] if adjacent else 0), x, *(p for p in parts if isinstance(p, Slot)))


def _as_index(to: Any, part: Any, x: Slot) -> Any:
    if isinstance(part, slice) or _is_index(part):
        return part
    if isinstance(part, list) and part and all(isinstance(i, int) and not isinstance(i, bool) for i in part):
        return to.constant(torch.tensor(part, device=x.like.device))
    raise NotKnown("indexing with something other than integers and slices, such as a mask")
