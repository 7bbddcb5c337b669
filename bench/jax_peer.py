"""MAML in JAX: `jit` of `value_and_grad` over all tasks, the model rebuilt from the PyTorch layers.

Arrays keep PyTorch's names and weight layouts, so gradients compare without translation.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import nn

from fastmeta.models import Sine

from .problem import MetaStep, Problem, Unsupported

jax: Any = importlib.import_module("jax")
jnp: Any = importlib.import_module("jax.numpy")

# Images inside the network: the faster order on CPU. Inputs are turned from NCHW once, outside the step.
LAYOUT = "NHWC"
CHANNEL = LAYOUT.index("C")
# `default_matmul_precision` on a GPU; bfloat16 operands are cast, so there it changes nothing.
PRODUCTS = {"float32": "float32", "tf32": "tensorfloat32", "bfloat16": "bfloat16"}
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


def _sine(_: str, layer: Sine) -> Apply:
    return lambda p, x: jnp.sin(layer.frequency * x)


LAYERS: dict[type[nn.Module], Callable[[str, Any], Apply]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.BatchNorm2d: _batch_norm,
    nn.MaxPool2d: _max_pool,
    nn.Flatten: _flatten,
    nn.ReLU: _relu,
    Sine: _sine,
}


def _per_channel(value: Any) -> Any:
    return value.reshape([-1 if axis == "C" else 1 for axis in LAYOUT])


def _model(module: nn.Module) -> Apply:
    missing = sorted({type(layer).__name__ for layer in module.children() if type(layer) not in LAYERS})
    if missing or not isinstance(module, nn.Sequential):
        what = ", ".join(missing) or type(module).__name__
        raise Unsupported(f"rebuilt in JAX are plain layers alone, and the network has {what}")
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
    value = x.detach().cpu().numpy()
    if value.ndim == 5:
        value = value.transpose(0, 1, *(2 + "CHW".index(axis) for axis in LAYOUT[1:]))
    return jnp.asarray(np.ascontiguousarray(value))


def _half(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def _objective(problem: Problem) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """One task's φ_K from (θ, support), and its loss at parameters."""
    apply, loss = _model(problem.model), LOSSES[problem.workload.loss]
    lr, steps, half = problem.workload.lr, problem.workload.steps, problem.precision == "bfloat16"

    def loss_at(params: Params, x: Any, y: Any) -> Any:
        outputs = apply(_half(params), _half(x)).astype(jnp.float32) if half else apply(params, x)
        return loss(outputs, y)

    def adapted(theta: Params, sx: Any, sy: Any) -> Any:
        fast = theta
        for _ in range(steps):
            gradients = jax.grad(loss_at)(fast, sx, sy)
            if not problem.exact:
                gradients = jax.lax.stop_gradient(gradients)
            fast = jax.tree.map(lambda p, g: p - lr * g, fast, gradients)
        return fast

    return adapted, loss_at


def prepare(problem: Problem, *, vectorize: bool) -> MetaStep:
    """One compiled function of (θ, meta-batch), with `vmap` over tasks or `lax.map`, one after another."""
    if problem.device == "cuda" and jax.default_backend() != "gpu":
        raise Unsupported("JAX finds no GPU here (its CUDA plugin is not installed, or JAX_PLATFORMS excludes it)")
    adapted, loss_at = _objective(problem)

    def over_tasks(task: Callable[..., Any], *batch: Any) -> Any:
        return jax.vmap(task)(*batch) if vectorize else jax.lax.map(lambda each: task(*each), batch)

    def meta_loss(theta: Params, *batch: Any) -> Any:
        return over_tasks(lambda sx, sy, qx, qy: loss_at(adapted(theta, sx, sy), qx, qy), *batch).mean()

    def reptile(theta: Params, sx: Any, sy: Any, *_: Any) -> Any:
        fast = over_tasks(lambda sx, sy: adapted(theta, sx, sy), sx, sy)
        return jnp.zeros(()), jax.tree.map(lambda p, phi: p - phi.mean(0), theta, fast)

    meta_step = jax.jit(reptile if problem.algorithm == "reptile" else jax.value_and_grad(meta_loss))
    theta = {name: jnp.asarray(p.detach().cpu().numpy()) for name, p in problem.parameters.items()}
    batch = [_array(x) for x in problem.batch]
    # on a CPU calls would run side by side; a GPU runs them in order
    wait = jax.block_until_ready if problem.device == "cpu" else lambda results: results

    def step() -> Mapping[str, Any]:
        with jax.default_matmul_precision(PRODUCTS[problem.precision]):
            _, gradient = wait(meta_step(theta, *batch))
        return gradient

    return step
