"""The peers, each as its own authors would run it, imported and never copied.

A peer turns a `Problem` into a `MetaStep`. Libraries are imported inside, so that one that is missing is a row of the
result and no crash. `importlib` keeps optional packages out of the type checker's sight.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from .graphs import captured
from .networks import LOSSES
from .problem import Learner, MetaStep, Problem, Unsupported, accumulate, loop_over_tasks, pull


def autograd_loop(problem: Problem) -> MetaStep:
    """Plain PyTorch: one task at a time, `torch.autograd.grad` with `create_graph`."""
    lr, steps = problem.workload.lr, problem.workload.steps

    def adapt(sx: Tensor, sy: Tensor) -> Learner:
        fast: dict[str, Tensor] = dict(problem.parameters)
        for _ in range(steps):
            loss = problem.loss(functional_call(problem.model, fast, (sx,)), sy)
            gradients = torch.autograd.grad(loss, list(fast.values()), create_graph=problem.exact)
            fast = {name: p - lr * g for (name, p), g in zip(fast.items(), gradients, strict=True)}
        return Learner(list(fast.values()), lambda x: functional_call(problem.model, fast, (x,)))

    return loop_over_tasks(problem, adapt)


def learn2learn(problem: Problem) -> MetaStep:
    """learn2learn's MAML module: clone, adapt, backward, task by task."""
    package = importlib.import_module("learn2learn")
    _all_move(problem, "learn2learn")
    lr, steps = problem.workload.lr, problem.workload.steps
    maml = package.algorithms.MAML(problem.model, lr=lr, first_order=not problem.exact)

    def adapt(sx: Tensor, sy: Tensor) -> Learner:
        learner = maml.clone()
        for _ in range(steps):
            learner.adapt(problem.loss(learner(sx), sy))
        return Learner(tensors_of(learner), learner)

    return loop_over_tasks(problem, adapt)


def _all_move(problem: Problem, package: str) -> None:
    """Raises Unsupported where something is frozen."""
    if any(not p.requires_grad for p in problem.model.parameters()):
        raise Unsupported(f"{package} moves every parameter of a module, and some of this one are frozen")


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters in order, also where graph tensors have taken their places."""
    return [p for m in module.modules() for p in m._parameters.values() if p is not None]


def clone_module(module: nn.Module, replace: Callable[[Tensor], Tensor]) -> nn.Module:
    """A module of the same structure whose parameters are the graph tensors that `replace` gives."""
    twin = copy.copy(module)
    parameters = {name: None if p is None else replace(p) for name, p in module._parameters.items()}
    modules = {name: None if m is None else clone_module(m, replace) for name, m in module._modules.items()}
    twin.__dict__.update(_parameters=parameters, _modules=modules)
    return twin


def learn2learn_idiom(problem: Problem) -> MetaStep:
    """What learn2learn's MAML does, where the package does not build: differentiable clones of the module."""
    _all_move(problem, "learn2learn")
    lr, steps = problem.workload.lr, problem.workload.steps

    def adapt(sx: Tensor, sy: Tensor) -> Learner:
        learner = clone_module(problem.model, torch.clone)
        for _ in range(steps):
            fast = tensors_of(learner)
            loss = problem.loss(learner(sx), sy)
            gradients = torch.autograd.grad(loss, fast, create_graph=problem.exact)
            updated = {id(p): p - lr * g for p, g in zip(fast, gradients, strict=True)}
            learner = clone_module(learner, lambda p, updated=updated: updated[id(p)])
        return Learner(tensors_of(learner), learner)

    return loop_over_tasks(problem, adapt)


def higher(problem: Problem) -> MetaStep:
    """higher's `innerloop_ctx` with its differentiable SGD, task by task."""
    package = importlib.import_module("higher")
    _all_move(problem, "higher")
    model, steps, tasks = problem.model, problem.workload.steps, problem.workload.tasks
    inner = torch.optim.SGD(model.parameters(), lr=problem.workload.lr)
    order = {"copy_initial_weights": False, "track_higher_grads": problem.exact}

    def step() -> Mapping[str, Any]:
        problem.zero_grad()
        for t in range(tasks):
            sx, sy, qx, qy = problem.task(t)
            with package.innerloop_ctx(model, inner, **order) as (learner, optimizer):
                for _ in range(steps):
                    optimizer.step(problem.loss(learner(sx), sy))
                if problem.algorithm == "reptile":
                    pull(problem, list(learner.parameters()))
                    continue
                loss = problem.loss(learner(qx), qy) / tasks
                if problem.exact:
                    loss.backward()
                    continue
                # without higher gradients nothing reaches the model: take φ_K's
                gradients = torch.autograd.grad(loss, list(learner.parameters()))
                for p, g in zip(problem.parameters.values(), gradients, strict=True):
                    accumulate(p, g)
        return problem.gradient()

    return step


def torchopt(problem: Problem) -> MetaStep:
    """TorchOpt's `MetaSGD`: state put back between tasks, one backward of the mean, as in its examples."""
    if not problem.exact:
        raise Unsupported("TorchOpt offers differentiable inner optimisers, neither first-order MAML nor Reptile")
    package = importlib.import_module("torchopt")
    _all_move(problem, "TorchOpt")
    model, steps, tasks = problem.model, problem.workload.steps, problem.workload.tasks
    inner = package.MetaSGD(model, lr=problem.workload.lr)

    def step() -> Mapping[str, Any]:
        problem.zero_grad()
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
        return problem.gradient()

    problem.parameters  # noqa: B018  θ, before TorchOpt puts fast weights in its place
    return step


Params = dict[str, Tensor]


def _loss_at(problem: Problem, params: Params, x: Tensor, y: Tensor) -> Tensor:
    return problem.loss(functional_call(problem.model, params, (x,)), y)


def _adapted(problem: Problem, theta: Params, sx: Tensor, sy: Tensor) -> Params:
    """φ_K of one task as a pure function, with `torch.func.grad` inside."""
    lr = problem.workload.lr
    fast = theta
    for _ in range(problem.workload.steps):
        gradients = grad(lambda p: _loss_at(problem, p, sx, sy))(fast)
        if not problem.exact:
            gradients = {name: g.detach() for name, g in gradients.items()}
        fast = {name: p - lr * gradients[name] for name, p in fast.items()}
    return fast


def _query_loss(problem: Problem, theta: Params, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
    return _loss_at(problem, _adapted(problem, theta, sx, sy), qx, qy)


def func_vmap(problem: Problem) -> MetaStep:
    """torch.func: `vmap` over tasks of a `grad`-based inner loop, then `backward`, as functorch's example.

    Where each task has its own batch-norm weights, PyTorch's batching rule for batch norm's backward gives a
    wrong second derivative (pytorch/functorch#534), in float64 too: the gate is red on networks with batch
    norm.
    """
    theta: Params = dict(problem.parameters)
    if problem.algorithm == "reptile":
        still = {name: p.detach() for name, p in theta.items()}
        adapted = vmap(partial(_adapted, problem, still))

        def reptile() -> Mapping[str, Any]:
            fast = adapted(*problem.batch[:2])
            return {name: still[name] - phi.mean(0) for name, phi in fast.items()}

        return reptile
    losses = vmap(partial(_query_loss, problem, theta))

    def step() -> Mapping[str, Any]:
        problem.zero_grad()
        losses(*problem.batch).mean().backward()
        return problem.gradient()

    return step


def func_loop(problem: Problem) -> MetaStep:
    """torch.func without `vmap`: the same pure function, task by task."""

    def adapt(sx: Tensor, sy: Tensor) -> Learner:
        fast = _adapted(problem, dict(problem.parameters), sx, sy)
        return Learner(list(fast.values()), lambda x: functional_call(problem.model, fast, (x,)))

    return loop_over_tasks(problem, adapt)


def func_compiled(problem: Problem) -> MetaStep:
    """`torch.compile` of torch.func's whole meta-step as one graph, the only way in: it refuses double backward."""
    theta = {name: p.detach() for name, p in problem.parameters.items()}

    def mean_loss(theta: Params, *batch: Tensor) -> Tensor:
        return vmap(partial(_query_loss, problem, theta))(*batch).mean()

    def reptile(theta: Params, sx: Tensor, sy: Tensor, *_: Tensor) -> Params:
        fast = vmap(partial(_adapted, problem, theta))(sx, sy)
        return {name: theta[name] - phi.mean(0) for name, phi in fast.items()}

    compiled = torch.compile(reptile if problem.algorithm == "reptile" else grad(mean_loss), fullgraph=True)
    return lambda: compiled(theta, *problem.batch)


def fastmeta_peer(
    *, backend: str = "torch", compile: bool = False, cuda_graph: bool = False, memory: str = "save"
) -> Callable[[Problem], MetaStep]:
    """fastmeta itself, in one of its ways to run. What it says it cannot do is `Unsupported`."""

    def prepare(problem: Problem) -> MetaStep:
        package = importlib.import_module("fastmeta")
        kinds = {"maml": package.MAML, "fomaml": package.FOMAML, "reptile": package.Reptile}
        learner = kinds[problem.algorithm](
            problem.model,
            inner_loss=LOSSES[problem.workload.loss],
            inner_optimizer=package.SGD(lr=problem.workload.lr),
            inner_steps=problem.workload.steps,
            backend=backend,
            compile=compile,
            cuda_graph=cuda_graph,
            memory=memory,
            precision=problem.precision,
        )

        # Reptile needs no query set, and no other peer evaluates one
        batch = problem.batch[:2] if problem.algorithm == "reptile" else problem.batch

        def step() -> Mapping[str, Any]:
            problem.zero_grad()
            learner(*batch).loss.backward()
            return problem.gradient()

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="cuda_graph=")
                step()
                if cuda_graph:
                    step()  # the first runs as ever, the second is recorded
        except (RuntimeError, ValueError, UserWarning) as refusal:
            if str(refusal).startswith(("backend=", "precision=", "cuda_graph=")):
                raise Unsupported(str(refusal)) from None
            raise
        return step

    return prepare


def jax_peer(*, vectorize: bool) -> Callable[[Problem], MetaStep]:
    """JAX, with `vmap` or `lax.map` over tasks."""

    def prepare(problem: Problem) -> MetaStep:
        importlib.import_module("jax")
        return importlib.import_module("bench.jax_peer").prepare(problem, vectorize=vectorize)

    return prepare


FASTMETA = "fastmeta "
"""What the names of fastmeta's own rows start with."""
GRAPH = " graph"
"""What the names of peers in a CUDA graph end with."""

PEERS: dict[str, Callable[[Problem], MetaStep]] = {
    "autograd loop": autograd_loop,
    "learn2learn": learn2learn,
    "learn2learn idiom": learn2learn_idiom,
    "higher": higher,
    "torchopt": torchopt,
    "torch.func vmap": func_vmap,
    "torch.func vmap graph": captured(func_vmap),
    "torch.func loop": func_loop,
    "torch.compile": func_compiled,
    "jax vmap": jax_peer(vectorize=True),
    "jax map": jax_peer(vectorize=False),
    "fastmeta reference": fastmeta_peer(backend="reference"),
    "fastmeta eager": fastmeta_peer(),
    "fastmeta eager graph": fastmeta_peer(cuda_graph=True),
    "fastmeta compiled": fastmeta_peer(compile=True),
    "fastmeta recompute": fastmeta_peer(memory="recompute"),
    "fastmeta triton": fastmeta_peer(backend="triton"),
    "fastmeta triton graph": fastmeta_peer(backend="triton", cuda_graph=True),
}


def peers_for(device: str) -> list[str]:
    """All but what needs another device and what compiles for minutes, which has to be asked for by name.

    fastmeta's kernels stand in every table, with the reason where they wait.
    """
    return [name for name in PEERS if name != "torch.compile" and (device == "cuda" or not name.endswith(GRAPH))]
