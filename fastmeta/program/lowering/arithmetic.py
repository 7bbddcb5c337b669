"""Rules of sums and products, of tensors and plain numbers."""

from __future__ import annotations

from typing import Any

from fastmeta.ops.arithmetic import Add, Mul, Scale, Shift

from .base import Lower, NotKnown, Slot


def add(to: Lower, a: Slot | float, b: Slot | float, *, alpha: float = 1) -> Slot:
    _check_floats(a, b)
    if isinstance(a, Slot) and isinstance(b, Slot):
        return to.emit(Add(float(alpha)), a, b)
    if isinstance(a, Slot):
        return to.emit(Shift(float(alpha) * _number(b)), a)
    assert isinstance(b, Slot)
    return add(to, b if alpha == 1 else to.emit(Scale(float(alpha)), b), a)


def sub(to: Lower, a: Slot | float, b: Slot | float, *, alpha: float = 1) -> Slot:
    if isinstance(b, Slot) and not isinstance(a, Slot):
        _check_floats(b)
        return to.emit(Shift(_number(a)), to.emit(Scale(-float(alpha)), b))
    return add(to, a, b, alpha=-alpha)


def rsub(to: Lower, a: Slot, b: Slot | float, *, alpha: float = 1) -> Slot:
    return sub(to, b, a, alpha=alpha)


def mul(to: Lower, a: Slot | float, b: Slot | float) -> Slot:
    _check_floats(a, b)
    if isinstance(a, Slot) and isinstance(b, Slot):
        return to.emit(Mul(), a, b)
    x, factor = (a, b) if isinstance(a, Slot) else (b, a)
    assert isinstance(x, Slot)
    return to.emit(Scale(_number(factor)), x)


def div(to: Lower, a: Slot | float, b: Slot | float, *, rounding_mode: str | None = None) -> Slot:
    if isinstance(a, Slot) and not isinstance(b, Slot) and rounding_mode is None:
        return to.emit(Scale(1.0 / _number(b)), a)
    raise NotKnown("division by a tensor, or rounded")


def neg(to: Lower, x: Slot) -> Slot:
    _check_floats(x)
    return to.emit(Scale(-1.0), x)


def _number(value: Any) -> float:
    if not isinstance(value, int | float):
        raise NotKnown(f"arithmetic with a {type(value).__name__}")
    return float(value)


def _check_floats(*values: Slot | float) -> None:
    """An op's plain numbers are floats, which would make a float of an index; two dtypes would have to be promoted."""
    dtypes = sorted({str(v.like.dtype) for v in values if isinstance(v, Slot)})
    if len(dtypes) > 1 or not all(v.like.dtype.is_floating_point for v in values if isinstance(v, Slot)):
        raise NotKnown(f"arithmetic of {' with '.join(dtypes)}")
