"""A meta-gradient straight into `.grad`, as autograd adds it, where adding is all that autograd would do there."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter, is_

import torch
from torch import Tensor, nn

from fastmeta.internals import accumulators_kept, add_all, holders
from fastmeta.program.layout import Layout
from fastmeta.stateless import TURN

from .adjoint import Cotangents
from .autograd import Sources

_PLAIN = (nn.Parameter, Tensor)
_HAS_GRAD_DTYPE = hasattr(Tensor, "grad_dtype")
_looked_at = attrgetter(
    "__class__", "is_leaf", "requires_grad", "dtype", "_backward_hooks", "_post_accumulate_grad_hooks", "grad",
    *(("grad_dtype",) if _HAS_GRAD_DTYPE else ()),
)  # fmt: skip


class GradRow:
    """`.grad` of a row's parameters as views of one row that is made once: eighteen new ones take half of the time.

    Later steps write into it where nobody else holds any of it: a gradient that was kept stays as it is.
    """

    def __init__(self) -> None:
        self._layout: Layout | None = None
        self._row: Tensor | None = None
        self._views: tuple[Tensor, ...] = ()
        self._alone: tuple[int, ...] = ()  # its holders when nobody else has any of it

    def add(self, parameters: Sequence[Tensor], layout: Layout, gradient: Tensor, *, empty: bool) -> None:
        """Adds a row [P] to the parameters' `.grad`; `empty` says that none of them has one."""
        mine = self._row if self._layout is layout else None
        if not empty:
            grads = [p.grad for p in parameters]
            if mine is not None and all(map(is_, grads, self._views)):
                mine += gradient
            else:
                _add(parameters, grads, layout.split(gradient.clone()))
            return
        if mine is not None and holders(mine, self._views) == self._alone:
            mine.copy_(gradient)
        else:
            self._layout, self._row = layout, gradient.clone()  # what was given may be written again
            self._views = layout.split(self._row)
            self._alone = holders(self._row, self._views)
        for p, view in zip(parameters, self._views, strict=True):
            p.grad = view


def _add(leaves: Sequence[Tensor], grads: Sequence[Tensor | None], given: Sequence[Tensor]) -> None:
    """Adds to what is there; the memory of what is given becomes the leaves' where there is nothing."""
    there = [(grad, g) for grad, g in zip(grads, given, strict=True) if grad is not None]
    if there:
        add_all([grad for grad, _ in there], [g for _, g in there])
    for leaf, grad, g in zip(leaves, grads, given, strict=True):
        if grad is None:
            leaf.grad = g


def added(sources: Sources, gradient: Cotangents, row: GradRow) -> bool:
    """Adds a meta-gradient, which may be written again afterwards, to `.grad` of its sources.

    False, with nothing done, where autograd must do it: sources that were computed, hooks, DistributedDataParallel,
    another dtype or form than the parameter's, and whatever else is no plain sum.
    """
    start, layout = sources.at.start, sources.layout
    if isinstance(start, Tensor) or layout.mixed or sources.data or sources.at.state:
        return False
    if not torch.is_grad_enabled() or torch.is_anomaly_enabled():
        return False
    others: list[tuple[Tensor, Tensor]] = []
    if any(t.requires_grad for t in (*sources.at.shared, *sources.at.meta)):
        rest = zip(sources.tensors(), sources.gradients(gradient), strict=True)
        others = [(t, g) for t, g in list(rest)[len(start) :] if t.requires_grad and g is not None]
    with TURN:  # another thread's may be the same parameters
        # most parameters are like this one, and every microsecond counts, eighteen times
        usual = (nn.Parameter, True, True, layout.dtype, None, None, None, *((layout.dtype,) * _HAS_GRAD_DTYPE))
        empty = True
        for p in start:
            if not (p.is_leaf and _looked_at(p) == usual and p.is_contiguous()):
                empty = False
                if not _is_plain(p, layout.dtype):
                    return False
        leaves = list(start)
        if others:
            leaves += [t for t, _ in others]
            if not all(_is_sum(t, g) for t, g in others) or len(set(map(id, leaves))) < len(leaves):
                return False
        if accumulators_kept(leaves):
            return False
        row.add(start, layout, gradient.start, empty=empty)
        if others:
            _add([t for t, _ in others], [t.grad for t, _ in others], [g for _, g in others])
    return True


def _is_sum(t: Tensor, g: Tensor) -> bool:
    return g.shape == t.shape and g.dtype is t.dtype and g.is_contiguous() and _is_plain(t, g.dtype)


def _is_plain(t: Tensor, dtype: torch.dtype) -> bool:
    """Whether autograd would do nothing to a leaf but add a gradient of the leaf's form, and call nobody."""
    if t.__class__ not in _PLAIN or not t.is_leaf:
        return False
    grad = t.grad
    return (
        t.requires_grad
        and t.dtype is dtype
        and not (t._backward_hooks or t._post_accumulate_grad_hooks)
        and t.is_contiguous()
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
