"""Rules of variances, standard deviations and norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from fastmeta.ops.shape import Reduce
from fastmeta.ops.spread import Spread

from .arithmetic import add, div, sub
from .base import Lower, NotKnown, Slot
from .elementwise import clamp_min


class _Over(NamedTuple):
    """What a variance is taken over."""

    dims: tuple[int, ...]
    correction: float
    keepdim: bool


def _dims(x: Slot, dim: Any) -> tuple[int, ...]:
    if not x.shape or not x.like.dtype.is_floating_point:
        raise NotKnown("a variance or norm of integers, or of a value without dimensions")
    n = len(x.shape)
    if dim is None or dim in ((), []):
        return tuple(range(n))
    return tuple(d % n for d in ([dim] if isinstance(dim, int) else dim))


def _over(x: Slot, args: tuple[Any, ...], dim: Any, unbiased: bool | None, correction: Any, keepdim: bool) -> _Over:
    """From the arguments of torch.var: (unbiased), (dim), (dim, unbiased), (dim, unbiased, keepdim) or keywords."""
    if args and isinstance(args[0], bool):
        args = (dim, *args)
    if len(args) > 3 or (len(args) == 3 and not isinstance(args[2], bool)):
        raise NotKnown("a variance with unusual arguments")
    dim = args[0] if args else dim
    unbiased = args[1] if len(args) > 1 else unbiased
    keepdim = args[2] if len(args) > 2 else keepdim
    correction = (1 if correction is None else correction) if unbiased is None else int(unbiased)
    dims = _dims(x, dim)
    if math.prod(x.shape[d] for d in dims) <= correction:
        raise NotKnown("a variance of no more samples than its correction")
    return _Over(dims, float(correction), keepdim)


def _variance(to: Lower, x: Slot, over: _Over, root: bool) -> Slot:
    return to.emit(Spread(over.dims, over.keepdim, True, root, over.correction), x)


def var(
    to: Lower,
    x: Slot,
    *args: Any,
    dim: Any = None,
    unbiased: bool | None = None,
    correction: Any = 1,
    keepdim: bool = False,
) -> Slot:
    return _variance(to, x, _over(x, args, dim, unbiased, correction, keepdim), False)


def std(
    to: Lower,
    x: Slot,
    *args: Any,
    dim: Any = None,
    unbiased: bool | None = None,
    correction: Any = 1,
    keepdim: bool = False,
) -> Slot:
    return _variance(to, x, _over(x, args, dim, unbiased, correction, keepdim), True)


def _with_mean(to: Lower, x: Slot, over: _Over, root: bool) -> tuple[Slot, Slot]:
    return _variance(to, x, over, root), to.emit(Reduce(over.dims, over.keepdim, True), x)


def var_mean(
    to: Lower,
    x: Slot,
    *args: Any,
    dim: Any = None,
    unbiased: bool | None = None,
    correction: Any = 1,
    keepdim: bool = False,
) -> tuple[Slot, Slot]:
    return _with_mean(to, x, _over(x, args, dim, unbiased, correction, keepdim), False)


def std_mean(
    to: Lower,
    x: Slot,
    *args: Any,
    dim: Any = None,
    unbiased: bool | None = None,
    correction: Any = 1,
    keepdim: bool = False,
) -> tuple[Slot, Slot]:
    return _with_mean(to, x, _over(x, args, dim, unbiased, correction, keepdim), True)


def _euclidean(to: Lower, x: Slot, dim: Any, keepdim: bool, dtype: Any) -> Slot:
    if dtype not in (None, x.like.dtype):
        raise NotKnown(f"a norm of {x.like.dtype} as {dtype}")
    return to.emit(Spread(_dims(x, dim), keepdim, False, True), x)


def norm(to: Lower, x: Slot, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Slot:
    """torch.norm and Tensor.norm, which are Euclidean for p = 2, "fro" and None."""
    if isinstance(p, bool) or p not in (2, "fro", None):
        raise NotKnown(f"a norm with p={p!r}")
    return _euclidean(to, x, dim, keepdim, dtype)


def vector_norm(to: Lower, x: Slot, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Slot:
    if isinstance(ord, bool) or ord != 2:
        raise NotKnown(f"a norm with ord={ord!r}")
    return _euclidean(to, x, dim, keepdim, dtype)


def linalg_norm(
    to: Lower, x: Slot, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Slot:
    """Of vectors where one dimension is meant, and of all elements in a row; a spectral norm has no op."""
    one = isinstance(dim, int) or (isinstance(dim, Sequence) and len(dim) == 1) or (dim is None and len(x.shape) == 1)
    if not (ord is None or (ord == 2 and one) or (ord == "fro" and not one)):
        raise NotKnown(f"a norm with ord={ord!r} and dim={dim!r}")
    return _euclidean(to, x, dim, keepdim, dtype)


def normalize(to: Lower, x: Slot, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Any = None) -> Slot:
    """x / max(norm, eps), a row at a time."""
    if out is not None:
        raise NotKnown("normalize into a tensor")
    return div(to, x, clamp_min(to, norm(to, x, p, dim, True), eps))


def pairwise_distance(to: Lower, x1: Slot, x2: Slot, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Slot:
    """Norm of x1 − x2 + eps over the last dimension."""
    return norm(to, add(to, sub(to, x1, x2), eps), p, -1, keepdim)
