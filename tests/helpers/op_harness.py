"""Holds an op's four sweeps against autograd, one task at a time in float64, in every memory layout the engine uses."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from fastmeta.ops.base import Loss, Op

with warnings.catch_warnings():  # PyTorch's first use of forward-mode derivatives scripts some of its own functions
    warnings.simplefilter("ignore", DeprecationWarning)
    jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))

RTOL, ATOL = 1e-10, 1e-11
Values = tuple[Tensor, ...]


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def dense(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def strided(x: Tensor) -> Tensor:
    """The same values with a gap behind each; what lies in the gaps is NaN, or an index that does not exist."""
    gap = torch.full_like(x, torch.nan if x.is_floating_point() else 10**6)
    return torch.stack([x, gap], -1).flatten(-2)[..., ::2]


def permuted(x: Tensor) -> Tensor:
    """The same values with the dimensions in memory the other way round."""
    order = tuple(reversed(range(x.dim())))
    return x.permute(order).contiguous().permute(order)


def same_for_all_tasks(x: Tensor) -> Tensor:
    """The first task's values for all tasks, through stride 0."""
    return x[:1].expand_as(x)


def same_in_a_task(x: Tensor) -> Tensor:
    """One value for a whole task, through stride 0: the cotangent of a sum."""
    return x.reshape(x.shape[0], -1)[:, :1].view(-1, *(1,) * (x.dim() - 1)).expand_as(x)


Move = Callable[[Tensor], Tensor]
# name: how the first input lies in memory, the other inputs (parameters), tangents, cotangents
LAYOUTS: dict[str, tuple[Move, Move, Move, Move]] = {
    "dense": (dense, dense, dense, dense),
    "strided": (strided, strided, strided, strided),
    "permuted": (permuted, permuted, permuted, permuted),
    "shared parameters": (dense, same_for_all_tasks, dense, same_in_a_task),
    "shared parameters, strided": (strided, same_for_all_tasks, strided, permuted),
    "all shared": (same_for_all_tasks, same_for_all_tasks, dense, same_for_all_tasks),
    "one task": (lambda x: x[:1], lambda x: x[:1], lambda x: x[:1], lambda x: x[:1]),
}


def as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def subsets(indices: Sequence[int]) -> list[frozenset[int]]:
    """Each index alone, and all but each."""
    every = frozenset(indices)
    some = {frozenset({i}) for i in indices} | {every - {i} for i in indices}
    return sorted(some - {every, frozenset()}, key=sorted)


def every_subset(indices: Sequence[int]) -> list[frozenset[int]]:
    """All of them, the empty one first."""
    return [frozenset(some) for n in range(len(indices) + 1) for some in combinations(indices, n)]


def check_op(
    op: Op, plain: Callable[..., Any], *inputs: Tensor, active: Sequence[int] | None = None, unused: Sequence[int] = ()
) -> None:
    """Compares forward with `plain`, backward with vjp, forward_dot with jvp, backward_dot with the jvp of the vjp.

    Args:
        op: the op under test.
        plain: the same function of one task.
        inputs: [T, ...] each.
        active: inputs that may depend on a trainable parameter; by default all floating ones. Each alone and
            all but each are tried: as what has a tangent and wants a cotangent, and as only one of the two.
        unused: outputs that nobody reads, whose cotangent is None.
    """
    if active is None:
        active = [i for i, x in enumerate(inputs) if x.is_floating_point()]
    everything = frozenset(active)
    for name, moves in LAYOUTS.items():
        check = _Check(op, plain, inputs, moves, unused, name)
        check.sweep(everything, everything)
        if name in ("dense", "shared parameters"):
            for some in subsets(active):
                check.sweep(some, some)
                check.sweep(everything, some)
                check.sweep(some, everything)


def check_every_pattern(
    op: Op, plain: Callable[..., Any], *inputs: Tensor, active: Sequence[int] | None = None, unused: Sequence[int] = ()
) -> None:
    """As `check_op`, for every set of inputs that want a cotangent times every set that has a tangent.

    Fast weights have both. Parameters that all tasks share and a module's inputs want a cotangent and have no tangent;
    what comes after a fast weight has a tangent, and wants no cotangent where only its neighbour is trained.
    """
    if active is None:
        active = [i for i, x in enumerate(inputs) if x.is_floating_point()]
    for name in ("dense", "shared parameters"):
        check = _Check(op, plain, inputs, LAYOUTS[name], unused, name)
        for needs in every_subset(active)[1:]:
            for moving in every_subset(active):
                check.sweep(needs, moving)


class _Check:
    """One layout of the inputs, with fixed tangents and cotangents."""

    def __init__(
        self,
        op: Op,
        plain: Callable[..., Any],
        inputs: Values,
        moves: tuple[Move, ...],
        unused: Sequence[int],
        layout: str,
    ) -> None:
        self.op, self.plain, self.layout = op, plain, layout
        first, rest, along, back = moves
        self.inputs = tuple((rest if i else first)(x) for i, x in enumerate(inputs))
        dots = [torch.randn_like(x) if x.is_floating_point() else None for x in inputs]
        self.dots = tuple(None if d is None else along(d) for d in dots)
        self.y, self.saved = op.forward(*self.inputs)
        self.outputs = as_tuple(self.y)
        used = [i for i, y in enumerate(self.outputs) if y.is_floating_point() and i not in unused]
        dys = [(torch.randn_like(y), torch.randn_like(y)) if i in used else None for i, y in enumerate(self.outputs)]
        if layout == "one task":
            back = dense
        self.dys = tuple(None if pair is None else back(pair[0]) for pair in dys)
        self.dys_dot = tuple(None if pair is None else dense(pair[1]) for pair in dys)
        self._truths: dict[frozenset[int], tuple[tuple[Tensor | None, ...], ...]] = {}
        self._agree("forward", self.outputs, vmap(lambda *xs: as_tuple(plain(*xs)))(*map(dense, self.inputs)))

    def sweep(self, needs: frozenset[int], moving: frozenset[int]) -> None:
        before = [x.clone() for x in (*self.inputs, *self.dys, *self.dys_dot, *self.dots) if x is not None]
        op, many = self.op, len(self.outputs) > 1
        mask = tuple(i in needs for i in range(len(self.inputs)))
        dots = tuple(d if i in moving else None for i, d in enumerate(self.dots))
        dy, dy_dot = (self.dys, self.dys_dot) if many else (self.dys[0], self.dys_dot[0])
        if moving not in self._truths:
            self._truths[moving] = self._truth(dots)
        ys_dot_true, ds_true, ds_dot_true = self._truths[moving]
        where = f"needs {sorted(needs)}, tangents {sorted(moving)}"
        ds = op.backward(self.saved, dy, mask)
        if moving:
            y_dot, saved_dot = op.forward_dot(self.saved, dots)
            ds_dot = op.backward_dot(self.saved, saved_dot, dy, dy_dot, mask)
            if not isinstance(op, Loss):  # which has no tangent of its own
                self._agree(f"forward_dot, {where}", as_tuple(y_dot), ys_dot_true)
        else:  # such an op has no tangent sweep: its backward is linear in dy
            ds_dot = op.backward(self.saved, dy_dot, mask)
        self._agree(f"backward, {where}", ds, _only(ds_true, needs))
        self._agree(f"backward_dot, {where}", ds_dot, _only(ds_dot_true, needs))
        after = [x for x in (*self.inputs, *self.dys, *self.dys_dot, *self.dots) if x is not None]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "a sweep changed what it was given"

    def _truth(self, dots: tuple[Tensor | None, ...]) -> tuple[tuple[Tensor | None, ...], ...]:
        """y_dot, d_inputs and their tangent by torch.func, None where a value has no derivative."""
        floating = [i for i, x in enumerate(self.inputs) if x.is_floating_point()]
        tangents = tuple(torch.zeros_like(self.inputs[i]) if dots[i] is None else dots[i] for i in floating)
        dys, dys_dot = (tuple(d for d in ds if d is not None) for ds in (self.dys, self.dys_dot))

        def one(xs: Values, tangents: Values, dys: Values, dys_dot: Values) -> Values:
            def floats_of(*some: Tensor) -> Values:
                full = list(xs)
                for i, x in zip(floating, some, strict=True):
                    full[i] = x
                return tuple(y for y in as_tuple(self.plain(*full)) if y.is_floating_point())

            def read(*some: Tensor) -> Values:
                floats = iter(floats_of(*some))
                ys = [next(floats) if y.is_floating_point() else None for y in self.outputs]
                return tuple(y for y, dy in zip(ys, self.dys, strict=True) if dy is not None and y is not None)

            def pull(*args: Tensor) -> Values:
                return vjp(read, *args[: len(floating)])[1](args[len(floating) :])

            primals = tuple(xs[i] for i in floating)
            ys_dot = jvp(floats_of, primals, tangents)[1]
            ds, ds_dot = jvp(pull, (*primals, *dys), (*tangents, *dys_dot))
            return (*ys_dot, *ds, *ds_dot)

        values = iter(vmap(one)(*(tuple(map(dense, some)) for some in (self.inputs, tangents, dys, dys_dot))))
        ys_dot = tuple(next(values) if y.is_floating_point() else None for y in self.outputs)
        ds, ds_dot = (tuple(next(values) if x.is_floating_point() else None for x in self.inputs) for _ in range(2))
        return ys_dot, ds, ds_dot

    def _agree(self, what: str, got: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> None:
        title = f"{type(self.op).__name__}, {self.layout}: {what}"
        assert len(got) == len(expected), f"{title}: {len(got)} values instead of {len(expected)}"
        for i, (a, b) in enumerate(zip(got, expected, strict=True)):
            assert (a is None) == (b is None), f"{title}: value {i} is {'absent' if a is None else 'not None'}"
            if a is not None:
                torch.testing.assert_close(a, b, rtol=RTOL, atol=ATOL, msg=lambda m, i=i: f"{title}, value {i}: {m}")


def _only(values: Sequence[Tensor | None], needs: frozenset[int]) -> tuple[Tensor | None, ...]:
    """None for the cotangents that nobody needs."""
    return tuple(d if i in needs else None for i, d in enumerate(values))
