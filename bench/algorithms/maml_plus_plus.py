"""MAML++: the multi-step loss, and a learned rate for every tensor and inner step."""

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
    """Rates [K] of every tensor."""
    like, steps, lr = next(iter(problem.parameters.values())), problem.workload.steps, problem.workload.lr
    return {name: nn.Parameter(like.new_full((steps,), lr)) for name in problem.parameters}


def _named(rates: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"rates of {name}": rate for name, rate in rates.items()}


def _task_loss(
    problem: Problem, rates: dict[str, Tensor], derive: Derive, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor
) -> Tensor:
    """The mean over φ_1 … φ_K of the query loss: the weights of the first epoch."""
    theta: dict[str, Tensor] = dict(problem.parameters)
    loss, steps = support_loss(problem, {}, sx, sy), problem.workload.steps
    reached = descend(loss, theta, lambda k, name: rates[name][k], steps, derive)
    query = support_loss(problem, {}, qx, qy)
    return torch.stack([query(fast) for fast in reached]).mean()


def _by(sweep: Any, derive: Derive) -> Any:
    def prepare(problem: Problem) -> MetaStep:
        rates = _rates(problem)
        return sweep(problem, partial(_task_loss, problem, rates, derive), _named(rates))

    return prepare


def learn2learn_idiom(problem: Problem) -> MetaStep:
    """learn2learn's MAML++ example: clones, a rate of the step for every tensor, the query loss behind every step."""
    rates, steps = _rates(problem), problem.workload.steps

    def task_loss(sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        learner, total = clone_module(problem.model, torch.clone), torch.zeros((), dtype=sx.dtype, device=sx.device)
        for k in range(steps):
            fast = tensors_of(learner)
            gradients = torch.autograd.grad(problem.loss(learner(sx), sy), fast, create_graph=True)
            updated = {id(p): p - lr[k] * g for p, lr, g in zip(fast, rates.values(), gradients, strict=True)}
            learner = clone_module(learner, lambda p, updated=updated: updated[id(p)])
            total = total + problem.loss(learner(qx), qy) / steps
        return total

    return task_by_task(problem, task_loss, _named(rates))


def ours(problem: Problem, **ways: Any) -> MetaStep:
    """`fastmeta.MAMLPlusPlus` in its first epoch."""
    learner = fastmeta.MAMLPlusPlus(problem.model, lr=problem.workload.lr, **options(problem), **ways)
    rates: Any = learner.learned
    return fastmeta_step(
        problem, learner, lambda: _named(dict(zip(rates.names, rates.values.grad.unbind(1), strict=True)))
    )


MAML_PLUS_PLUS = Algorithm(
    name="maml++",
    workloads=("omniglot-5w1s",),
    model=network,
    plain=_by(task_by_task, exactly),
    mistaken=_by(task_by_task, as_constants),
    peers={
        "autograd loop": _by(task_by_task, exactly),
        "learn2learn idiom": learn2learn_idiom,
        "torch.func vmap": _by(all_at_once, by_func),
    },
    ours=ours,
    changes={"steps": 5},  # of the paper
)
