"""iMAML: the inner loop descends on loss and proximal term, and a linear system takes the place of its derivative."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad

import fastmeta
from bench.problem import MetaStep, Problem, accumulate

from .base import Algorithm, Params, fastmeta_step, network, options, sgd, support_loss

STRENGTH, CG_STEPS = 2.0, 5
"""λ and steps of conjugate gradients: those of the paper on Omniglot."""


def _solution(problem: Problem, theta: Params, sx: Tensor, sy: Tensor) -> Params:
    """φ_K, without a graph."""
    loss, fast = support_loss(problem, {}, sx, sy), theta
    for _ in range(problem.workload.steps):
        leaves = {name: p.detach().requires_grad_() for name, p in fast.items()}
        gradients = torch.autograd.grad(loss(leaves), list(leaves.values()))
        fast = {
            name: p.detach() - problem.workload.lr * (g + STRENGTH * (p.detach() - theta[name]))
            for (name, p), g in zip(leaves.items(), gradients, strict=True)
        }
    return {name: p.requires_grad_() for name, p in fast.items()}


def _dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def conjugate_gradients(product: Callable[[list[Tensor]], list[Tensor]], b: list[Tensor]) -> list[Tensor]:
    """CG_STEPS steps on A x = b from zero."""
    x, r, p = [torch.zeros_like(v) for v in b], list(b), list(b)
    square = _dot(r, r)
    for _ in range(CG_STEPS):
        ap = product(p)
        step = square / _dot(p, ap)
        x = [v + step * d for v, d in zip(x, p, strict=True)]
        r = [v - step * d for v, d in zip(r, ap, strict=True)]
        before, square = square, _dot(r, r)
        p = [v + square / before * d for v, d in zip(r, p, strict=True)]
    return x


def _by_autograd(*, solve: bool) -> Callable[[Problem], MetaStep]:
    """The authors' way with the paper's system, task by task: Hessian products of one kept gradient graph."""

    def prepare(problem: Problem) -> MetaStep:
        def step() -> Mapping[str, Any]:
            problem.zero_grad()
            theta = {name: p.detach() for name, p in problem.parameters.items()}
            for t in range(problem.workload.tasks):
                sx, sy, qx, qy = problem.task(t)
                phi = _solution(problem, theta, sx, sy)
                values = list(phi.values())
                x = list(torch.autograd.grad(support_loss(problem, {}, qx, qy)(phi), values))
                if solve:
                    inner = torch.autograd.grad(support_loss(problem, {}, sx, sy)(phi), values, create_graph=True)

                    def product(v: list[Tensor], inner: Any = inner, values: Any = values) -> list[Tensor]:
                        curved = torch.autograd.grad(inner, values, v, retain_graph=True)
                        return [a + h / STRENGTH for a, h in zip(v, curved, strict=True)]

                    x = conjugate_gradients(product, x)
                for p, g in zip(problem.parameters.values(), x, strict=True):
                    accumulate(p, g / problem.workload.tasks)
            return problem.gradient()

        return step

    return prepare


def torchopt(problem: Problem) -> MetaStep:
    """TorchOpt's implicit differentiation: a solver decorated with the optimality condition, task by task.

    Its own conjugate gradients, of as many steps as everybody's.
    """
    package = importlib.import_module("torchopt")
    names, lr = list(problem.parameters), problem.workload.lr

    def inner(values: tuple[Tensor, ...], theta: tuple[Tensor, ...], x: Tensor, y: Tensor) -> Tensor:
        loss = problem.loss(functional_call(problem.model, dict(zip(names, values, strict=True)), (x,)), y)
        square = torch.stack([((p - q) ** 2).sum() for p, q in zip(values, theta, strict=True)]).sum()
        return loss + STRENGTH / 2 * square

    stationary = grad(inner)
    solver = package.linear_solve.solve_cg(maxiter=CG_STEPS, atol=0.0, rtol=0.0)

    @package.diff.implicit.custom_root(stationary, argnums=1, solve=solver)
    def solve(values: tuple[Tensor, ...], theta: tuple[Tensor, ...], x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            for _ in range(problem.workload.steps):
                leaves = tuple(p.detach().requires_grad_() for p in values)
                gradients = torch.autograd.grad(inner(leaves, theta, x, y), leaves)
                values = tuple(p.detach() - lr * g for p, g in zip(leaves, gradients, strict=True))
        return values

    def step() -> Mapping[str, Any]:
        problem.zero_grad()
        theta = tuple(problem.parameters.values())
        for t in range(problem.workload.tasks):
            sx, sy, qx, qy = problem.task(t)
            phi = solve(tuple(p.detach() for p in theta), theta, sx, sy)
            outputs = functional_call(problem.model, dict(zip(names, phi, strict=True)), (qx,))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="We've integrated functorch", category=FutureWarning)
                (problem.loss(outputs, qy) / problem.workload.tasks).backward()
        return problem.gradient()

    return step


def ours(problem: Problem, **ways: Any) -> MetaStep:
    """`fastmeta.IMAML`."""
    learner = fastmeta.IMAML(
        problem.model, strength=STRENGTH, cg_steps=CG_STEPS, inner_optimizer=sgd(problem), **options(problem), **ways
    )
    return fastmeta_step(problem, learner)


IMAML = Algorithm(
    name="imaml",
    workloads=("sinusoid", "omniglot-5w1s"),
    model=network,
    plain=_by_autograd(solve=True),
    mistaken=_by_autograd(solve=False),
    peers={"autograd loop": _by_autograd(solve=True), "torchopt": torchopt},
    ours=ours,
    changes={"steps": 16},  # of the paper, on Omniglot
    ways=("fastmeta eager", "fastmeta compiled"),
)
