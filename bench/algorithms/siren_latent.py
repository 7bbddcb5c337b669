"""Latent codes of pictures under one SIREN that all share: COIN++ and functa."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastmeta
from bench.networks import seeded
from bench.problem import MetaStep, Problem
from bench.workloads import Workload
from fastmeta.models import ModulatedSiren

from .base import (
    Algorithm,
    all_at_once,
    as_constants,
    by_func,
    clear,
    exactly,
    fastmeta_step,
    gradients_of,
    options,
    sgd,
    task_by_task,
)  # fmt: skip
from .cavia import adapted_alone


def modulated(workload: Workload) -> nn.Module:
    """As wide as the workload's SIREN, and as deep."""
    return seeded(lambda: ModulatedSiren(width=workload.width, hidden=3, latent=workload.width))


def coin_idiom(problem: Problem) -> MetaStep:
    """COIN++'s authors' way: the pictures are a batch, their latents [T, L] a tensor; one gradient of them a step."""
    model, lr, tasks = cast(ModulatedSiren, problem.model), problem.workload.lr, problem.workload.tasks
    sx, sy, qx, qy = problem.batch

    def outputs(latents: Tensor, x: Tensor) -> Tensor:
        shifts = model.modulation(latents).view(tasks, len(model.layers), 1, model.width)
        for depth, layer in enumerate(model.layers):
            x = torch.sin(model.frequency * (layer(x) + shifts[:, depth]))
        return model.last(x)

    def losses(latents: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(outputs(latents, x), y, reduction="none").flatten(1).mean(1)

    def step() -> Mapping[str, Any]:
        clear(problem.parameters)
        latents = sx.new_zeros(tasks, model.latent.numel()).requires_grad_()
        for _ in range(problem.workload.steps):
            (g,) = torch.autograd.grad(losses(latents, sx, sy).sum(), latents, create_graph=True)
            latents = latents - lr * g
        losses(latents, qx, qy).mean().backward()
        return gradients_of(problem.parameters)

    return step


def jax_vmap(problem: Problem) -> MetaStep:
    """JAX: `jit` of `value_and_grad` of the mean over `vmap`."""
    jax: Any = importlib.import_module("jax")
    jnp: Any = importlib.import_module("jax.numpy")
    model, lr, steps = cast(ModulatedSiren, problem.model), problem.workload.lr, problem.workload.steps
    depth, width, size = len(model.layers), model.width, model.latent.numel()

    def loss(latent: Any, theta: Any, x: Any, y: Any) -> Any:
        shifts = (theta["modulation.weight"] @ latent + theta["modulation.bias"]).reshape(depth, width)
        for layer in range(depth):
            z = x @ theta[f"layers.{layer}.weight"].T + theta[f"layers.{layer}.bias"] + shifts[layer]
            x = jnp.sin(model.frequency * z)
        return ((x @ theta["last.weight"].T + theta["last.bias"] - y) ** 2).mean()

    def task(theta: Any, sx: Any, sy: Any, qx: Any, qy: Any) -> Any:
        latent = jnp.zeros(size)
        for _ in range(steps):
            latent = latent - lr * jax.grad(loss)(latent, theta, sx, sy)
        return loss(latent, theta, qx, qy)

    def meta_loss(theta: Any, *batch: Any) -> Any:
        return jax.vmap(lambda *one: task(theta, *one))(*batch).mean()

    meta_step = jax.jit(jax.value_and_grad(meta_loss))
    theta = {name: jnp.asarray(p.detach().cpu().numpy()) for name, p in problem.parameters.items() if name != "latent"}
    batch = [jnp.asarray(x.cpu().numpy()) for x in problem.batch]
    return lambda: jax.block_until_ready(meta_step(theta, *batch))[1]


def ours(problem: Problem, **ways: Any) -> MetaStep:
    """`fastmeta.CAVIA` of the latent."""
    rule = sgd(problem)
    learner = fastmeta.CAVIA(problem.model, context="latent", inner_optimizer=rule, **options(problem), **ways)
    return fastmeta_step(problem, learner)


SIREN_LATENT = Algorithm(
    name="siren-latent",
    workloads=("siren-64",),
    model=modulated,
    plain=adapted_alone("latent", task_by_task, exactly),
    mistaken=adapted_alone("latent", task_by_task, as_constants),
    peers={
        "authors' way": coin_idiom,
        "torch.func vmap": adapted_alone("latent", all_at_once, by_func),
        "jax vmap": jax_vmap,
    },
    ours=ours,
    changes={},
)
