"""A plan with a loss at its end: value, gradient and Hessian-vector product of all tasks at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.ops.base import Loss, Saved
from fastmeta.ops.dropout import step_keys
from fastmeta.program.layout import Layout
from fastmeta.program.plan import Plan, Tape


class Data(NamedTuple):
    """One set of samples of all tasks, as the leaves of the user's trees: [T, N, ...] each."""

    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]

    def take(self, index: slice | Tensor, dim: int) -> Data:
        def pick(x: Tensor) -> Tensor:
            if isinstance(index, slice):
                return x[index] if dim == 0 else x[:, index]
            return x.index_select(dim, index)

        return Data(tuple(map(pick, self.inputs)), tuple(map(pick, self.targets)))


class Context(NamedTuple):
    """What a step reads beside data and fast weights: frozen parameters and buffers, and the tasks' random keys [T]."""

    constants: tuple[Tensor, ...]
    keys: Tensor

    def at(self, step: int, plan: Plan) -> Context:
        """The context of inner step `step` of a plan; the query pass counts as step K."""
        return Context(self.constants, step_keys(self.keys, step)) if plan.random else self

    def take(self, tasks: slice) -> Context:
        return Context(self.constants, self.keys[tasks])


class Evaluation(NamedTuple):
    """A loss at some φ, with the tapes of plan and loss."""

    outputs: list[Tensor]
    saved: Saved
    tape: Tape


@dataclass(frozen=True)
class Objective:
    """A plan with a per-task loss at its end: value, gradient and Hessian-vector product.

    `skip` rows in front of the samples are not seen by the loss: the support set, where it lends its batch-norm
    statistics to the query samples behind it.
    """

    plan: Plan
    loss: Loss | None  # None: only the outputs are wanted
    layout: Layout
    skip: int = 0

    @property
    def _loss(self) -> Loss:
        assert self.loss is not None, "this objective was made without a loss"
        return self.loss

    def _needs(self, data: Data) -> tuple[bool, ...]:
        return (*self.plan.output_active, *(False,) * len(data.targets))

    def _forward(
        self, phi: Tensor, inputs: tuple[Tensor, ...], context: Context, keep: bool
    ) -> tuple[list[Tensor], Tape]:
        views = self.layout.views(phi)
        outputs, tape = self.plan.forward(views, inputs, context.constants, context.keys, keep=keep)
        return ([y[:, self.skip :] for y in outputs] if self.skip else outputs), tape

    def outputs(self, phi: Tensor, inputs: tuple[Tensor, ...], context: Context) -> list[Tensor]:
        """The module's outputs [T, M, ...] at φ."""
        return self._forward(phi, inputs, context, False)[0]

    def pullback(
        self, phi: Tensor, inputs: tuple[Tensor, ...], context: Context, d_outputs: Sequence[Tensor | None]
    ) -> Tensor:
        """∂(d_outputs · outputs)/∂φ [T, P]. Computes the outputs again, so nothing lives between the two."""
        _, tape = self._forward(phi, inputs, context, True)
        return self._backward(tape, d_outputs, phi.shape[0], keep=False)[0]

    def _backward(
        self, tape: Tape, d_outputs: Sequence[Tensor | None], tasks: int, *, keep: bool
    ) -> tuple[Tensor, list[Any]]:
        if self.skip:
            d_outputs = [None if d is None else _after_zeros(d, self.skip) for d in d_outputs]
        grads, cotangents = self.plan.backward(tape, d_outputs, keep=keep)
        return self.layout.pack(grads, tasks), cotangents

    def evaluate(self, phi: Tensor, data: Data, context: Context, *, keep: bool = True) -> Evaluation:
        outputs, tape = self._forward(phi, data.inputs, context, keep)
        return Evaluation(outputs, self._loss.prepare(*outputs, *data.targets), tape)

    def losses(self, at: Evaluation) -> Tensor:
        """[T]."""
        return self._loss.value(at.saved)

    def gradient(self, at: Evaluation, data: Data, *, keep: bool = False) -> tuple[Tensor, list[Any]]:
        """g [T, P] of each task's own loss; the cotangents inside the plan too where `keep` asks for them."""
        outputs = len(self.plan.output_slots)
        d_outputs = self._loss.backward(at.saved, None, self._needs(data))[:outputs]
        return self._backward(at.tape, d_outputs, at.outputs[0].shape[0], keep=keep)

    def hessian_product(self, at: Evaluation, data: Data, cotangents: list[Any], v: Tensor) -> Tensor:
        """H v [T, P], H the Hessian of each task's loss: the gradient on dual numbers. Consumes the tapes."""
        outputs = len(self.plan.output_slots)
        outputs_dot, tape_dot = self.plan.forward_dot(at.tape, self.layout.views(v))
        no_tangent = (None,) * len(data.targets)
        _, saved_dot = self._loss.forward_dot(at.saved, (*outputs_dot, *no_tangent))
        d_outputs_dot = self._loss.backward_dot(at.saved, saved_dot, None, None, self._needs(data))[:outputs]
        grads = self.plan.backward_dot(at.tape, tape_dot, cotangents, d_outputs_dot)
        return self.layout.pack(grads, v.shape[0])


def _after_zeros(d: Tensor, rows: int) -> Tensor:
    return torch.cat([d.new_zeros(d.shape[0], rows, *d.shape[2:]), d], 1)
