"""Rules of normalisation layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastmeta.ops.group_norm import GroupNorm
from fastmeta.ops.norm import batch_norm as batch_norm_op
from fastmeta.ops.norm import layer_norm

from .base import Lower, NotKnown, Slot


def batch_norm_module(to: Lower, m: nn.BatchNorm1d | nn.BatchNorm2d, x: Slot) -> Slot:
    ndim = len(x.shape)
    if ndim < 2:
        raise NotKnown(f"batch norm of an unbatched value {list(x.shape)}")
    fixed = not m.training and m.running_mean is not None
    gamma, beta = to.tensor(m, "weight"), to.tensor(m, "bias")
    mean, var = to.tensor(m, "running_mean"), to.tensor(m, "running_var")
    rows = None if fixed else to.rows
    op = batch_norm_op(ndim, m.num_features, m.eps, affine=gamma is not None, fixed=fixed, rows=rows)
    return to.emit(op, x, *(s for s in (gamma, beta, *((mean, var) if fixed else ())) if s is not None))


def layer_norm_rule(
    to: Lower,
    x: Slot,
    normalized_shape: Any,
    weight: Slot | None = None,
    bias: Slot | None = None,
    eps: float = 1e-5,
) -> Slot:
    if (weight is None) != (bias is None):
        raise NotKnown("layer norm with only one of weight and bias")
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    op = layer_norm(len(x.shape), shape, eps, affine=weight is not None)
    return to.emit(op, x, *(s for s in (weight, bias) if s is not None))


def layer_norm_module(to: Lower, m: nn.LayerNorm, x: Slot) -> Slot:
    return layer_norm_rule(to, x, m.normalized_shape, to.tensor(m, "weight"), to.tensor(m, "bias"), m.eps)


def group_norm_rule(
    to: Lower,
    x: Slot,
    num_groups: int,
    weight: Slot | None = None,
    bias: Slot | None = None,
    eps: float = 1e-5,
) -> Slot:
    if (weight is None) != (bias is None):
        raise NotKnown("group norm with only one of weight and bias")
    op = GroupNorm(num_groups, x.shape[1], eps, weight is not None)
    return to.emit(op, x, *(s for s in (weight, bias) if s is not None))


def group_norm_module(to: Lower, m: nn.GroupNorm, x: Slot) -> Slot:
    return group_norm_rule(to, x, m.num_groups, to.tensor(m, "weight"), to.tensor(m, "bias"), m.eps)


def batch_norm(
    to: Lower,
    x: Slot,
    running_mean: Slot | None,
    running_var: Slot | None,
    weight: Slot | None = None,
    bias: Slot | None = None,
    training: bool = False,
    momentum: float = 0.1,  # noqa: ARG001  of running statistics, which are never written
    eps: float = 1e-5,
) -> Slot:
    ndim = len(x.shape)
    if ndim < 2:
        raise NotKnown(f"batch norm of an unbatched value {list(x.shape)}")
    if (weight is None) != (bias is None):
        raise NotKnown("batch norm with only one of weight and bias")
    rows = to.rows if training else None
    op = batch_norm_op(ndim, x.shape[1], eps, affine=weight is not None, fixed=not training, rows=rows)
    return to.emit(
        op, x, *(s for s in (weight, bias, *((running_mean, running_var) if not training else ())) if s is not None)
    )
