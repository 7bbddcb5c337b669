"""An algorithm with peers of its own; and what their files share: sweeps over tasks, inner loops in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import fastmeta
from bench.networks import LOSSES
from bench.problem import MetaStep, Problem, Unsupported
from bench.workloads import Workload

Prepare = Callable[[Problem], MetaStep]
Params = dict[str, Tensor]
Loss = Callable[[Params], Tensor]
Derive = Callable[[Loss, Params], Iterable[Tensor]]
"""The gradients of a loss at parameters, in their order."""
TaskLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""The outer loss of one task: support inputs and targets, query inputs and targets."""

WAYS: dict[str, dict[str, Any]] = {
    "fastmeta eager": {},
    "fastmeta compiled": {"compile": True},
    "fastmeta recompute": {"memory": "recompute"},
}
"""fastmeta's rows, and their options."""


@dataclass(frozen=True)
class Algorithm:
    """An algorithm of which peers have their own form.

    Attributes:
        workloads: what it is measured on.
        model: a workload's network in this algorithm.
        plain: plain autograd, task by task; in float64 the truth, in float32 the rounding error that the gate allows.
        mistaken: the meta-gradient of a likely mistake, with which no peer may pass.
        peers: what is measured beside fastmeta.
        ours: fastmeta's meta-step, with options of a row.
        changes: what this algorithm changes of a workload, such as its inner steps.
        ways: names of `WAYS`.
    """

    name: str
    workloads: tuple[str, ...]
    model: Callable[[Workload], nn.Module]
    plain: Prepare
    mistaken: Prepare
    peers: Mapping[str, Prepare]
    ours: Callable[..., MetaStep]
    changes: Mapping[str, Any]
    ways: tuple[str, ...] = tuple(WAYS)

    def sized(self, workload: Workload) -> Workload:
        """The workload as this algorithm has it."""
        return replace(workload, **self.changes)

    def rows(self) -> dict[str, Prepare]:
        """Every row: the peers, then fastmeta's."""
        own = {name: lambda problem, name=name: self.ours(problem, **WAYS[name]) for name in self.ways}
        return {**self.peers, **own}


def network(workload: Workload) -> nn.Module:
    """The workload's own."""
    return workload.model()


# --- sweeps over tasks ---


def task_by_task(problem: Problem, task_loss: TaskLoss, learned: Mapping[str, Tensor] | None = None) -> MetaStep:
    """`backward` of each task's share of the mean; `learned` are leaves beside θ, by the names their gradients have."""
    leaves, tasks = {**problem.parameters, **(learned or {})}, problem.workload.tasks

    def step() -> Mapping[str, Any]:
        clear(leaves)
        for t in range(tasks):
            (task_loss(*problem.task(t)) / tasks).backward()
        return gradients_of(leaves)

    return step


def all_at_once(problem: Problem, task_loss: TaskLoss, learned: Mapping[str, Tensor] | None = None) -> MetaStep:
    """`torch.func.vmap` over tasks, then one `backward`."""
    leaves, losses = {**problem.parameters, **(learned or {})}, vmap(task_loss)

    def step() -> Mapping[str, Any]:
        clear(leaves)
        losses(*problem.batch).mean().backward()
        return gradients_of(leaves)

    return step


def clear(leaves: Mapping[str, Tensor]) -> None:
    """No `.grad`."""
    for leaf in leaves.values():
        leaf.grad = None


def gradients_of(leaves: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """What lies in `.grad`."""
    return {name: leaf.grad for name, leaf in leaves.items()}


# --- inner loops ---


def exactly(loss: Loss, params: Params) -> Iterable[Tensor]:
    """By autograd, differentiable again."""
    return torch.autograd.grad(loss(params), list(params.values()), create_graph=True)


def as_constants(loss: Loss, params: Params) -> Iterable[Tensor]:
    """By autograd, for the outer loss constants: first order."""
    return [g.detach() for g in exactly(loss, params)]


def by_func(loss: Loss, params: Params) -> Iterable[Tensor]:
    """By `torch.func.grad`."""
    return grad(loss)(params).values()


def support_loss(problem: Problem, still: Params, x: Tensor, y: Tensor) -> Loss:
    """The inner loss of one task as a function of what the inner loop moves; `still` is what it leaves."""
    return lambda fast: problem.loss(functional_call(problem.model, {**still, **fast}, (x,)), y)


def descend(loss: Loss, fast: Params, rate: Callable[[int, str], Any], steps: int, derive: Derive) -> list[Params]:
    """φ_1 … φ_K of plain descent with a rate for each step and name."""
    reached: list[Params] = []
    for k in range(steps):
        moves = dict(zip(fast, derive(loss, fast), strict=True))
        fast = {name: p - rate(k, name) * moves[name] for name, p in fast.items()}
        reached.append(fast)
    return reached


# --- fastmeta ---


def options(problem: Problem) -> dict[str, Any]:
    """What all of fastmeta's learners with an inner loop are given, but for the rule."""
    return {"inner_loss": LOSSES[problem.workload.loss], "inner_steps": problem.workload.steps}


def sgd(problem: Problem) -> fastmeta.SGD:
    """The inner rule of a fixed rate."""
    return fastmeta.SGD(lr=problem.workload.lr)


def fastmeta_step(problem: Problem, learner: Any, learned: Callable[[], Mapping[str, Any]] | None = None) -> MetaStep:
    """fastmeta's meta-step; `learned` gives the gradients of what is learned beside θ, by the peers' names."""

    def step() -> Mapping[str, Any]:
        problem.zero_grad()
        if learner.learned is not None:
            learner.learned.zero_grad()
        learner(*problem.batch).loss.backward()
        return {**problem.gradient(), **(learned() if learned else {})}

    try:
        step()
    except (RuntimeError, ValueError) as refusal:
        if str(refusal).startswith(("backend=", "precision=", "memory=", "compile=")):
            raise Unsupported(str(refusal)) from None
        raise
    return step
