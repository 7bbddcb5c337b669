"""The inner loop of all tasks at once, and its exact adjoint by forward-over-reverse.

Functions of tensors only: nothing here touches autograd, so `torch.compile(fullgraph=True)` takes a whole
second-order meta-step, and memory is the trajectory φ_0 … φ_K plus what `memory` says is kept of a step.

Notation (derivations: kernels/README.md): θ meta-parameters, φ [T, P] fast weights, λ [T, P] adjoint
∂(outer loss)/∂φ, σ the adjoint of the inner optimiser's state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .batch import finite_tasks
from .inner import InnerOptimizer, State
from .layout import Layout
from .ops.base import Loss, Saved
from .ops.dropout import step_keys
from .plan import Plan, Tape


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


class Record(NamedTuple):
    """What an inner step computed on its way: its gradient, evaluation and the cotangents inside the plan."""

    # None where the optimiser's vjp does not read it: kept, it takes the cache (25 sinusoids: 6.0 ms for 5.6)
    g: Tensor | None
    at: Evaluation
    cotangents: list[Any]


class Trajectory(NamedTuple):
    """φ_k and the optimiser's state before every inner step; a step without a record is computed again from φ_k."""

    phis: list[Tensor]
    states: list[State]
    records: list[Record | None]


@dataclass(frozen=True)
class InnerLoop:
    """K steps of the inner optimiser on the support set of every task."""

    objective: Objective
    optimizer: InnerOptimizer
    steps: int
    batch: int | None  # samples a step, taken from the support set cyclically; None: all of them
    recompute: bool  # keep φ_k alone, not the step's activations

    def _batch(self, support: Data, k: int) -> Data:
        samples = (*support.inputs, *support.targets)[0].shape[1]
        if self.batch is None or self.batch == samples:
            return support
        start = k * self.batch % samples
        if start + self.batch <= samples:
            return support.take(slice(start, start + self.batch), 1)
        device = support.inputs[0].device
        return support.take((torch.arange(self.batch, device=device) + start) % samples, 1)

    def _gradient(self, phi: Tensor, k: int, support: Data, context: Context, *, keep: bool) -> tuple[Tensor, Record]:
        data = self._batch(support, k)
        at = self.objective.evaluate(phi, data, context.at(k, self.objective.plan))
        g, cotangents = self.objective.gradient(at, data, keep=keep)
        return g, Record(g if self.optimizer.vjp_reads_gradient else None, at, cotangents)

    def run(self, phi: Tensor, support: Data, context: Context, *, keep: bool) -> tuple[Tensor, Trajectory]:
        """φ_0 → φ_K, and the trajectory where `keep` asks for it."""
        state = self.optimizer.init(phi)
        trajectory = Trajectory([], [], [])
        for k in range(self.steps):
            g, record = self._gradient(phi, k, support, context, keep=keep and not self.recompute)
            if keep:
                trajectory.phis.append(phi)
                trajectory.states.append(state)
                trajectory.records.append(None if self.recompute else record)
            phi, state = self.optimizer.step(phi, g, state, k)
        return phi, trajectory

    def adjoint(self, trajectory: Trajectory, support: Data, context: Context, lam: Tensor) -> Tensor:
        """λ_K → λ_0, exactly, by the optimiser's vjp and the loss's Hessian at every φ_k. Uses the records up."""
        sigma = self.optimizer.init(lam)
        phis, states, records = trajectory
        for k in range(len(phis) - 1, -1, -1):
            record, records[k] = records[k], None
            if record is None:
                _, record = self._gradient(phis[k], k, support, context, keep=True)
            pulled = self.optimizer.vjp(phis[k], record.g, states[k], k, lam, sigma)
            data = self._batch(support, k)
            product = self.objective.hessian_product(record.at, data, record.cotangents, pulled.v)
            lam, sigma = pulled.direct.add(product, alpha=pulled.factor), pulled.state
        return lam


class TaskResults(NamedTuple):
    """What a meta-step gives for each task.

    A task that met a NaN or infinity, in its support data or on the way, has `finite` false and a λ_0 of zero, so
    that it cannot reach the other tasks' meta-gradient.
    """

    losses: Tensor  # [T]
    outputs: list[Tensor]  # [T, M, ...]
    finite: Tensor  # [T] bool
    lam: Tensor | None  # λ_0 [T, P]: each task's share of the meta-gradient, where it was asked for

    @classmethod
    def joined(cls, slices: Sequence[TaskResults]) -> TaskResults:
        """Of slices of the tasks, in new tensors."""
        losses, outputs, finite, lams = zip(*slices, strict=True)
        joined = [torch.cat(ys) for ys in zip(*outputs, strict=True)]
        return cls(torch.cat(losses), joined, torch.cat(finite), None if lams[0] is None else torch.cat(lams))


class MetaGradient(NamedTuple):
    """What a meta-step gives: means over the tasks that stayed finite, and what they are means of.

    `lent` stands for `tasks.lam` where λ_0 lies in memory that the next meta-step overwrites: it gives λ_0, or raises.
    """

    loss: Tensor
    gradient: Tensor | None  # [P]
    tasks: TaskResults
    lent: Callable[[], Tensor] | None = None

    @classmethod
    def of(cls, tasks: TaskResults) -> MetaGradient:
        gradient = None if tasks.lam is None else tasks.lam.sum(0) / tasks.finite.sum()
        return cls(mean_finite(tasks.losses, tasks.finite), gradient, tasks)


def mean_finite(losses: Tensor, finite: Tensor) -> Tensor:
    """Mean of [T] losses over the tasks that stayed finite; NaN without any, for all to see."""
    return torch.where(finite, losses, 0.0).sum() / finite.sum()  # where, not a product: 0 · NaN is NaN


ORDERS = ("exact", "first", "reptile")


@dataclass(frozen=True)
class Engine:
    """A whole meta-step for one set of shapes: inner loop, query loss, adjoint. `order` is one of ORDERS."""

    loop: InnerLoop
    outer: Objective
    order: str

    @property
    def random(self) -> bool:
        """Whether the module draws random numbers."""
        return self.loop.objective.plan.random or self.outer.plan.random

    def adapt(
        self, params: Sequence[Tensor], support: Data, context: Context, *, keep: bool
    ) -> tuple[Tensor, Trajectory]:
        """θ as the module's parameters → φ_K [T, P]. At the first step all tasks read θ itself, through stride 0."""
        theta = self.outer.layout.pack([p.unsqueeze(0) for p in params], 1)
        phi = theta.expand(context.keys.shape[0], -1)
        return self.loop.run(phi, support, context, keep=keep and self.order == "exact")

    def meta_step(
        self, params: Sequence[Tensor], support: Data, query: Data, context: Context, *, keep: bool
    ) -> TaskResults:
        """Losses and outputs on the query set and, where `keep` says so, each task's share of the meta-gradient."""
        phi, trajectory = self.adapt(params, support, context, keep=keep)
        differentiate = keep and self.order != "reptile"
        at = self.outer.evaluate(phi, query, context.at(self.loop.steps, self.outer.plan), keep=differentiate)
        losses = self.outer.losses(at)
        if not keep:
            return TaskResults(losses, at.outputs, finite_tasks(support.inputs, losses), None)
        if self.order == "reptile":
            lam = self.outer.layout.pack([p.unsqueeze(0) for p in params], 1) - phi
        else:
            lam, _ = self.outer.gradient(at, query)
        if self.order == "exact":
            lam = self.loop.adjoint(trajectory, support, context, lam)
        finite = finite_tasks(support.inputs, losses, lam)
        return TaskResults(losses, at.outputs, finite, torch.where(finite.unsqueeze(1), lam, 0.0))
