"""A whole meta-step for one set of shapes: inner loop, query loss, adjoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .batch import finite_tasks
from .loop import InnerLoop, Trajectory
from .objective import Context, Data, Objective


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
