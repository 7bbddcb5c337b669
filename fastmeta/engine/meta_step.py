"""A whole meta-step for one set of shapes: inner loop, query loss, adjoint.

Functions of tensors only: nothing here touches autograd, so `torch.compile(fullgraph=True)` takes a whole
second-order meta-step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.optim.base import Meta, State
from fastmeta.program.losses import PlannedLoss
from fastmeta.program.plan import Plan

from .adjoint import Adjoint, Cotangents, Displacement, Identity, Keeps, Outer
from .batch import finite_tasks
from .loop import InnerLoop, Trajectory
from .objective import Context, Data, Objective
from .query import QueryPass
from .stem import Features, Stem


class MetaInputs(NamedTuple):
    """All that a meta-step is differentiated by, but for its data.

    `start` is φ_0: the module's parameters as they are, which all tasks read through stride 0, or a row [P] for all
    tasks, or [T, P]. `state` is the rule's at φ_0, where it is not that of new tasks.
    """

    start: tuple[Tensor, ...] | Tensor
    shared: tuple[Tensor, ...] = ()  # ψ
    meta: Meta = ()  # η and step sizes
    weights: Tensor | None = None  # [K + 1], of the query losses at φ_0 … φ_K; None: the last alone
    state: State | None = None

    @property
    def one_start(self) -> bool:
        """Whether all tasks start at the same φ_0."""
        return not isinstance(self.start, Tensor) or self.start.dim() == 1

    def take(self, tasks: slice) -> MetaInputs:
        """Of some of the tasks."""
        start, state = self.start, self.state
        if isinstance(start, Tensor) and start.dim() == 2:
            start = start[tasks]
        return self._replace(start=start, state=None if state is None else tuple(s[tasks] for s in state))


class TaskResults(NamedTuple):
    """What a meta-step gives for each task.

    A task that met a NaN or infinity, in its support data or on the way, has `finite` false and cotangents of zero, so
    that it cannot reach the other tasks' meta-gradient.
    """

    losses: Tensor  # [T]
    outputs: list[Tensor]  # [T, M, ...]
    finite: Tensor  # [T] bool
    cotangents: Cotangents | None  # each task's share of the meta-gradient, where it was asked for
    ends: tuple[Tensor, ...] = ()  # φ_K and the rule's state, [T, ...], where they were asked for
    notes: tuple[Tensor, ...] = ()  # [T] each: what the adjoint says of its own accuracy

    @classmethod
    def joined(cls, slices: Sequence[TaskResults]) -> TaskResults:
        """Of slices of the tasks, in new tensors."""
        losses, outputs, finite, cotangents, *more = zip(*slices, strict=True)
        joined = [torch.cat(ys) for ys in zip(*outputs, strict=True)]
        found = None if cotangents[0] is None else over_tasks(torch.cat, cotangents)
        ends, notes = (tuple(torch.cat(xs) for xs in zip(*rows, strict=True)) for rows in more)
        return cls(torch.cat(losses), joined, torch.cat(finite), found, ends, notes)


class MetaGradient(NamedTuple):
    """What a meta-step gives: means over the tasks that stayed finite, and what they are means of.

    `gradient` is of one row φ_0, ψ and η what the outer optimiser is given, [P], [P of ψ] and [*shape]; what is each
    task's own, a start [T, P] and the data, stays divided by tasks, [T, ...].

    `of_tasks` stands for `tasks.cotangents` where they lie in memory that the next meta-step overwrites: it gives them,
    or raises.
    """

    loss: Tensor
    gradient: Cotangents | None
    tasks: TaskResults
    of_tasks: Callable[[], Cotangents] | None = None

    @classmethod
    def of(cls, tasks: TaskResults, *, one_start: bool = True) -> MetaGradient:
        """Means over the finite tasks; `one_start`: all tasks start at the same φ_0."""
        found, count = tasks.cotangents, finite_count(tasks.finite)
        loss = mean_finite(tasks.losses, tasks.finite, count)
        if found is None:
            return cls(loss, None, tasks)
        if found.start_alone:
            return cls(loss, Cotangents(found.start.sum(0) / count if one_start else found.start / count), tasks)

        def mean(x: Tensor) -> Tensor:
            return x.sum(0) / count

        gradient = Cotangents(
            mean(found.start) if one_start else found.start / count,
            None if found.shared is None else mean(found.shared),
            tuple(mean(x) for x in found.meta),
            tuple(None if x is None else x / count for x in found.support),
            tuple(None if x is None else x / count for x in found.query),
            tuple(x / count for x in found.state),
        )
        return cls(loss, gradient, tasks)


def over_tasks(function: Callable[[list[Tensor]], Tensor], slices: Sequence[Cotangents]) -> Cotangents:
    """`function` of every tensor of some cotangents of equal structure."""

    if slices[0].start_alone:
        return Cotangents(function([x[0] for x in slices]))

    def each(values: tuple[Any, ...]) -> Any:
        if values[0] is None:
            return None
        if isinstance(values[0], tuple):
            return tuple(each(xs) for xs in zip(*values, strict=True))
        return function(list(values))

    return Cotangents(*(each(values) for values in zip(*slices, strict=True)))


def flattened(found: Cotangents) -> tuple[list[Tensor], Cotangents]:
    """The tensors of some cotangents, and the structure that `rebuilt` needs, with a place in them for each."""
    tensors: list[Tensor] = []

    def place(xs: list[Tensor]) -> Any:
        tensors.append(xs[0])
        return len(tensors) - 1

    return tensors, over_tasks(place, [found])


def rebuilt(structure: Cotangents, tensors: Iterator[Tensor]) -> Cotangents:
    """What `flattened` took apart."""
    return over_tasks(lambda _: next(tensors), [structure])


def finite_count(finite: Tensor) -> Tensor:
    """How many tasks stayed finite, at least one, so that a mean over none is zero."""
    return finite.sum().clamp(min=1)


def mean_finite(losses: Tensor, finite: Tensor, count: Tensor) -> Tensor:
    """Mean of [T] losses over the `finite_count` of tasks that stayed finite; zero without any."""
    return torch.where(finite, losses, 0.0).sum() / count  # where, not a product: 0 · NaN is NaN


@dataclass(frozen=True)
class Engine:
    """A whole meta-step for one set of shapes: inner loop, query loss, adjoint."""

    loop: InnerLoop
    outer: Objective
    adjoint: Adjoint
    asked: tuple[int, ...] | None = None  # steps k whose query loss counts; None: the last
    meta_wanted: bool = False  # does η get a gradient
    ends: bool = False  # whether a meta-step gives φ_K and the rule's state
    query_batch: int | None = None  # query samples that count at φ_k, its k-th slice of them; None: all

    @cached_property
    def plans(self) -> tuple[Plan, ...]:
        """Those of the module, on the support and on the query set, and of losses that are plans."""
        parts = (self.loop.objective, self.outer)
        losses = [part.loss.behind.plan for part in parts if isinstance(part.loss, PlannedLoss)]
        return (*(part.plan for part in parts), *losses)

    @cached_property
    def random(self) -> bool:
        """Whether the module draws random numbers."""
        return self.loop.objective.plan.random or self.outer.plan.random

    @cached_property
    def stem(self) -> Stem | None:
        """What of the inner loop is computed once, as no fast weight reaches it. A step that sees some of the samples
        alone computes all of it on those: statistics over a batch are not those of the whole support set."""
        return Stem.of(self.loop.objective) if self.loop.steps and self.loop.batch is None else None

    @cached_property
    def query_stem(self) -> Stem | None:
        """And of the query loss, where it counts at several steps, on all samples in each."""
        return Stem.of(self.outer) if self._several and not self.outer.skip and self.query_batch is None else None

    @cached_property
    def _inner(self) -> InnerLoop:
        """The loop behind the stem."""
        return self.loop if self.stem is None else replace(self.loop, objective=self.stem.rest)

    def _features(self, support: Data, context: Context, *, keep: bool) -> Features:
        """What that loop reads; `keep`: with what the adjoint needs of the stem."""
        return Features.of(self.stem, support, context, keep=keep and self.adjoint.through_gradients)

    @cached_property
    def steps_asked(self) -> tuple[int, ...]:
        """The steps k whose query loss counts."""
        return (self.loop.steps,) if self.asked is None else self.asked

    @cached_property
    def whole(self) -> bool:
        """Whether anything but φ_0 and η gets a gradient."""
        return self.loop.objective.shared_or_data or self.outer.data_wanted

    @cached_property
    def keeps(self) -> Keeps:
        """What the inner loop leaves for the adjoint."""
        if self.adjoint.keeps == "nothing" and self._every_step:
            return "gradients"
        return self.adjoint.keeps

    @cached_property
    def _several(self) -> bool:
        """Whether the query loss counts before the last step."""
        return any(k < self.loop.steps for k in self.steps_asked)

    @cached_property
    def _every_step(self) -> bool:
        """Whether an adjoint that needs no trajectory needs it all the same."""
        return self.meta_wanted or self._several

    def row(self, at: MetaInputs) -> Tensor:
        """φ_0 as [1, P] for all tasks, or [T, P]."""
        if not isinstance(at.start, Tensor):
            return self.outer.layout.pack([p.unsqueeze(0) for p in at.start], 1)
        return at.start if at.start.dim() == 2 else at.start.unsqueeze(0)

    def adapt(self, at: MetaInputs, support: Data, context: Context, *, keep: bool) -> tuple[Tensor, Trajectory]:
        """φ_0 → φ_K [T, P]. At the first step all tasks read one φ_0 through stride 0."""
        run = self._run(at, self._features(support, context, keep=False), keep=keep)
        return run.last, run

    def _run(self, at: MetaInputs, given: Features, *, keep: bool) -> Trajectory:
        start = self.row(at).expand(given.context.keys.shape[0], -1)
        kept = self.keeps if keep else "nothing"
        return self._inner.run(
            start, at.state, given.data, given.context, at.meta, keep=kept, wanted=keep and self.meta_wanted
        )

    def pull(
        self, run: Trajectory, at: MetaInputs, support: Data, context: Context, lam: Tensor, sigma: State
    ) -> Cotangents:
        """λ_K, σ_K → cotangents at φ_0, where the outer loss is the user's."""

        def outer(k: int, phi: Tensor) -> Cotangents | None:  # noqa: ARG001  as an adjoint asks
            return Cotangents(lam) if k == self.loop.steps else None

        # Reptile's learners pass on what comes, as first-order MAML's do
        adjoint = Identity() if isinstance(self.adjoint, Displacement) else self.adjoint
        if self.keeps == "trajectory" or adjoint.through_gradients:
            given = self._features(support, context, keep=True)
        else:  # no gradient is computed again
            given = Features(None, support, context, [])
        found = self._pull(adjoint, run, given, at, outer, sigma=sigma or None)
        return found._replace(notes=()) if found.notes else found

    def _pull(
        self, adjoint: Adjoint, run: Trajectory, given: Features, at: MetaInputs, outer: Outer,
        *, sigma: State | None = None,
    ) -> Cotangents:  # fmt: skip
        found = adjoint.pull(
            self._inner, run, given.data, given.context, at.meta, outer, sigma=sigma, wanted=self.meta_wanted
        )
        return given.pulled(found, "support")

    def behind_support(self, support: Data, query: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Query inputs, behind the support set where batch norm takes its statistics from that."""
        if not self.outer.skip:
            return query
        return tuple(torch.cat(pair, 1) for pair in zip(support.inputs, query, strict=True))

    def outputs(self, phi: Tensor, support: Data, query: tuple[Tensor, ...], context: Context) -> list[Tensor]:
        """The module's query outputs [T, M, ...] at φ."""
        context = context.reading(self._last_step, self.outer.plan)
        return self.outer.outputs(phi, self.behind_support(support, query), context)

    @property
    def _last_step(self) -> int:
        """The number of the step that led to φ_K."""
        return max(self.loop.first + self.loop.steps - 1, 0)

    def pullback(
        self, phi: Tensor, support: Data, query: tuple[Tensor, ...], context: Context,
        d_outputs: Sequence[Tensor | None],
    ) -> Cotangents:  # fmt: skip
        """Cotangents of d_outputs · outputs; `start` is φ's."""
        inputs, context = self.behind_support(support, query), context.reading(self._last_step, self.outer.plan)
        slopes = self.outer.pullback(phi, inputs, context, d_outputs)
        return self._query(Data(inputs, ()), context, None, whole=True).cotangents(slopes, self.loop.steps)

    def _query(self, data: Data, context: Context, weights: Tensor | None, *, whole: bool) -> QueryPass:
        outer = self.outer if self.query_stem is None else self.query_stem.rest
        return QueryPass(
            outer, data, context, self.steps_asked, weights, steps=self.loop.steps, whole=whole, batch=self.query_batch
        )

    def meta_step(self, at: MetaInputs, support: Data, query: Data, context: Context, *, keep: bool) -> TaskResults:
        """Losses and outputs on the query set and, where `keep` says so, each task's share of the meta-gradient."""
        given = self._features(support, context, keep=keep)
        run = self._run(at, given, keep=keep or self._several)
        data = Data(self.behind_support(support, query.inputs), query.targets)
        seen = Features.of(self.query_stem, data, context, keep=keep)
        outer = self._query(seen.data, seen.context, at.weights, whole=self.whole)
        if not keep or isinstance(self.adjoint, Displacement):
            for k, phi in ((k, run.phis[k]) for k in self.steps_asked if k < self.loop.steps):
                outer.value(k, phi)
            outer.value(self.loop.steps, run.last)
        ends = (run.last, *run.state) if self.ends else ()
        if not keep:
            return TaskResults(outer.losses, outer.outputs, finite_tasks(support.inputs, outer.losses), None, ends)
        found = seen.pulled(self._pull(self.adjoint, run, given, at, outer), "query")
        losses, notes = outer.losses, found.notes
        found = found._replace(state=found.state if at.state is not None else (), notes=())
        finite = finite_tasks(support.inputs, losses, found.start, *found.meta)
        return TaskResults(losses, outer.outputs, finite, only_finite(found, finite), ends, notes)


def only_finite(found: Cotangents, finite: Tensor) -> Cotangents:
    """Cotangents of zero for tasks that did not stay finite."""
    if found.start_alone:
        return Cotangents(torch.where(finite.unsqueeze(1), found.start, 0.0))

    def of(xs: list[Tensor]) -> Tensor:
        (x,) = xs
        return torch.where(finite.view(-1, *(1,) * (x.dim() - 1)), x, 0.0)

    return over_tasks(of, [found])
