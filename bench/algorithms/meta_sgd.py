"""Meta-SGD: a learned rate for every single parameter."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fastmeta
from bench.peers import clone_module, tensors_of
from bench.problem import MetaStep, Problem

from .base import (
    Algorithm,
    Derive,
    all_at_once,
    as_constants,
    by_func,
    descend,
    exactly,
    fastmeta_step,
    network,
    options,
    support_loss,
    task_by_task,
)  # fmt: skip


def _rates(problem: Problem) -> dict[str, Tensor]:
    lr = problem.workload.lr
    return {name: nn.Parameter(torch.full_like(p, lr)) for name, p in problem.parameters.items()}


def _named(rates: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"rate of {name}": rate for name, rate in rates.items()}


def _task_loss(
    problem: Problem, rates: dict[str, Tensor], derive: Derive, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor
) -> Tensor:
    theta: dict[str, Tensor] = dict(problem.parameters)
    loss, steps = support_loss(problem, {}, sx, sy), problem.workload.steps
    *_, fast = descend(loss, theta, lambda _, name: rates[name], steps, derive)
    return support_loss(problem, {}, qx, qy)(fast)


def _by(sweep: Any, derive: Derive) -> Any:
    def prepare(problem: Problem) -> MetaStep:
        rates = _rates(problem)
        return sweep(problem, partial(_task_loss, problem, rates, derive), _named(rates))

    return prepare


def learn2learn_idiom(problem: Problem) -> MetaStep:
    """learn2learn's `MetaSGD`: a clone of the module and of its rates for each task, updated parameter by parameter."""
    rates = _rates(problem)

    def task_loss(sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        learner, own = clone_module(problem.model, torch.clone), [rate.clone() for rate in rates.values()]
        for _ in range(problem.workload.steps):
            fast = tensors_of(learner)
            gradients = torch.autograd.grad(problem.loss(learner(sx), sy), fast, create_graph=True)
            updated = {id(p): p - lr * g for p, lr, g in zip(fast, own, gradients, strict=True)}
            learner = clone_module(learner, lambda p, updated=updated: updated[id(p)])
        return problem.loss(learner(qx), qy)

    return task_by_task(problem, task_loss, _named(rates))


def ours(problem: Problem, **ways: Any) -> MetaStep:
    """`fastmeta.MetaSGD`."""
    learner = fastmeta.MetaSGD(problem.model, lr=problem.workload.lr, **options(problem), **ways)
    rates: Any = learner.learned
    return fastmeta_step(problem, learner, lambda: _named(rates.named(rates.values.grad)))


META_SGD = Algorithm(
    name="meta-sgd",
    workloads=("sinusoid", "omniglot-5w1s", "mini-5w1s"),
    model=network,
    plain=_by(task_by_task, exactly),
    mistaken=_by(task_by_task, as_constants),
    peers={
        "autograd loop": _by(task_by_task, exactly),
        "learn2learn idiom": learn2learn_idiom,
        "torch.func vmap": _by(all_at_once, by_func),
        "torch.func loop": _by(task_by_task, by_func),
    },
    ours=ours,
    changes={},
)
