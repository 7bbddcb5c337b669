"""A plan with a loss at its end: value, gradient and Hessian-vector product of all tasks at once.

Functions of tensors only: nothing here touches autograd, so `torch.compile(fullgraph=True)` takes a whole
second-order meta-step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.inner_step import inner_step_at
from fastmeta.ops.base import Loss, Saved, total
from fastmeta.ops.dropout import step_keys
from fastmeta.program.layout import Layout
from fastmeta.program.plan import Gradients, Plan, Tape


class Data(NamedTuple):
    """One set of samples of all tasks, as the leaves of the user's trees: [T, N, ...] each."""

    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]

    def take(self, index: slice | Tensor, dim: int) -> Data:
        """Some of the tasks (dimension 0) or of the samples (1)."""

        def pick(x: Tensor) -> Tensor:
            if isinstance(index, slice):
                return x[index] if dim == 0 else x[:, index]
            return x.index_select(dim, index)

        return Data(tuple(map(pick, self.inputs)), tuple(map(pick, self.targets)))

    def rows(self, batch: int | None, k: int) -> slice | Tensor | None:
        """Which samples the `k`-th slice of `batch` of them holds, cyclically; None: all."""
        samples = (*self.inputs, *self.targets)[0].shape[1]
        if batch is None or batch == samples:
            return None
        start = k * batch % samples
        if start + batch <= samples:
            return slice(start, start + batch)
        return (torch.arange(batch, device=self.inputs[0].device) + start) % samples


class Context(NamedTuple):
    """What a step reads beside data and fast weights: what all tasks share, and the tasks' random keys [T]."""

    shared: tuple[Tensor, ...]  # ψ, parameters that no task moves
    constants: tuple[Tensor, ...]  # frozen parameters and buffers
    keys: Tensor

    def at(self, step: int, plan: Plan, *, query: bool = False) -> Context:
        """The context of inner step `step` of a plan, or of the query pass at φ_step.

        Random keys number that as one more step. A module that reads its inner step reads there that of the last step.
        """
        context = self.reading(max(step - 1, 0) if query else step, plan)
        return context._replace(keys=step_keys(self.keys, step)) if plan.random else context

    def reading(self, step: int, plan: Plan) -> Context:
        """With `step` in the buffers by which a module reads in which inner step it is."""
        if not plan.step_constants:
            return self
        constants = list(self.constants)
        for i in plan.step_constants:
            constants[i] = inner_step_at(constants[i], step)
        return self._replace(constants=tuple(constants))

    def take(self, tasks: slice) -> Context:
        """Of some of the tasks."""
        return self._replace(keys=self.keys[tasks])


class Evaluation(NamedTuple):
    """A loss at some φ, with the tapes of plan and loss."""

    outputs: list[Tensor]
    saved: Saved
    tape: Tape


class Slopes(NamedTuple):
    """Cotangents of all that an objective reads and that gets a gradient, each task's own."""

    phi: Tensor  # [T, P]
    shared: Tensor | None  # [T, P of ψ]; None: nothing is shared, or it was not asked for
    data: tuple[Tensor | None, ...]  # of inputs, then targets; () where none of them gets a gradient


@dataclass(frozen=True)
class Objective:
    """A plan with a per-task loss at its end.

    `skip` rows in front of the samples do not reach the loss: the support set, where batch norm takes the statistics of
    the query samples behind it from there.
    """

    plan: Plan
    loss: Loss | None  # None: only the outputs are wanted
    layout: Layout
    shared: Layout
    skip: int = 0
    targets_wanted: tuple[bool, ...] = ()  # which targets get a gradient

    @property
    def _loss(self) -> Loss:
        assert self.loss is not None, "this objective was made without a loss"
        return self.loss

    @cached_property
    def shared_or_data(self) -> bool:
        """Whether anything but fast weights gets a gradient."""
        return bool(self.shared.size) or self.data_wanted

    @cached_property
    def data_wanted(self) -> bool:
        """Whether any input or target gets a gradient."""
        return any(self.plan.input_wanted) or any(self.targets_wanted)

    @cached_property
    def _moving(self) -> tuple[bool, ...]:
        """Which inputs of the loss matter for an inner gradient."""
        return (*self.plan.output_moving, *(False,) * len(self.targets_wanted))

    @cached_property
    def _active(self) -> tuple[bool, ...]:
        """And which for the gradients of everything that gets one."""
        return (*self.plan.output_active, *self.targets_wanted)

    @cached_property
    def _outputs(self) -> int:
        return len(self.plan.output_slots)

    @cached_property
    def _visible(self) -> int:
        """Outputs that the module returns; those behind them are for the loss alone."""
        return self._outputs - self.plan.hidden

    def _forward(
        self, phi: Tensor, inputs: tuple[Tensor, ...], context: Context, keep: bool
    ) -> tuple[list[Tensor], Tape]:
        views = self.layout.views(phi)
        outputs, tape = self.plan.forward(views, context.shared, inputs, context.constants, context.keys, keep=keep)
        if self.skip:
            outputs = [y[:, self.skip :] if i < self._visible else y for i, y in enumerate(outputs)]
        return outputs, tape

    def outputs(self, phi: Tensor, inputs: tuple[Tensor, ...], context: Context) -> list[Tensor]:
        """The module's outputs [T, M, ...] at φ."""
        return self._forward(phi, inputs, context, False)[0]

    def pullback(
        self, phi: Tensor, inputs: tuple[Tensor, ...], context: Context, d_outputs: Sequence[Tensor | None]
    ) -> Slopes:
        """Cotangents of d_outputs · outputs. Computes the outputs again, so nothing lives between the two."""
        _, tape = self._forward(phi, inputs, context, True)
        gradients, _ = self._backward(tape, d_outputs, keep=False, whole=True)
        return self._slopes(gradients, (), phi.shape[0], whole=True)

    def _backward(
        self, tape: Tape, d_outputs: Sequence[Tensor | None], *, keep: bool, whole: bool
    ) -> tuple[Gradients, list[Any]]:
        if self.skip:
            rows = [self.skip if i < self._visible else 0 for i in range(len(d_outputs))]
            d_outputs = [None if d is None else _after_zeros(d, n) for d, n in zip(d_outputs, rows, strict=True)]
        return self.plan.backward(tape, d_outputs, keep=keep, whole=whole)

    def _slopes(self, gradients: Gradients, d_targets: Sequence[Tensor | None], tasks: int, *, whole: bool) -> Slopes:
        phi = self.layout.pack(gradients.params, tasks)
        if not whole:
            return Slopes(phi, None, ())
        shared = self.shared.pack(gradients.shared, tasks) if self.shared.size else None
        return Slopes(phi, shared, (*gradients.inputs, *d_targets) if self.data_wanted else ())

    def evaluate(self, phi: Tensor, data: Data, context: Context, *, keep: bool = True) -> Evaluation:
        """The module's outputs at φ, and what its loss leaves for the sweeps."""
        outputs, tape = self._forward(phi, data.inputs, context, keep)
        return Evaluation(outputs, self._loss.prepare(*outputs, *data.targets), tape)

    def losses(self, at: Evaluation) -> Tensor:
        """[T]."""
        return self._loss.value(at.saved)

    def gradient(
        self, at: Evaluation, data: Data, *, keep: bool = False, whole: bool = False
    ) -> tuple[Slopes, list[Any]]:
        """g [T, P] of each task's own loss, and with `whole` the gradients of all else that gets one; the cotangents
        inside the plan too where `keep` asks for them."""
        d = self._loss.backward(at.saved, None, self._active if whole else self._moving)
        d_outputs, d_targets = d[: self._outputs], d[self._outputs :]
        gradients, cotangents = self._backward(at.tape, d_outputs, keep=keep, whole=whole)
        return self._slopes(gradients, d_targets, at.outputs[0].shape[0], whole=whole), cotangents

    def hessian_product(self, at: Evaluation, data: Data, cotangents: list[Any], v: Tensor) -> Slopes:
        """H v [T, P], H the Hessian of each task's loss, and the mixed second derivatives along v of all else that gets
        a gradient: the gradient on dual numbers. Consumes the tapes."""
        outputs_dot, tape_dot = self.plan.forward_dot(at.tape, self.layout.views(v))
        no_tangent = (None,) * len(data.targets)
        _, saved_dot = self._loss.forward_dot(at.saved, (*outputs_dot, *no_tangent))
        d_dot = self._loss.backward_dot(at.saved, saved_dot, None, None, self._active)
        gradients = self.plan.backward_dot(at.tape, tape_dot, cotangents, d_dot[: self._outputs])
        return self._slopes(gradients, d_dot[self._outputs :], v.shape[0], whole=self.shared_or_data)


def plus_shared(a: Slopes, b: Slopes, alpha: float | Tensor) -> Slopes:
    """`a`, with alpha times what `b` has of shared parameters and data added to its own."""

    def plus(x: Tensor | None, y: Tensor | None) -> Tensor | None:
        return x if y is None else total(x, y if isinstance(alpha, float) and alpha == 1.0 else y * alpha)

    data = a.data or (None,) * len(b.data)
    data = tuple(plus(x, y) for x, y in zip(data, b.data or (None,) * len(data), strict=True))
    return Slopes(a.phi, plus(a.shared, b.shared), data)


def among_all(d: Tensor | None, x: Tensor, rows: slice | Tensor) -> Tensor | None:
    """The gradient of some samples of `x` [T, N, ...] as that of all of them."""
    if d is None:
        return None
    if isinstance(rows, slice):
        zeros = d.new_zeros(x.shape)
        zeros[:, rows] = d
        return zeros
    return d.new_zeros(x.shape).index_add(1, rows, d)


def _after_zeros(d: Tensor, rows: int) -> Tensor:
    if not rows:
        return d
    return torch.cat([d.new_zeros(d.shape[0], rows, *d.shape[2:]), d], 1)
