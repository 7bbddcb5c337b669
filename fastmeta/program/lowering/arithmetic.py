"""Rules of sums and products, of tensors and plain numbers."""

from __future__ import annotations

from typing import Any

from fastmeta.ops.activation import Activation
from fastmeta.ops.arithmetic import Add, Mul, Scale, Shift
from fastmeta.ops.divide import Div

from .base import Lower, NotKnown, Slot


def add(to: Lower, x: Slot | float, other: Slot | float, *, alpha: float = 1) -> Slot:
    _check_floats(x, other)
    if isinstance(x, Slot) and isinstance(other, Slot):
        return to.emit(Add(float(alpha)), x, other)
    if isinstance(x, Slot):
        return to.emit(Shift(float(alpha) * _number(other)), x)
    assert isinstance(other, Slot)
    return add(to, other if alpha == 1 else to.emit(Scale(float(alpha)), other), x)


def sub(to: Lower, x: Slot | float, other: Slot | float, *, alpha: float = 1) -> Slot:
    if isinstance(other, Slot) and not isinstance(x, Slot):
        _check_floats(other)
        return to.emit(Shift(_number(x)), to.emit(Scale(-float(alpha)), other))
    return add(to, x, other, alpha=-alpha)


def rsub(to: Lower, x: Slot, other: Slot | float, *, alpha: float = 1) -> Slot:
    return sub(to, other, x, alpha=alpha)


def mul(to: Lower, x: Slot | float, other: Slot | float) -> Slot:
    _check_floats(x, other)
    if isinstance(x, Slot) and isinstance(other, Slot):
        return to.emit(Mul(), x, other)
    tensor, factor = (x, other) if isinstance(x, Slot) else (other, x)
    assert isinstance(tensor, Slot)
    return to.emit(Scale(_number(factor)), tensor)


def div(to: Lower, x: Slot | float, other: Slot | float, *, rounding_mode: str | None = None) -> Slot:
    if rounding_mode is not None:
        raise NotKnown("a rounded division")
    _check_floats(x, other)
    if isinstance(x, Slot) and isinstance(other, Slot):
        return to.emit(Div(), x, other)
    if isinstance(x, Slot):
        divisor = _number(other)
        if divisor == 0:
            raise NotKnown("division by zero")
        return to.emit(Scale(1.0 / divisor), x)
    assert isinstance(other, Slot)
    return to.emit(Scale(_number(x)), to.emit(Activation("reciprocal"), other))


def rdiv(to: Lower, x: Slot, other: Slot | float, *, rounding_mode: str | None = None) -> Slot:
    return div(to, other, x, rounding_mode=rounding_mode)


def addcmul(to: Lower, x: Slot, tensor1: Slot, tensor2: Slot, *, value: float = 1) -> Slot:
    return add(to, x, mul(to, tensor1, tensor2), alpha=_number(value))


def addcdiv(to: Lower, x: Slot, tensor1: Slot, tensor2: Slot, *, value: float = 1) -> Slot:
    return add(to, x, div(to, tensor1, tensor2), alpha=_number(value))


def lerp(to: Lower, x: Slot, end: Slot, weight: Slot | float) -> Slot:
    return add(to, x, mul(to, sub(to, end, x), weight))


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
