"""MAML in JAX: `jit` of `value_and_grad` over all tasks, the model rebuilt from the PyTorch layers.

Arrays keep PyTorch's names and weight layouts, so gradients compare without translation.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import nn

from bench.peers import MetaStep, Problem

jax: Any = importlib.import_module("jax")
jnp: Any = importlib.import_module("jax.numpy")

# Images inside the network: the faster order on CPU. Inputs are turned from NCHW once, outside the step.
LAYOUT = "NHWC"
CHANNEL = LAYOUT.index("C")
Params = Mapping[str, Any]
Apply = Callable[[Params, Any], Any]


def _linear(name: str, _: nn.Linear) -> Apply:
    return lambda p, x: x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def _conv(name: str, layer: nn.Conv2d) -> Apply:
    pad = int(layer.padding[0])

    def apply(p: Params, x: Any) -> Any:
        weight = p[f"{name}.weight"]
        y = jax.lax.conv_general_dilated(
            x, weight, layer.stride, [(pad, pad)] * 2, dimension_numbers=(LAYOUT, "OIHW", LAYOUT)
        )
        return y + _per_channel(p[f"{name}.bias"])

    return apply


def _batch_norm(name: str, layer: nn.BatchNorm2d) -> Apply:
    axes = tuple(axis for axis in range(4) if axis != CHANNEL)

    def apply(p: Params, x: Any) -> Any:
        mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        scale = _per_channel(p[f"{name}.weight"]) * jax.lax.rsqrt(var + layer.eps)
        return (x - mean) * scale + _per_channel(p[f"{name}.bias"])

    return apply


def _max_pool(_: str, layer: nn.MaxPool2d) -> Apply:
    window = tuple(layer.kernel_size if axis in "HW" else 1 for axis in LAYOUT)
    return lambda p, x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")


def _flatten(_: str, __: nn.Flatten) -> Apply:
    order = tuple(LAYOUT.index(axis) for axis in "NCHW")
    return lambda p, x: x.transpose(order).reshape(x.shape[0], -1)


def _relu(_: str, __: nn.ReLU) -> Apply:
    return lambda p, x: jax.nn.relu(x)


LAYERS: dict[type[nn.Module], Callable[[str, Any], Apply]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.BatchNorm2d: _batch_norm,
    nn.MaxPool2d: _max_pool,
    nn.Flatten: _flatten,
    nn.ReLU: _relu,
}


def _per_channel(value: Any) -> Any:
    return value.reshape([-1 if axis == "C" else 1 for axis in LAYOUT])


def _model(module: nn.Sequential) -> Apply:
    layers = [LAYERS[type(layer)](name, layer) for name, layer in module.named_children()]

    def apply(p: Params, x: Any) -> Any:
        for layer in layers:
            x = layer(p, x)
        return x

    return apply


def _mse(outputs: Any, targets: Any) -> Any:
    return ((outputs - targets) ** 2).mean()


def _cross_entropy(logits: Any, labels: Any) -> Any:
    chosen = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return (jax.nn.logsumexp(logits, axis=1) - chosen).mean()


LOSSES = {"mse": _mse, "cross_entropy": _cross_entropy}


def _array(x: Any) -> Any:
    """A JAX array of a torch tensor, images [T, N, C, H, W] turned to LAYOUT."""
    value = x.detach().numpy()
    if value.ndim == 5:
        value = value.transpose(0, 1, *(2 + "CHW".index(axis) for axis in LAYOUT[1:]))
    return jnp.asarray(np.ascontiguousarray(value))


def prepare(problem: Problem, *, vectorize: bool) -> MetaStep:
    """One compiled function of (θ, meta-batch), with `vmap` over tasks or `lax.map`, one after another."""
    apply, loss = _model(problem.model), LOSSES[problem.workload.loss]
    lr, steps = problem.workload.lr, problem.workload.steps

    def loss_at(params: Params, x: Any, y: Any) -> Any:
        return loss(apply(params, x), y)

    def query_loss(theta: Params, sx: Any, sy: Any, qx: Any, qy: Any) -> Any:
        fast = theta
        for _ in range(steps):
            gradients = jax.grad(loss_at)(fast, sx, sy)
            if problem.first_order:
                gradients = jax.lax.stop_gradient(gradients)
            fast = jax.tree.map(lambda p, g: p - lr * g, fast, gradients)
        return loss_at(fast, qx, qy)

    def meta_loss(theta: Params, *batch: Any) -> Any:
        if vectorize:
            return jax.vmap(query_loss, in_axes=(None, 0, 0, 0, 0))(theta, *batch).mean()
        return jax.lax.map(lambda task: query_loss(theta, *task), batch).mean()

    meta_step = jax.jit(jax.value_and_grad(meta_loss))
    theta = {name: jnp.asarray(p.detach().numpy()) for name, p in problem.model.named_parameters()}
    batch = [_array(x) for x in problem.batch]

    def step() -> Mapping[str, Any]:
        _, gradient = jax.block_until_ready(meta_step(theta, *batch))
        return gradient

    return step
