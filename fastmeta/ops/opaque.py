"""Any function of tensors as an op: its four sweeps come from torch.func, vmapped over tasks.

Slower than an op with sweeps of its own, and always available. `fn` sees one task and must be functional: nothing
it is given may be changed in place. Attention inside runs PyTorch's "math" form, the only one that can be
differentiated twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from .base import Loss, MaybeTensors, Needs, Op, shared

Tensors: TypeAlias = tuple[Tensor, ...]
Groups: TypeAlias = tuple[MaybeTensors, ...]


@dataclass(frozen=True)
class Opaque(Op[Tensors, MaybeTensors]):
    """`fn(*tensors) → tuple of tensors`, all without the task dimension.

    Args:
        fn: the function.
        title: what `explain()` calls it.
        random: it draws random numbers; its last input is then the step's keys [T], which seed every sweep alike.
        smooth: which outputs have a derivative, as an index has none; None: all.
        layer: a number of its own for each that draws, so that no two in a module draw the same.
    """

    fn: Callable[..., Tensors]
    title: str
    random: bool = False
    layer: int = 0
    smooth: tuple[bool, ...] | None = None

    @property
    def name(self) -> str:
        """What `explain()` calls it."""
        return self.title

    def _mapped(self, f: Callable[..., Tensors], groups: Groups) -> Tensors:
        """f over the tasks. Where it draws random numbers one by one, each from its own key, so that no task's numbers
        depend on which other tasks are there."""
        # PyTorch's formulas of solve, det and the like use their saved factors as constants where gradients are off, and
        # are then wrong to second order
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            if not self.random:
                return self._over_tasks(f, groups)
            keys = groups[0][-1]
            assert keys is not None
            return _one_by_one(f, groups, seeds=[seed_of(key, self.layer) for key in keys.tolist()])

    @staticmethod
    def _over_tasks(f: Callable[..., Tensors], groups: Groups) -> Tensors:
        """What all tasks share is handed over once."""
        dims = tuple(tuple(None if x is None or shared(x) else 0 for x in group) for group in groups)
        args = tuple(tuple(x[0] if x is not None and shared(x) else x for x in group) for group in groups)
        flat = [d for group in dims for d in group]
        if all(d is None for d in flat):  # nothing to map over: hand over copies of one tensor per task
            dims = tuple(tuple(None if x is None else 0 for x in group) for group in groups)
            args = groups
        args = tuple(tuple(None if x is None else _own_memory(x) for x in group) for group in args)
        try:
            return vmap(f, dims, randomness="different")(*args)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            # What vmap refuses (gaussian_nll_loss looks at its data, rrelu has no rule) has no type of its own, so the
            # tasks are tried one by one: an error of `f` itself is raised there again, in the shapes of one task.
            return _one_by_one(f, groups)

    def _call(self, inputs: Tensors) -> Tensors:
        return self.fn(*(inputs[:-1] if self.random else inputs))

    def forward(self, *inputs: Tensor) -> tuple[Any, Tensors]:
        ys = self._mapped(self._call, (inputs,))
        return (ys[0] if len(ys) == 1 else ys), inputs

    def _pullback(self, xs: Tensors, dys: tuple[Tensor | None, ...], needs: Needs) -> Tensors:
        """Cotangents of the needed inputs, for one task."""
        wanted = tuple(x for x, need in zip(xs, needs, strict=True) if need)

        def of(*some: Tensor) -> Tensors:
            it = iter(some)
            ys = self._call(tuple(next(it) if need else x for x, need in zip(xs, needs, strict=True)))
            return tuple(y for y, dy in zip(ys, dys, strict=True) if dy is not None)

        pull = vjp(of, *wanted)[1]
        return pull(tuple(dy for dy in dys if dy is not None))

    def backward(self, saved: Tensors, dy: Any, needs: Needs) -> MaybeTensors:
        dys = dy if isinstance(dy, tuple) else (dy,)
        ds = self._mapped(lambda xs, dys: self._pullback(xs, dys, needs), (saved, dys))
        return _at_needed(ds, needs)

    @staticmethod
    def tangents(inputs: Tensors, inputs_dot: MaybeTensors) -> MaybeTensors:
        """Zeros in full for None: some of PyTorch's formulas (mse_loss) write into the symbolic zero they are given."""
        return tuple(
            torch.zeros_like(x) if d is None and (x.is_floating_point() or x.is_complex()) else d
            for x, d in zip(inputs, inputs_dot, strict=True)
        )

    def _full(self, sweep: Callable[[MaybeTensors], Tensors], inputs: Tensors, inputs_dot: MaybeTensors) -> Tensors:
        """A sweep on full tangents; without those that PyTorch refuses, of what has no derivative (soft_margin_loss)."""
        full = self.tangents(inputs, inputs_dot)
        try:
            return sweep(full)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            if all(f is d for f, d in zip(full, inputs_dot, strict=True)):
                raise
            return sweep(inputs_dot)

    def forward_dot(self, saved: Tensors, inputs_dot: MaybeTensors) -> tuple[Any, MaybeTensors]:
        def one(xs: Tensors, dots: MaybeTensors) -> Tensors:
            moving = tuple(d is not None for d in dots)

            def of(*some: Tensor) -> Tensors:
                it = iter(some)
                ys = self._call(tuple(next(it) if m else x for x, m in zip(xs, moving, strict=True)))
                return ys if self.smooth is None else tuple(y for y, has in zip(ys, self.smooth, strict=True) if has)

            primals = tuple(x for x, m in zip(xs, moving, strict=True) if m)
            return _tangents_of(of, primals, tuple(d for d in dots if d is not None))

        dots = self._full(lambda full: self._mapped(one, (saved, full)), saved, inputs_dot)
        ys_dot: MaybeTensors = dots if self.smooth is None else _at_needed(dots, self.smooth)
        return (ys_dot[0] if len(ys_dot) == 1 else ys_dot), inputs_dot

    def backward_dot(self, saved: Tensors, saved_dot: MaybeTensors, dy: Any, dy_dot: Any, needs: Needs) -> MaybeTensors:
        dys = dy if isinstance(dy, tuple) else (dy,)
        dys_dot = dy_dot if isinstance(dy_dot, tuple) else (dy_dot,)
        dys_dot = tuple(
            torch.zeros_like(d) if d is not None and dot is None else dot for d, dot in zip(dys, dys_dot, strict=True)
        )

        def one(xs: Tensors, dots: MaybeTensors, dys: MaybeTensors, dys_dot: MaybeTensors) -> Tensors:
            values, tangents = (*xs, *dys), (*dots, *dys_dot)
            moving = tuple(t is not None for t in tangents)

            def of(*some: Tensor) -> Tensors:
                it = iter(some)
                full = [next(it) if m else v for v, m in zip(values, moving, strict=True)]
                return self._pullback(tuple(full[: len(xs)]), tuple(full[len(xs) :]), needs)  # pyright: ignore[reportArgumentType, reportReturnType]

            primals = tuple(v for v, m in zip(values, moving, strict=True) if m)
            return _tangents_of(of, primals, tuple(t for t in tangents if t is not None))  # pyright: ignore[reportArgumentType]

        ds = self._full(lambda full: self._mapped(one, (saved, full, dys, dys_dot)), saved, saved_dot)
        return _at_needed(ds, needs)


def _tangents_of(f: Callable[..., Tensors], primals: Tensors, tangents: Tensors) -> Tensors:
    """Tangent of f's outputs. For what has no forward-mode rule (huber_loss, mish), twice reverse: u ↦ Jᵀu is linear,
    and its own transpose is J."""
    try:
        ys, ys_dot, *_ = jvp(f, primals, tangents)
        # under vmap, forward mode takes 0.1 · (a tensor without dimensions) for float64
        return tuple(dot.to(y.dtype) for y, dot in zip(ys, ys_dot, strict=True))
    except NotImplementedError:  # PyTorch's word for a missing rule; where `f` raised it, it does so again below
        pass
    ys, pull, *_ = vjp(f, *primals)
    transpose = vjp(pull, tuple(map(torch.zeros_like, ys)))[1]
    return transpose(tangents)[0]


class LossInputs(NamedTuple):
    """What a forward sweep of a loss leaves: all inputs, and the losses [T]."""

    inputs: Tensors
    losses: Tensor


@dataclass(frozen=True)
class OpaqueLoss(Loss[LossInputs, MaybeTensors]):
    """A loss as an opaque op of one output."""

    op: Opaque

    @property
    def name(self) -> str:
        return self.op.name

    def prepare(self, *inputs: Tensor) -> LossInputs:
        losses, saved = self.op.forward(*inputs)
        return LossInputs(saved, losses)

    def value(self, saved: LossInputs) -> Tensor:
        return saved.losses

    def backward(self, saved: LossInputs, dy: Tensor | None, needs: Needs) -> MaybeTensors:
        inputs, losses = saved
        return self.op.backward(inputs, torch.ones_like(losses) if dy is None else dy, needs)

    def forward_dot(self, saved: LossInputs, inputs_dot: MaybeTensors) -> tuple[None, MaybeTensors]:
        return None, self.op.tangents(saved.inputs, inputs_dot)

    def backward_dot(
        self, saved: LossInputs, saved_dot: MaybeTensors, dy: Tensor | None, dy_dot: Tensor | None, needs: Needs
    ) -> MaybeTensors:
        inputs, losses = saved
        return self.op.backward_dot(inputs, saved_dot, torch.ones_like(losses) if dy is None else dy, dy_dot, needs)


def seed_of(key: int, layer: int) -> int:
    """A seed out of a task's key, for one of the ops that draw."""
    return (key + layer * 0x9E3779B97F4A7C15) % 2**63


def _own_memory(x: Tensor) -> Tensor:
    """A copy of a value whose elements share memory (the cotangent of a mean): dual numbers are refused on those."""
    overlaps = any(stride == 0 and size > 1 for stride, size in zip(x.stride(), x.shape, strict=True))
    return x.contiguous() if overlaps else x


def _one_by_one(f: Callable[..., Tensors], groups: Groups, seeds: Sequence[int] | None = None) -> Tensors:
    """f of each task by itself, where there are `seeds` with random numbers from the task's own."""
    tasks = next(x.shape[0] for x in groups[0] if x is not None)
    each: list[Tensors] = []
    for t in range(tasks):
        one = tuple(tuple(None if x is None else _own_memory(x[t]) for x in group) for group in groups)
        with nullcontext() if seeds is None else _seeded(seeds[t]):
            each.append(f(*one))
    return tuple(torch.stack(values) for values in zip(*each, strict=True))


def _at_needed(ds: Tensors, needs: Needs) -> MaybeTensors:
    it = iter(ds)
    return tuple(next(it) if need else None for need in needs)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers from `seed` inside; the caller's stream is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
