"""A whole meta-step for one set of shapes: inner loop, query loss, adjoint.

Functions of tensors only: nothing here touches autograd, so `torch.compile(fullgraph=True)` takes a whole
second-order meta-step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmeta.optim.base import Meta, State
from fastmeta.program.losses import PlannedLoss
from fastmeta.program.plan import Plan

from .adjoint import Adjoint, Cotangents, Displacement, Identity, Keeps
from .batch import finite_tasks
from .loop import InnerLoop, Trajectory
from .objective import Context, Data, Objective, Slopes


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
    notes: tuple[Tensor, ...] = ()  # [T] each: what the adjoint says of its own accuracy

    @classmethod
    def joined(cls, slices: Sequence[TaskResults]) -> TaskResults:
        """Of slices of the tasks, in new tensors."""
        losses, outputs, finite, cotangents, notes = zip(*slices, strict=True)
        joined = [torch.cat(ys) for ys in zip(*outputs, strict=True)]
        found = None if cotangents[0] is None else over_tasks(torch.cat, cotangents)
        noted = tuple(torch.cat(xs) for xs in zip(*notes, strict=True))
        return cls(torch.cat(losses), joined, torch.cat(finite), found, noted)


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


class QueryPass:
    """The query loss as an adjoint asks for it: at φ_K, or with `weights` at every φ_k that has one.

    Args:
        outer: the query set's objective.
        data: the query set; behind the support set's inputs where batch norm takes its statistics from those.
        asked: the steps k whose query loss counts.
        weights: [K + 1]; None: one.
        whole: whether all else than φ gets a gradient too.
    """

    def __init__(
        self, outer: Objective, data: Data, context: Context, asked: Sequence[int], weights: Tensor | None,
        *, steps: int, whole: bool,
    ) -> None:  # fmt: skip
        self._outer, self._data, self._context, self._asked = outer, data, context, asked
        self._weights, self._steps, self._whole = weights, steps, whole
        self._losses: dict[int, Tensor] = {}
        self.outputs: list[Tensor] = []

    def _weighted(self, k: int, x: Tensor) -> Tensor:
        return x if self._weights is None else x * self._weights[k]

    def value(self, k: int, phi: Tensor) -> None:
        """The loss alone."""
        self._evaluate(k, phi, keep=False)

    def _evaluate(self, k: int, phi: Tensor, *, keep: bool) -> Any:
        outer = self._outer
        at = outer.evaluate(phi, self._data, self._context.at(k, outer.plan), keep=keep)
        if k == self._steps:
            self.outputs = at.outputs
        if k in self._asked:
            self._losses[k] = self._weighted(k, outer.losses(at))
        return at

    def __call__(self, k: int, phi: Tensor) -> Cotangents | None:
        """Weight times gradient at φ_k."""
        if k not in self._asked:
            if k == self._steps:
                self.value(k, phi)  # for the outputs
            return None
        at = self._evaluate(k, phi, keep=True)
        slopes, _ = self._outer.gradient(at, self._data, whole=self._whole)
        return self.cotangents(slopes, k)

    def cotangents(self, slopes: Slopes, k: int) -> Cotangents:
        """Slopes of the query set's objective, whose first rows may be the support set's."""
        inputs = len(self._data.inputs)
        skip, data = self._outer.skip, [None if d is None else self._weighted(k, d) for d in slopes.data]
        support: tuple[Tensor | None, ...] = ()
        if skip and data:
            support = tuple(None if d is None else d[:, :skip] for d in data[:inputs])
            data = [d if d is None or i >= inputs else d[:, skip:] for i, d in enumerate(data)]
        shared = None if slopes.shared is None else self._weighted(k, slopes.shared)
        return Cotangents(self._weighted(k, slopes.phi), shared, (), support, tuple(data))

    @property
    def losses(self) -> Tensor:
        """[T], weighted."""
        first, *rest = [self._losses[k] for k in sorted(self._losses)]
        return torch.stack([first, *rest]).sum(0) if rest else first


@dataclass(frozen=True)
class Engine:
    """A whole meta-step for one set of shapes: inner loop, query loss, adjoint."""

    loop: InnerLoop
    outer: Objective
    adjoint: Adjoint
    asked: tuple[int, ...] | None = None  # steps k whose query loss counts; None: the last
    meta_wanted: bool = False  # does η get a gradient

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
        start = self.row(at).expand(context.keys.shape[0], -1)
        kept = self.keeps if keep else "nothing"
        run = self.loop.run(start, at.state, support, context, at.meta, keep=kept, wanted=keep and self.meta_wanted)
        return run.last, run

    def pull(
        self, run: Trajectory, at: MetaInputs, support: Data, context: Context, lam: Tensor, sigma: State
    ) -> Cotangents:
        """λ_K, σ_K → cotangents at φ_0, where the outer loss is the user's."""

        def outer(k: int, phi: Tensor) -> Cotangents | None:  # noqa: ARG001  as an adjoint asks
            return Cotangents(lam) if k == self.loop.steps else None

        # Reptile's learners pass on what comes, as first-order MAML's do
        adjoint = Identity() if isinstance(self.adjoint, Displacement) else self.adjoint
        found = adjoint.pull(
            self.loop, run, support, context, at.meta, outer, sigma=sigma or None, wanted=self.meta_wanted
        )
        return found._replace(notes=()) if found.notes else found

    def behind_support(self, support: Data, query: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Query inputs, behind the support set where batch norm takes its statistics from that."""
        if not self.outer.skip:
            return query
        return tuple(torch.cat(pair, 1) for pair in zip(support.inputs, query, strict=True))

    def outputs(self, phi: Tensor, support: Data, query: tuple[Tensor, ...], context: Context) -> list[Tensor]:
        """The module's query outputs [T, M, ...] at φ."""
        return self.outer.outputs(phi, self.behind_support(support, query), context)

    def pullback(
        self, phi: Tensor, support: Data, query: tuple[Tensor, ...], context: Context,
        d_outputs: Sequence[Tensor | None],
    ) -> Cotangents:  # fmt: skip
        """Cotangents of d_outputs · outputs; `start` is φ's."""
        inputs = self.behind_support(support, query)
        slopes = self.outer.pullback(phi, inputs, context, d_outputs)
        return self._query(Data(inputs, ()), context, None, whole=True).cotangents(slopes, self.loop.steps)

    def _query(self, data: Data, context: Context, weights: Tensor | None, *, whole: bool) -> QueryPass:
        return QueryPass(self.outer, data, context, self.steps_asked, weights, steps=self.loop.steps, whole=whole)

    def meta_step(self, at: MetaInputs, support: Data, query: Data, context: Context, *, keep: bool) -> TaskResults:
        """Losses and outputs on the query set and, where `keep` says so, each task's share of the meta-gradient."""
        _, run = self.adapt(at, support, context, keep=keep or self._several)
        data = Data(self.behind_support(support, query.inputs), query.targets)
        outer = self._query(data, context, at.weights, whole=self.whole)
        if not keep or isinstance(self.adjoint, Displacement):
            for k, phi in ((k, run.phis[k]) for k in self.steps_asked if k < self.loop.steps):
                outer.value(k, phi)
            outer.value(self.loop.steps, run.last)
        if not keep:
            return TaskResults(outer.losses, outer.outputs, finite_tasks(support.inputs, outer.losses), None)
        found = self.adjoint.pull(self.loop, run, support, context, at.meta, outer, wanted=self.meta_wanted)
        losses, notes = outer.losses, found.notes
        found = found._replace(state=found.state if at.state is not None else (), notes=())
        finite = finite_tasks(support.inputs, losses, found.start, *found.meta)
        return TaskResults(losses, outer.outputs, finite, only_finite(found, finite), notes)


def only_finite(found: Cotangents, finite: Tensor) -> Cotangents:
    """Cotangents of zero for tasks that did not stay finite."""
    if found.start_alone:
        return Cotangents(torch.where(finite.unsqueeze(1), found.start, 0.0))

    def of(xs: list[Tensor]) -> Tensor:
        (x,) = xs
        return torch.where(finite.view(-1, *(1,) * (x.dim() - 1)), x, 0.0)

    return over_tasks(of, [found])
