"""One workload as a peer meets it: its own model, the batch on a device, and what its meta-step must give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastmeta.tasks import Episodes

from .networks import LOSSES
from .workloads import Workload

MetaStep = Callable[[], Mapping[str, Any]]
"""Does one meta-step of all tasks, without the outer update, and returns the meta-gradient by parameter name: the
gradient of the mean query loss, or θ − mean φ_K for Reptile. On a GPU it may return before the device is done."""


class Unsupported(Exception):
    """The peer does not offer what is asked of it; the message says what."""


@dataclass(frozen=True)
class Problem:
    """A workload with its model and data in memory; every peer gets its own model with the same weights."""

    workload: Workload
    model: nn.Module
    batch: Episodes
    algorithm: str
    device: str
    precision: str

    @classmethod
    def of(
        cls, workload: Workload, *, algorithm: str = "maml", device: str = "cpu", precision: str = "float32"
    ) -> Problem:
        """Model and batch from the workload's fixed seeds."""
        batch = Episodes(*(x.to(device) for x in workload.batch()))
        return cls(workload, workload.model().to(device), batch, algorithm, device, precision)

    @property
    def exact(self) -> bool:
        """Whether the meta-gradient goes through the inner steps."""
        return self.algorithm == "maml"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean over the samples of one task."""
        return LOSSES[self.workload.loss](outputs, targets)

    def task(self, t: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Support inputs and targets, query inputs and targets of task t."""
        sx, sy, qx, qy = self.batch
        return sx[t], sy[t], qx[t], qy[t]

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """θ, what is trainable, by name; looked up once, as an optimiser does."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def zero_grad(self) -> None:
        for p in self.parameters.values():
            p.grad = None

    def gradient(self) -> dict[str, Tensor | None]:
        """What lies in `.grad` of the model's own parameters."""
        return {name: p.grad for name, p in self.parameters.items()}


class Learner(NamedTuple):
    """One task's network after the inner steps: φ_K in θ's order, and the function x → outputs."""

    fast: list[Tensor]
    predict: Callable[[Tensor], Tensor]


def loop_over_tasks(problem: Problem, adapt: Callable[[Tensor, Tensor], Learner]) -> MetaStep:
    """A meta-step that calls `backward` after each task, as a user short of memory would.

    `adapt` takes a support set. Its learner depends on θ differentiably, for first-order MAML through the identity.
    """
    tasks = problem.workload.tasks

    def step() -> Mapping[str, Any]:
        problem.zero_grad()
        for t in range(tasks):
            sx, sy, qx, qy = problem.task(t)
            learner = adapt(sx, sy)
            if problem.algorithm == "reptile":
                pull(problem, learner.fast)
            else:
                (problem.loss(learner.predict(qx), qy) / tasks).backward()
        return problem.gradient()

    return step


def pull(problem: Problem, fast: list[Tensor]) -> None:
    """Adds one task's share of θ − mean φ_K to `.grad`."""
    with torch.no_grad():
        for p, phi in zip(problem.parameters.values(), fast, strict=True):
            accumulate(p, (p - phi) / problem.workload.tasks)


def accumulate(p: nn.Parameter, gradient: Tensor) -> None:
    """Adds to `.grad`."""
    p.grad = gradient if p.grad is None else p.grad + gradient
