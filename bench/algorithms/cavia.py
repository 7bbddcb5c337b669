"""CAVIA: the inner loop moves a context alone, from zero."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import fastmeta
from bench.networks import seeded
from bench.problem import MetaStep, Problem
from bench.workloads import Workload
from fastmeta.models import ContextMLP

from .base import (
    Algorithm,
    Derive,
    all_at_once,
    as_constants,
    by_func,
    descend,
    exactly,
    fastmeta_step,
    options,
    sgd,
    support_loss,
    task_by_task,
)  # fmt: skip


def context_mlp(workload: Workload) -> nn.Module:
    """The authors' network for sinusoids: five numbers of context behind the input."""
    return seeded(lambda: ContextMLP(context=5, hidden=(workload.width, workload.width)))


def adapted_alone(name: str, sweep: Any, derive: Derive) -> Any:
    """The inner loop on the one parameter of this name, which starts at zero."""

    def task_loss(problem: Problem, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        theta: dict[str, Tensor] = dict(problem.parameters)
        # torch.func differentiates what requires no gradient, and cannot be asked for one
        start = torch.zeros_like(theta.pop(name), requires_grad=derive is not by_func)
        loss = support_loss(problem, theta, sx, sy)
        *_, fast = descend(loss, {name: start}, lambda *_: problem.workload.lr, problem.workload.steps, derive)
        return support_loss(problem, theta, qx, qy)(fast)

    return lambda problem: sweep(problem, partial(task_loss, problem))


def authors_way(problem: Problem) -> MetaStep:
    """A forward that takes the context, which is a tensor beside the module; the meta-gradient task by task."""
    name, model = "context", problem.model
    shared = {key: p for key, p in problem.parameters.items() if key != name}

    def step() -> dict[str, Tensor]:
        total = [torch.zeros_like(p) for p in shared.values()]
        for t in range(problem.workload.tasks):
            sx, sy, qx, qy = problem.task(t)
            context = torch.zeros_like(problem.parameters[name]).requires_grad_()
            for _ in range(problem.workload.steps):
                loss = problem.loss(functional_call(model, {name: context}, (sx,)), sy)
                context = context - problem.workload.lr * torch.autograd.grad(loss, context, create_graph=True)[0]
            loss = problem.loss(functional_call(model, {name: context}, (qx,)), qy)
            gradients = torch.autograd.grad(loss, list(shared.values()))
            total = [held + g for held, g in zip(total, gradients, strict=True)]
        return {key: g / problem.workload.tasks for key, g in zip(shared, total, strict=True)}

    return step


def ours(problem: Problem, **ways: Any) -> MetaStep:
    """`fastmeta.CAVIA`."""
    learner = fastmeta.CAVIA(problem.model, inner_optimizer=sgd(problem), **options(problem), **ways)
    return fastmeta_step(problem, learner)


CAVIA = Algorithm(
    name="cavia",
    workloads=("sinusoid",),
    model=context_mlp,
    plain=adapted_alone("context", task_by_task, exactly),
    mistaken=adapted_alone("context", task_by_task, as_constants),
    peers={"authors' way": authors_way, "torch.func vmap": adapted_alone("context", all_at_once, by_func)},
    ours=ours,
    changes={"lr": 1.0},
)
