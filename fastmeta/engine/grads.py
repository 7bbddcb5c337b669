"""A meta-gradient straight into `.grad`, as autograd adds it, where adding is all that autograd would do there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastmeta.internals import accumulators_kept, add_all, hooked_tensor
from fastmeta.stateless import TURN

_PLAIN = (nn.Parameter, Tensor)


def added(tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> bool:
    """Adds each gradient to its tensor's `.grad`; the memory of gradients becomes theirs where there is none yet.

    False, with nothing done, where autograd must do it: tensors that were computed, hooks, DistributedDataParallel,
    another dtype or form than the parameter's, and whatever else is no plain sum.
    """
    pairs = [(t, g) for t, g in zip(tensors, gradients, strict=True) if t.requires_grad and g is not None]
    wanted = [t for t, _ in pairs]
    if not wanted or torch.is_anomaly_enabled() or len({id(t) for t in wanted}) < len(wanted):
        return False
    with TURN:  # another thread's may be the same parameters
        if not all(_plain(t, g) for t, g in pairs) or accumulators_kept(wanted):
            return False
        there = [(t.grad, g) for t, g in pairs if t.grad is not None]
        if there:
            add_all([grad for grad, _ in there], [g for _, g in there])
        for t, g in pairs if len(there) < len(pairs) else ():
            if t.grad is None:
                t.grad = g
    return True


def _plain(t: Tensor, g: Tensor) -> bool:
    """Whether autograd would do nothing to a leaf but add `g`, in the leaf's own form, and call nobody."""
    if t.__class__ not in _PLAIN or not t.is_leaf:
        return False
    dtype, grad = t.dtype, t.grad
    return (
        not hooked_tensor(t)
        and t.is_contiguous()
        and g.is_contiguous()
        and g.dtype is dtype
        and g.shape == t.shape
        and not dtype.is_complex  # of which gradients may be lazily conjugated
        and getattr(t, "grad_dtype", dtype) is dtype
        and (grad is None or _can_take(grad, dtype))
    )


def _can_take(grad: Tensor, dtype: torch.dtype) -> bool:
    return (
        grad.__class__ is Tensor
        and grad.layout is torch.strided
        and grad.dtype is dtype
        and not grad.requires_grad
        and not grad.is_inference()
    )
