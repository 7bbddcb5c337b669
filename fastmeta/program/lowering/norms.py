"""Rules of normalisation layers."""

from __future__ import annotations

from typing import Any

import torch

from fastmeta.ops.arithmetic import Add, Mul, Shift
from fastmeta.ops.group_norm import GroupNorm
from fastmeta.ops.norm import batch_norm, layer_norm
from fastmeta.ops.shape import Reduce, Reshape

from .activations import act
from .base import Lower, NotKnown, Slot


def batch_norm_rule(
    to: Lower,
    x: Slot,
    running_mean: Slot | None,
    running_var: Slot | None,
    weight: Slot | None = None,
    bias: Slot | None = None,
    training: bool = False,
    momentum: float | None = 0.1,  # noqa: ARG001  of the running statistics
    eps: float = 1e-5,
) -> Slot:
    if len(x.shape) < 2:
        raise NotKnown(f"batch norm of an unbatched value {list(x.shape)}")
    running = [] if training else [s for s in (running_mean, running_var) if s is not None]
    _check_dtypes(x, weight, bias, *running)
    affine = weight is not None and bias is not None
    rows = to.rows if training else None
    op = batch_norm(len(x.shape), x.shape[1], eps, affine=affine, fixed=not training, rows=rows)
    y = to.emit(op, x, *(s for s in ((weight, bias) if affine else ()) if s is not None), *running)
    shape = (x.shape[1], *(1,) * (len(x.shape) - 2))
    return y if affine else _half_affine(to, y, weight, bias, shape)


def instance_norm_rule(
    to: Lower,
    x: Slot,
    running_mean: Slot | None = None,
    running_var: Slot | None = None,
    weight: Slot | None = None,
    bias: Slot | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Slot:
    """Over the positions of each sample and channel: group norm with a channel a group."""
    if not use_input_stats:
        return batch_norm_rule(to, x, running_mean, running_var, weight, bias, False, momentum, eps)
    if len(x.shape) < 3:
        raise NotKnown(f"instance norm of an unbatched value {list(x.shape)}")
    return group_norm_rule(to, x, x.shape[1], weight, bias, eps)


def layer_norm_rule(
    to: Lower,
    x: Slot,
    normalized_shape: Any,
    weight: Slot | None = None,
    bias: Slot | None = None,
    eps: float = 1e-5,
) -> Slot:
    _check_dtypes(x, weight, bias)
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    affine = weight is not None and bias is not None
    op = layer_norm(len(x.shape), shape, eps, affine=affine)
    y = to.emit(op, x, *(s for s in ((weight, bias) if affine else ()) if s is not None))
    return y if affine else _half_affine(to, y, weight, bias, shape)


def rms_norm_rule(
    to: Lower, x: Slot, normalized_shape: Any, weight: Slot | None = None, eps: float | None = None
) -> Slot:
    """x / sqrt(mean(x²) + eps) · weight."""
    _check_dtypes(x, weight)
    k = 1 if isinstance(normalized_shape, int) else len(normalized_shape)
    dims = tuple(range(len(x.shape) - k, len(x.shape)))
    squares = to.emit(Reduce(dims, True, True), act(to, x, "pow", 2.0))
    shifted = to.emit(Shift(torch.finfo(x.like.dtype).eps if eps is None else eps), squares)
    y = to.emit(Mul(), x, act(to, shifted, "rsqrt"))
    return y if weight is None else to.emit(Mul(), y, weight)


def _half_affine(to: Lower, y: Slot, weight: Slot | None, bias: Slot | None, shape: tuple[int, ...]) -> Slot:
    """y scaled or shifted, where there is only one of weight and bias."""
    if weight is not None:
        return to.emit(Mul(), y, to.emit(Reshape(shape), weight))
    return y if bias is None else to.emit(Add(), y, to.emit(Reshape(shape), bias))


def _check_dtypes(*values: Slot | None) -> None:
    dtypes = sorted({str(v.like.dtype) for v in values if v is not None})
    if len(dtypes) > 1:
        raise NotKnown(f"a norm of {' with '.join(dtypes)}")


def group_norm_rule(
    to: Lower,
    x: Slot,
    num_groups: int,
    weight: Slot | None = None,
    bias: Slot | None = None,
    eps: float = 1e-5,
) -> Slot:
    _check_dtypes(x, weight, bias)
    affine = weight is not None and bias is not None
    op = GroupNorm(num_groups, x.shape[1], eps, affine)
    y = to.emit(op, x, *(s for s in ((weight, bias) if affine else ()) if s is not None))
    shape = (x.shape[1], *(1,) * (len(x.shape) - 2))
    return y if affine else _half_affine(to, y, weight, bias, shape)
