"""The peers, each as its own authors would run it, imported and never copied.

A peer turns a `Problem` into a function that does one meta-step (loss and meta-gradient of the whole
meta-batch, no outer update) and returns the meta-gradient by parameter name, complete when the function
returns. Libraries are imported inside, so that one that is missing is a row of the result and no crash.
`importlib` keeps optional packages out of the type checker's sight.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from bench.workloads import LOSSES, Workload
from fastmeta.tasks import Episodes

MetaStep = Callable[[], Mapping[str, Any]]


class Unsupported(Exception):
    """The peer does not offer what is asked of it; the message says what."""


@dataclass(frozen=True)
class Problem:
    """A workload with its model and data in memory; every peer gets its own model with the same weights."""

    workload: Workload
    model: nn.Sequential
    batch: Episodes
    first_order: bool

    @classmethod
    def of(cls, workload: Workload, *, first_order: bool) -> Problem:
        """Model and batch from the workload's fixed seeds."""
        return cls(workload, workload.model(), workload.batch(), first_order)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean over the samples of one task."""
        return LOSSES[self.workload.loss](outputs, targets)

    def task(self, t: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Support inputs and targets, query inputs and targets of task t."""
        sx, sy, qx, qy = self.batch
        return sx[t], sy[t], qx[t], qy[t]

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """θ by name, looked up once, as an optimiser does."""
        return dict(self.model.named_parameters())

    def zero_grad(self) -> None:
        for p in self.parameters.values():
            p.grad = None

    def gradient(self) -> dict[str, Tensor | None]:
        """What lies in `.grad` of the model's own parameters."""
        return {name: p.grad for name, p in self.parameters.items()}


def loop_over_tasks(problem: Problem, query_loss: Callable[..., Tensor]) -> MetaStep:
    """A meta-step that calls `backward` after each task, as a user short of memory would."""
    tasks = problem.workload.tasks

    def step() -> Mapping[str, Any]:
        problem.zero_grad()
        for t in range(tasks):
            (query_loss(*problem.task(t)) / tasks).backward()
        return problem.gradient()

    return step


def autograd_loop(problem: Problem) -> MetaStep:
    """Plain PyTorch: one task at a time, `torch.autograd.grad` with `create_graph`."""
    lr, steps = problem.workload.lr, problem.workload.steps

    def query_loss(sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        fast: dict[str, Tensor] = dict(problem.model.named_parameters())
        for _ in range(steps):
            loss = problem.loss(functional_call(problem.model, fast, (sx,)), sy)
            gradients = torch.autograd.grad(loss, list(fast.values()), create_graph=not problem.first_order)
            fast = {name: p - lr * g for (name, p), g in zip(fast.items(), gradients, strict=True)}
        return problem.loss(functional_call(problem.model, fast, (qx,)), qy)

    return loop_over_tasks(problem, query_loss)


def learn2learn(problem: Problem) -> MetaStep:
    """learn2learn's MAML module: clone, adapt, backward, task by task."""
    package = importlib.import_module("learn2learn")
    lr, steps = problem.workload.lr, problem.workload.steps
    maml = package.algorithms.MAML(problem.model, lr=lr, first_order=problem.first_order)

    def query_loss(sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        learner = maml.clone()
        for _ in range(steps):
            learner.adapt(problem.loss(learner(sx), sy))
        return problem.loss(learner(qx), qy)

    return loop_over_tasks(problem, query_loss)


def _clone(module: nn.Module, replace: Callable[[Tensor], Tensor]) -> nn.Module:
    """A module of the same structure whose parameters are the graph tensors that `replace` gives."""
    twin = copy.copy(module)
    parameters = {name: None if p is None else replace(p) for name, p in module._parameters.items()}
    modules = {name: None if m is None else _clone(m, replace) for name, m in module._modules.items()}
    twin.__dict__.update(_parameters=parameters, _modules=modules)
    return twin


def learn2learn_idiom(problem: Problem) -> MetaStep:
    """What learn2learn's MAML does, where the package does not build: differentiable clones of the module."""
    lr, steps = problem.workload.lr, problem.workload.steps

    def parameters(module: nn.Module) -> list[Tensor]:
        return [p for m in module.modules() for p in m._parameters.values() if p is not None]

    def query_loss(sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        learner = _clone(problem.model, torch.clone)
        for _ in range(steps):
            fast = parameters(learner)
            loss = problem.loss(learner(sx), sy)
            gradients = torch.autograd.grad(loss, fast, create_graph=not problem.first_order)
            updated = {id(p): p - lr * g for p, g in zip(fast, gradients, strict=True)}
            learner = _clone(learner, lambda p, updated=updated: updated[id(p)])
        return problem.loss(learner(qx), qy)

    return loop_over_tasks(problem, query_loss)


def higher(problem: Problem) -> MetaStep:
    """higher's `innerloop_ctx` with its differentiable SGD, task by task."""
    package = importlib.import_module("higher")
    model, steps, tasks = problem.model, problem.workload.steps, problem.workload.tasks
    inner = torch.optim.SGD(model.parameters(), lr=problem.workload.lr)
    order = {"copy_initial_weights": False, "track_higher_grads": not problem.first_order}

    def step() -> Mapping[str, Any]:
        problem.zero_grad()
        for t in range(tasks):
            sx, sy, qx, qy = problem.task(t)
            with package.innerloop_ctx(model, inner, **order) as (learner, optimizer):
                for _ in range(steps):
                    optimizer.step(problem.loss(learner(sx), sy))
                loss = problem.loss(learner(qx), qy) / tasks
                if problem.first_order:  # without higher gradients nothing reaches the model: take φ_K's
                    _accumulate(model, torch.autograd.grad(loss, list(learner.parameters())))
                else:
                    loss.backward()
        return problem.gradient()

    return step


def _accumulate(model: nn.Module, gradients: tuple[Tensor, ...]) -> None:
    for p, g in zip(model.parameters(), gradients, strict=True):
        p.grad = g if p.grad is None else p.grad + g


def torchopt(problem: Problem) -> MetaStep:
    """TorchOpt's `MetaSGD`: state put back between tasks, one backward of the mean, as in its examples."""
    if problem.first_order:
        raise Unsupported("TorchOpt has no first-order mode")
    package = importlib.import_module("torchopt")
    model, steps, tasks = problem.model, problem.workload.steps, problem.workload.tasks
    inner = package.MetaSGD(model, lr=problem.workload.lr)
    theta = list(model.named_parameters())

    def step() -> Mapping[str, Any]:
        for _, p in theta:
            p.grad = None
        model_state = package.extract_state_dict(model, by="reference")
        inner_state = package.extract_state_dict(inner, by="reference")
        losses = []
        for t in range(tasks):
            sx, sy, qx, qy = problem.task(t)
            for _ in range(steps):
                inner.step(problem.loss(model(sx), sy))
            losses.append(problem.loss(model(qx), qy))
            package.recover_state_dict(model, model_state)
            package.recover_state_dict(inner, inner_state)
        torch.stack(losses).mean().backward()
        return {name: p.grad for name, p in theta}

    return step


def _functional_task(problem: Problem) -> Callable[..., Tensor]:
    """Query loss of one task as a pure function of (θ, support, query), with `torch.func.grad` inside."""
    lr, steps = problem.workload.lr, problem.workload.steps

    def loss_at(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return problem.loss(functional_call(problem.model, params, (x,)), y)

    def query_loss(theta: dict[str, Tensor], sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        fast = theta
        for _ in range(steps):
            gradients = grad(loss_at)(fast, sx, sy)
            if problem.first_order:
                gradients = {name: g.detach() for name, g in gradients.items()}
            fast = {name: p - lr * gradients[name] for name, p in fast.items()}
        return loss_at(fast, qx, qy)

    return query_loss


def func_vmap(problem: Problem) -> MetaStep:
    """torch.func: `vmap` over tasks of a `grad`-based inner loop, then `backward`, as functorch's example.

    Where each task has its own batch-norm weights, PyTorch's batching rule for batch norm's backward gives a
    wrong second derivative (pytorch/functorch#534), in float64 too: the gate is red on networks with batch
    norm.
    """
    theta = dict(problem.model.named_parameters())
    batched = vmap(_functional_task(problem), in_dims=(None, 0, 0, 0, 0))

    def step() -> Mapping[str, Any]:
        problem.zero_grad()
        batched(theta, *problem.batch).mean().backward()
        return problem.gradient()

    return step


def func_loop(problem: Problem) -> MetaStep:
    """torch.func without `vmap`: the same pure function, task by task."""
    theta = dict(problem.model.named_parameters())
    query_loss = _functional_task(problem)
    return loop_over_tasks(problem, lambda *task: query_loss(theta, *task))


def fastmeta_peer(
    *, backend: str = "torch", compile: bool = False, memory: str = "save"
) -> Callable[[Problem], MetaStep]:
    """fastmeta itself, in one of its ways to run."""

    def prepare(problem: Problem) -> MetaStep:
        package = importlib.import_module("fastmeta")
        algorithm = package.FOMAML if problem.first_order else package.MAML
        maml = algorithm(
            problem.model,
            inner_loss=LOSSES[problem.workload.loss],
            inner_optimizer=package.SGD(lr=problem.workload.lr),
            inner_steps=problem.workload.steps,
            backend=backend,
            compile=compile,
            memory=memory,
        )

        def step() -> Mapping[str, Any]:
            problem.zero_grad()
            maml(*problem.batch).loss.backward()
            return problem.gradient()

        return step

    return prepare


def jax_peer(*, vectorize: bool) -> Callable[[Problem], MetaStep]:
    """JAX, with `vmap` or `lax.map` over tasks."""

    def prepare(problem: Problem) -> MetaStep:
        importlib.import_module("jax")
        return importlib.import_module("bench.jax_peer").prepare(problem, vectorize=vectorize)

    return prepare


FASTMETA = "fastmeta"
PEERS: dict[str, Callable[[Problem], MetaStep]] = {
    "autograd loop": autograd_loop,
    "learn2learn": learn2learn,
    "learn2learn idiom": learn2learn_idiom,
    "higher": higher,
    "torchopt": torchopt,
    "torch.func vmap": func_vmap,
    "torch.func loop": func_loop,
    "jax vmap": jax_peer(vectorize=True),
    "jax map": jax_peer(vectorize=False),
    "fastmeta reference": fastmeta_peer(backend="reference"),
    "fastmeta eager": fastmeta_peer(),
    "fastmeta compiled": fastmeta_peer(compile=True),
    "fastmeta recompute": fastmeta_peer(memory="recompute"),
}
