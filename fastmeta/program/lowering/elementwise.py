"""Rules of elementary functions, bounds, choices and dtypes."""

from __future__ import annotations

import math
from typing import Any

import torch

from fastmeta.ops.cast import Cast
from fastmeta.ops.where import Extremum, Where

from .activations import act
from .arithmetic import mul
from .base import Lower, NotKnown, Rule, Slot
from .shapes import chunk


def _unary(kind: str) -> Rule:
    """The rule of a function of one tensor, with or without `inplace`."""

    def rule(to: Lower, x: Slot, inplace: bool = False) -> Slot:  # noqa: ARG001
        return _act(to, x, kind)

    return rule


def _act(to: Lower, x: Slot, kind: str, *args: float) -> Slot:
    if not isinstance(x, Slot) or not x.like.dtype.is_floating_point:
        raise NotKnown(f"{kind} of something that is not a floating tensor")
    return act(to, x, kind, *args)


absolute = _unary("abs")
atan = _unary("atan")
cos = _unary("cos")
cosh = _unary("cosh")
erf = _unary("erf")
exp = _unary("exp")
expm1 = _unary("expm1")
hardswish = _unary("hardswish")
log = _unary("log")
log1p = _unary("log1p")
logsigmoid = _unary("logsigmoid")
mish = _unary("mish")
reciprocal = _unary("reciprocal")
rsqrt = _unary("rsqrt")
selu = _unary("selu")
sinh = _unary("sinh")
softsign = _unary("softsign")
sqrt = _unary("sqrt")
tan = _unary("tan")


def square(to: Lower, x: Slot) -> Slot:
    return _act(to, x, "pow", 2.0)


def power(to: Lower, x: Slot, exponent: Any) -> Slot:
    """x ** exponent with a plain number."""
    if isinstance(exponent, bool) or not isinstance(exponent, int | float):
        raise NotKnown("a power whose exponent is not a plain number")
    return _act(to, x, "pow", float(exponent))


def hardtanh(
    to: Lower,
    x: Slot,
    min_val: float = -1.0,
    max_val: float = 1.0,
    inplace: bool = False,  # noqa: ARG001
) -> Slot:
    return _act(to, x, "hardtanh", _bound(min_val), _bound(max_val))


def relu6(to: Lower, x: Slot, inplace: bool = False) -> Slot:  # noqa: ARG001
    return _act(to, x, "hardtanh", 0.0, 6.0)


def clamp(to: Lower, x: Slot, min: Any = None, max: Any = None) -> Slot:
    low, high = -math.inf if min is None else _bound(min), math.inf if max is None else _bound(max)
    return _act(to, x, "clamp", low, high)


def clamp_min(to: Lower, x: Slot, min: Any) -> Slot:
    return clamp(to, x, min)


def clamp_max(to: Lower, x: Slot, max: Any) -> Slot:
    return clamp(to, x, None, max)


def _bound(value: Any) -> float:
    if not isinstance(value, int | float) or math.isnan(value):
        raise NotKnown("a bound that is not a plain number")
    return float(value)


def glu(to: Lower, x: Slot, dim: int = -1) -> Slot:
    if not x.shape or x.shape[dim] % 2:
        raise NotKnown(f"glu of {list(x.shape)} along {dim}")
    value, gate = chunk(to, x, 2, dim)
    return mul(to, value, _act(to, gate, "sigmoid"))


def where(to: Lower, condition: Any, x: Any, other: Any) -> Slot:
    """torch.where(condition, input, other); either branch may be a number."""
    slots = [v for v in (x, other) if isinstance(v, Slot)]
    if not isinstance(condition, Slot) or condition.like.dtype != torch.bool:
        raise NotKnown("a choice by something other than a tensor of bools")
    if not slots or len({s.like.dtype for s in slots}) > 1:
        raise NotKnown("a choice between numbers or between several dtypes")
    a, b = (None if isinstance(v, Slot) else _branch(v, slots[0]) for v in (x, other))
    return to.emit(Where(a, b), condition, *slots)


def where_method(to: Lower, x: Any, condition: Any, other: Any) -> Slot:
    """x.where(condition, other)."""
    return where(to, condition, x, other)


def masked_fill(to: Lower, x: Slot, mask: Slot, value: Any) -> Slot:
    if isinstance(value, Slot) and value.shape:
        raise NotKnown("masked_fill with a value of several elements")
    return where(to, mask, value, x)


def _branch(value: Any, slot: Slot) -> float:
    """A number that leaves the other branch its dtype."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if slot.like.dtype.is_floating_point and (whole or isinstance(value, float)):
        return value
    if whole and slot.like.dtype != torch.bool:
        return value
    raise NotKnown(f"a choice between {slot.like.dtype} and {value!r}")


def _extremum(to: Lower, x: Any, other: Any, largest: bool) -> Slot:
    if not isinstance(x, Slot) or not isinstance(other, Slot) or x.like.dtype != other.like.dtype:
        raise NotKnown("the larger or smaller of two dtypes, or along a dimension")
    if not x.like.dtype.is_floating_point:
        raise NotKnown(f"the larger or smaller of {x.like.dtype}")
    return to.emit(Extremum(largest), x, other)


def maximum(to: Lower, x: Slot, other: Any) -> Slot:
    return _extremum(to, x, other, True)


def minimum(to: Lower, x: Slot, other: Any) -> Slot:
    return _extremum(to, x, other, False)


def cast(to: Lower, x: Slot, *args: Any, **kwargs: Any) -> Slot:
    """x.to(dtype), x.to(device), x.to(device, dtype), x.to(other), with what else it takes; no other device."""
    kwargs = {k: v for k, v in kwargs.items() if k not in ("non_blocking", "copy")}
    dtype, given = x.like.dtype, [*args, *kwargs.values()]
    for value in given:
        if isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, Slot):
            dtype = value.like.dtype
        elif isinstance(value, str | torch.device | int) and not isinstance(value, bool):
            device = torch.device(value)
            if device.type != x.like.device.type or device.index not in (None, x.like.device.index):
                raise NotKnown(f"a copy to {device}")
        elif value is not None and not isinstance(value, bool):
            raise NotKnown(f"a conversion by {type(value).__name__}")
    return to_dtype(to, x, dtype)


def to_dtype(to: Lower, x: Slot, dtype: torch.dtype) -> Slot:
    if dtype == x.like.dtype:
        return x
    if dtype.is_complex or (x.like.dtype.is_floating_point and not dtype.is_floating_point):
        raise NotKnown(f"a conversion from {x.like.dtype} to {dtype}")
    return to.emit(Cast(dtype), x)


def _as(dtype: torch.dtype) -> Rule:
    def rule(to: Lower, x: Slot) -> Slot:
        return to_dtype(to, x, dtype)

    return rule


as_float = _as(torch.float32)
as_double = _as(torch.float64)
as_half = _as(torch.float16)
as_bfloat16 = _as(torch.bfloat16)


def type_as(to: Lower, x: Slot, other: Slot) -> Slot:
    return cast(to, x, other)
